"""The benchmark's results: what is stored is what was run, and a different run is told apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sweep_files import write_sweep

from algd.experiments.run_data import RunData, Series, read_runs
from algd.experiments.sweep import sweep
from tests.benchmarks import evidence

PRESETS = {"base": {"values": ["sac_alam", "fac"]}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two presets for a moment."""
    directory = tmp_path_factory.mktemp("sweep")
    path = write_sweep(directory, total_steps=100, parameters=PRESETS)
    assert sweep(path, directory / "out", seeds=1, jobs=1) == 0
    return directory / "out"


@pytest.fixture
def stored(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what they recorded."""
    monkeypatch.setattr(evidence, "STORED", tmp_path / "stored")
    assert evidence.keep([finished]) == 0
    return tmp_path / "stored"


def test_a_stored_run_holds_what_the_run_recorded(finished: Path, stored: Path) -> None:
    names = sorted(str(path.relative_to(stored)) for path in stored.glob("*/*"))
    assert names == ["100/AnalyticBandit1-v0,fac,s0.csv", "100/AnalyticBandit1-v0,sac_alam,s0.csv"]
    for run in read_runs([finished]).runs:
        (there,) = (
            back
            for back in map(evidence.as_run, evidence.stored_runs())
            if back.config["multiplier.kind"] == run.config["multiplier.kind"]
        )
        for table in ("metrics", "episodes"):
            for name, series in getattr(there, table).items():
                recorded = getattr(run, table)[name]
                assert np.array_equal(series.steps, recorded.steps), name
                assert np.array_equal(series.values, recorded.values), name
        assert there.config["train.total_steps"] == 100
        assert {"eval/return", "eval/cost"} <= there.metrics.keys()


def test_a_run_that_repeats_equals_its_stored_rows_and_another_does_not(
    finished: Path, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evidence.check([finished]) == 0
    assert capsys.readouterr().out.count("bit for bit") == 2
    path = stored / "100/AnalyticBandit1-v0,fac,s0.csv"
    rows = path.read_text().splitlines()
    last = next(i for i, row in enumerate(rows) if row.startswith("evaluation,100,"))
    _, _, value, *rest = rows[last].split(",")
    rows[last] = ",".join(["evaluation", "100", repr(np.nextafter(float(value), 9).item()), *rest])
    path.write_text("\n".join(rows) + "\n")
    assert evidence.check([finished]) == 1
    assert "fac,s0.csv: differs (return " in capsys.readouterr().out
    for file in stored.glob("*/*"):
        file.unlink()
    assert evidence.check([finished]) == 1
    assert "nothing to compare" in capsys.readouterr().out


@pytest.mark.parametrize(("away", "code"), [(4.9, 0), (5.1, 1), (-4.9, 0), (-5.1, 1)])
def test_a_run_of_another_processor_is_held_against_what_the_stored_seeds_predict(
    away: float, code: int, finished: Path, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds at -1, 0 and 1 predict a further run within t_2 sqrt(1 + 1/3) = 4.97."""
    path = stored / "100/AnalyticBandit1-v0,fac,s0.csv"
    first = evidence.from_text(path.read_text())
    here = evidence.as_run(first).metrics["eval/return"].values[-1]
    (place,) = (k for k, row in enumerate(first.rows) if row[:2] == ("evaluation", "100"))
    for seed in range(3):
        value = repr(float(here) + away + seed - 1)
        rows = list(first.rows)
        rows[place] = (*rows[place][:2], value, *rows[place][3:])
        about = first.about | {"processor": "another"}
        about["config"] = first.about["config"] | {"seed": seed}
        one = first._replace(about=about, rows=tuple(rows))
        (stored / one.name).write_text(evidence.to_text(one))
    assert evidence.check([finished]) == code
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "fac,s0" in line)
    assert ("differs by more" in line) == bool(code)
    assert ("another processor, as expected" in line) != bool(code)


def test_what_is_kept_is_read_back_equal_and_may_be_kept_again(
    finished: Path, stored: Path
) -> None:
    path = stored / "100/AnalyticBandit1-v0,fac,s0.csv"
    before = path.read_text()
    run = next(run for run in evidence._finished([finished]) if run.about["base"] == "fac")
    assert evidence.from_text(evidence.to_text(run)) == run
    assert evidence.keep([finished]) == 0
    assert path.read_text() == before


def test_a_stored_run_is_not_replaced_by_one_of_another_configuration(
    finished: Path, stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored / "100/AnalyticBandit1-v0,fac,s0.csv"
    before = evidence.from_text(path.read_text())
    config = before.about["config"] | {"constraint.cost_limit": 0.25}
    other = evidence.to_text(before._replace(about=before.about | {"config": config}))
    path.write_text(other)
    assert evidence.keep([finished]) == 1
    assert "fac,s0.csv is stored with another configuration" in capsys.readouterr().err
    assert path.read_text() == other


def test_the_table_of_the_readme_comes_from_the_stored_runs(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{evidence.BEGIN}\nold\n{evidence.END}\nafter\n")
    monkeypatch.setattr(evidence, "README", readme)
    assert evidence.table(None) == 0
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    (row,) = (line for line in lines if "| `fac` |" in line)
    last = evidence.as_run(evidence.stored_runs()[0]).metrics["eval/return"].values[-1]
    assert f"| 0 | 0k | {last:.1f} |" in row


def test_budgets_have_a_table_each(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run, _) = evidence.stored_runs()
    longer = run.about | {"config": run.about["config"] | {"train.total_steps": 3000}}
    path = stored / "3000" / "any,name,s0.csv"
    path.parent.mkdir()
    path.write_text(evidence.to_text(run._replace(about=longer)))
    readme = tmp_path / "README.md"
    readme.write_text(f"{evidence.BEGIN}\n{evidence.END}\n")
    monkeypatch.setattr(evidence, "README", readme)
    assert evidence.table(None) == 0
    first, second = readme.read_text().split("\n\n")
    assert (first.count("| `"), second.count("| `")) == (2, 1)
    assert "`sac_alam`" not in second


def late_run(stored: Path, base: str, seed: int, episodes: list[tuple[float, float]]) -> None:
    template = evidence.stored_runs()[0]
    config = template.about["config"] | {
        "seed": seed,
        "train.total_steps": 3000,
        "constraint.cost_limit": 25.0,
    }
    run = evidence.StoredRun(
        template.about | {"base": base, "config": config},
        tuple(("episode", str(i), *map(repr, pair), "") for i, pair in enumerate(episodes)),
    )
    (stored / run.name).parent.mkdir(exist_ok=True)
    (stored / run.name).write_text(evidence.to_text(run))


def test_late_training_episodes_and_how_two_presets_differ_in_them(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        late_run(stored, "fac", seed, [(-9.0, 99.0), (1.0, 20.0), (3.0 + seed, 30.0)])
        late_run(stored, "sac", seed, [(-9.0, 99.0), (5.0, 20.0), (7.0 - seed, 20.0 + seed)])
    assert evidence.late(3000, "AnalyticBandit1-v0", ["fac", "sac"], 2) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "fac, seed 0 | 2.0 | 25.0 | 0.50",
        "fac, seed 1 | 2.5 | 25.0 | 0.50",
        "sac, seed 0 | 6.0 | 20.0 | 0.00",
        "sac, seed 1 | 5.5 | 20.5 | 0.00",
        "sac less fac, 2 seeds | 3.5 [-2.9, 9.9] | -4.8 [-7.9, -1.6] | -0.50",
    ]
    assert evidence.late(3000, "AnalyticBandit1-v0", ["fac", "cal"], 2) == 1
    assert "no stored run of cal" in capsys.readouterr().err


def test_oscillation_counts_from_the_first_third_on() -> None:
    costs = Series(np.array([0, 30, 60, 90]), np.array([500.0, 10.0, 40.0, 25.0]))
    run = RunData(Path("run"), "run", {}, {"eval/cost": costs}, {})
    assert evidence.oscillation(run) == 45.0


def _run_of(costs: list[float]) -> RunData:
    steps = np.arange(len(costs)) * 10
    return RunData(
        Path("a"), "a", {"env.id": "one"}, {"eval/cost": Series(steps, np.array(costs))}, {}
    )


def test_the_ratio_of_oscillations_is_of_geometric_means_with_welchs_interval() -> None:
    ours = [_run_of([0.0, 0.0, step]) for step in (2.0, 8.0)]
    theirs = [_run_of([0.0, 0.0, step]) for step in (16.0, 16.0, 16.0)]
    middle, low, high = evidence.oscillation_ratio(ours, theirs)
    assert middle == pytest.approx(0.25)
    # One degree of freedom: log 2 times Student's 12.706 either way.
    assert (low, high) == pytest.approx((0.25 * 2**-12.706, 0.25 * 2**12.706), rel=1e-3)
    assert np.isnan(evidence.oscillation_ratio(ours[:1], theirs)[1])


def test_environments_count_alike_in_the_ratio_of_oscillations() -> None:
    def twice(runs: list[RunData]) -> list[RunData]:
        return [*runs, *(replace(run, config={"env.id": "other"}) for run in runs[:2])]

    ours = [_run_of([0.0, 0.0, step]) for step in (2.0, 8.0, 4.0)]
    theirs = [_run_of([0.0, 0.0, step]) for step in (16.0, 16.0, 16.0)]
    alone = evidence.oscillation_ratio(ours, theirs)
    assert alone[0] == pytest.approx(0.25)
    assert evidence.oscillation_ratio(twice(ours), twice(theirs))[0] == pytest.approx(0.25)
    more = [*twice(ours), *(replace(run, config={"env.id": "other"}) for run in theirs)]
    # 2, 8, 16, 16, 16 there: a geometric mean of 16 * 2^(-4/5).
    found = evidence.oscillation_ratio(more, twice(theirs))[0]
    assert found == pytest.approx(np.sqrt(0.25 * 2 ** (-4 / 5)))


def test_the_ratio_is_taken_over_the_environments_where_both_ran() -> None:
    def at(runs: list[RunData], *names: str) -> list[RunData]:
        return [replace(run, config={"env.id": name}) for name in names for run in runs]

    ours = [_run_of([0.0, 0.0, step]) for step in (2.0, 8.0)]
    theirs = [_run_of([0.0, 0.0, step]) for step in (16.0, 16.0)]
    both = evidence.ratio_where_both_ran(at(ours, "a", "b"), at(theirs, "b", "a"))
    assert both.startswith("0.25 [")
    assert both.endswith("]")
    more = evidence.ratio_where_both_ran(at(ours, "c", "a", "b"), at(theirs, "b", "a", "d"))
    assert more == f"{both}, on 2"
    assert evidence.ratio_where_both_ran(at(ours, "a"), at(theirs, "b", "a")).startswith("0.25 [")
    assert evidence.ratio_where_both_ran(at(ours, "a", "b"), at(theirs, "a")) == ""
    assert evidence.ratio_where_both_ran(at(ours, "c"), at(theirs, "a")) == ""
