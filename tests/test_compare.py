"""Reading runs back, grouping them, and the tables and figures of `algd compare`."""

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from recorded_runs import ENV, write_run

from algd.analysis.statistics import bootstrap_interval
from algd.experiments.cli import main
from algd.experiments.compare import ALL_ENVIRONMENTS, Comparison, compare, usable_runs
from algd.experiments.compare_figures import (
    ablation_figure,
    on_common_steps,
    pareto_front,
    write_figures,
)
from algd.experiments.compare_groups import group_runs
from algd.experiments.compare_tables import csv_table, latex_table, runs_table, terminal_table
from algd.experiments.config_values import HIDDEN, differing_keys, flatten, shown
from algd.experiments.run_data import RunSet, Series, read_runs

RETURNS = {"fixed": [1.0, 2.0, 3.0, 4.0, 5.0], "scalar_dual": [10.0, 20.0, 30.0, 40.0, 50.0]}
COSTS = {"fixed": [30.0, 30.0, 30.0, 30.0, 30.0], "scalar_dual": [10.0, 20.0, 25.0, 26.0, 24.0]}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_two_groups(directory: Path, *, env: str = ENV) -> Path:
    """Two multipliers, five seeds each."""
    for kind in RETURNS:
        for seed in range(5):
            evaluations = [(0, 0.0, 0.0), (1000, RETURNS[kind][seed], COSTS[kind][seed])]
            run_dir = directory / f"{env}_{kind}_{seed}"
            settings = {"multiplier.kind": kind, "env.id": env, "seed": seed}
            write_run(run_dir, evaluations=evaluations, **settings)
    return directory


def comparisons_of(*paths: Path, by: tuple[str, ...] = ()) -> list[Comparison]:
    return compare(group_runs(usable_runs(read_runs(paths).runs).runs, by))


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("algd: error: ")
    return error


# ---- reading ----


def test_what_a_run_wrote_is_read_back(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "one", evaluations=[(0, 1.5, 2.0), (500, -3.0, 40.0)], seed=7)
    ((run,), skipped) = read_runs([run_dir])
    assert skipped == []
    assert (run.name, run.env_id, run.seed, run.cost_limit) == ("one", ENV, 7, 25.0)
    assert (run.total_steps, run.last_step) == (500, 500)
    assert run.metrics["eval/return"].steps.tolist() == [0, 500]
    assert run.metrics["eval/return"].values.tolist() == [1.5, -3.0]
    assert run.episodes["terminated"].values.tolist() == [0.0, 0.0]


def test_empty_fields_are_left_out_and_a_recorded_nan_stays(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "one")
    (run_dir / "metrics.csv").write_text("env_step,a,b\n0,1.0,\n5,,nan\n")
    ((run,), _) = read_runs([run_dir])
    assert run.metrics["a"].steps.tolist() == [0]
    assert run.metrics["b"].steps.tolist() == [5]
    assert np.isnan(run.metrics["b"].values).all()


def test_a_row_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "one", evaluations=[(0, 1.0, 1.0), (10, 2.0, 2.0)])
    with (run_dir / "metrics.csv").open("a") as file:
        file.write("20,3.")
    ((run,), skipped) = read_runs([run_dir])
    assert (run.last_step, skipped) == (10, [])


def spoil(run_dir: Path, damage: str) -> None:
    config, metrics = run_dir / "config.yaml", run_dir / "metrics.csv"
    match damage:
        case "config gone":
            config.unlink()
        case "config cut":
            config.write_text("env: {id: [")
        case "config other":
            config.write_text("colour: blue\n")
        case "config binary":
            config.write_bytes(b"\xff\xfe\x00")
        case "config surrogate":
            config.write_text(config.read_text().replace(ENV, '"\\uD800x"'))
        case "limit text":
            config.write_text(config.read_text().replace("cost_limit: 25.0", "cost_limit: many"))
        case "metrics gone":
            metrics.unlink()
        case "metrics binary":
            metrics.write_bytes(b"env_step,a\n\xff\xfe,1\n")
        case "metrics text":
            metrics.write_text("env_step,a\n0,blue\n")
        case "metrics short row":
            metrics.write_text("env_step,a,b\n0,1\n")
        case "metrics headless":
            metrics.write_text("0,1.0\n5,2.0\n")
        case "steps fall":
            metrics.write_text("env_step,a\n10,1\n5,2\n")
        case "steps absurd":
            metrics.write_text("env_step,a\n1e300,1\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("config gone", "config.yaml is missing or empty"),
        ("config cut", "config.yaml:1: not valid YAML"),
        ("config other", "config.yaml: env.id must be text, got 'nothing'"),
        ("config binary", "config.yaml: not UTF-8 text"),
        ("config surrogate", "config.yaml holds text that is no Unicode: "),
        ("limit text", "constraint.cost_limit must be a number >= 0, got 'many'"),
        ("metrics gone", "metrics.csv holds no row yet"),
        ("metrics binary", "metrics.csv: not UTF-8 text"),
        ("metrics text", "metrics.csv: a: could not convert string to float: 'blue'"),
        ("metrics short row", "metrics.csv:2: 2 fields in a row, expected 3"),
        ("metrics headless", "metrics.csv: the first line must name each column once, env_step"),
        ("steps fall", "metrics.csv: env_step must be counts that never fall"),
        ("steps absurd", "metrics.csv: env_step must be counts that never fall"),
    ],
)
def test_a_corrupt_run_is_skipped_with_one_line(tmp_path: Path, damage: str, reason: str) -> None:
    write_run(tmp_path / "good")
    spoil(write_run(tmp_path / "bad"), damage)
    runs, skipped = read_runs([tmp_path])
    assert [run.name for run in runs] == ["good"]
    (line,) = skipped
    assert line.startswith(f"skipped {tmp_path / 'bad'}: ")
    assert reason in line
    assert "\n" not in line


def test_runs_are_found_below_a_directory_once_and_with_the_shortest_names(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b"):
        write_run(tmp_path / "grid" / name)
    found = read_runs([tmp_path / "grid", tmp_path / "grid" / "a" / ".." / "b"])
    assert [run.name for run in found.runs] == ["a/1", "a/2", "b"]


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "red\x1b[31m")
    write_run(tmp_path / "plain")
    assert [run.name for run in read_runs([tmp_path]).runs] == ["plain", "red?[31m"]


# ---- configuration values ----


def test_only_keys_with_an_effect_tell_runs_apart() -> None:
    one = flatten({"seed": 1, "a": {"b": 1.0, "c": [1, 2]}, "tracking": {"name": "x"}})
    two = flatten({"seed": 2, "a": {"b": 1, "c": [1, 3]}, "tracking": {"name": "y"}})
    assert differing_keys([one, two]) == ["a.c"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env.kwargs.api_key", "anything"),
        ("env.kwargs.token", "anything"),
        ("env.kwargs.password", 12345),
        ("env.kwargs.url", "https://user:pass@host/path"),
        ("env.kwargs.note", "hf_abcdefghijklmnop"),
        ("env.kwargs.note", "0123456789abcdef0123456789abcdef01234567"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(key: str, value: object) -> None:
    assert shown({key: value}, key) == HIDDEN


def test_ordinary_values_are_shown() -> None:
    config = {"env.id": "SafetyPointGoal1-v0", "policy.hidden": (256, 256), "rate": 3e-4, "x": None}
    assert [shown(config, key) for key in (*config, "absent")] == [
        "SafetyPointGoal1-v0",
        "[256, 256]",
        "0.0003",
        "null",
        "–",
    ]


# ---- grouping ----


def test_runs_that_differ_in_nothing_but_the_seed_are_a_group(tmp_path: Path) -> None:
    groups = group_runs(read_runs([write_two_groups(tmp_path)]).runs)
    assert {group.label: sorted(run.seed for run in group.runs) for group in groups} == {
        "multiplier=fixed": [0, 1, 2, 3, 4],
        "multiplier=scalar_dual": [0, 1, 2, 3, 4],
    }


def test_a_group_that_lacks_the_key_of_the_others_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "new", env__fast=False)
    old = write_run(tmp_path / "old") / "config.yaml"
    old.write_text(
        "".join(line for line in old.read_text().splitlines(True) if "fast:" not in line)
    )
    labels = {
        run.path.name: group.label
        for group in group_runs(read_runs([tmp_path]).runs)
        for run in group.runs
    }
    assert labels == {"new": "fast=false", "old": "fast=–"}


def test_labels_name_the_fewest_keys_that_tell_groups_apart(tmp_path: Path) -> None:
    for k, (coef, batch) in enumerate([(0.5, 64), (0.5, 128), (2.0, 128)]):
        write_run(
            tmp_path / str(k),
            constraint__penalty_coef=coef,
            train__batch_size=batch,
            train__buffer_size=1000 * batch,  # goes with the batch size: says nothing more
        )
    labels = [group.label for group in group_runs(read_runs([tmp_path]).runs)]
    assert labels == [
        "constraint.penalty_coef=0.5, batch_size=64",
        "constraint.penalty_coef=0.5, batch_size=128",
        "constraint.penalty_coef=2, batch_size=128",
    ]


def test_by_pools_runs_over_all_other_keys_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, (coef, batch) in enumerate([(0.5, 64), (0.5, 128), (2.0, 128)]):
        write_run(tmp_path / str(k), constraint__penalty_coef=coef, train__batch_size=batch)
    runs = read_runs([tmp_path]).runs
    sizes = {group.label: len(group.runs) for group in group_runs(runs, ["train.batch_size"])}
    assert sizes == {"batch_size=64": 1, "batch_size=128": 2}
    parts = group_runs(runs, ["constraint", "train"])  # all keys below
    assert len(parts) == 3
    for by, said in (("train.batch_size", True), ("constraint", True), ("train", True)):
        assert main(["compare", str(tmp_path), "--by", by]) == 0
        other = "train.batch_size" if by == "constraint" else "constraint.penalty_coef"
        assert (f"runs of one group differ in {other}; --by" in capsys.readouterr().err) is said
    assert main(["compare", str(tmp_path)]) == 0
    assert "differ" not in capsys.readouterr().err


def test_runs_of_different_environments_are_compared_only_inside_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_groups(tmp_path / "runs")
    write_two_groups(tmp_path / "runs", env="AnalyticIslands-v0")
    message = fails(capsys, "runs")
    assert "the runs are of 2 environments (AnalyticBandit1-v0, AnalyticIslands-v0)" in message
    assert "--by env.id" in message
    assert main(["compare", "runs", "--by", "env.id"]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if ", cost limit 25" in line]
    assert titles == [
        "AnalyticBandit1-v0, cost limit 25; baseline: multiplier=fixed",
        "AnalyticIslands-v0, cost limit 25; baseline: multiplier=fixed",
        "all environments, cost limit 25; baseline: multiplier=fixed",
    ]


def test_environments_are_the_strata_of_what_has_a_common_scale(tmp_path: Path) -> None:
    write_two_groups(tmp_path)
    write_two_groups(tmp_path, env="AnalyticIslands-v0")
    *_, everywhere = comparisons_of(tmp_path, by=("env.id",))
    row = everywhere.rows[1]
    costs = np.array(COSTS["scalar_dual"]) / 25.0
    assert row.values["normalised_cost"] == bootstrap_interval([costs, costs], bounds=(0, np.inf))
    assert row.values["p_safe"].estimate == pytest.approx(0.8)
    assert np.isnan(row.values["return"]).all()
    assert row.values["p_better"].estimate == 1.0


def test_environments_count_alike_however_many_runs_they_have(tmp_path: Path) -> None:
    for env, cost, runs in ((ENV, 0.0, 10), ("AnalyticIslands-v0", 99.0, 2)):
        for seed in range(runs):
            evaluations = [(0, 0.0, 0.0), (1000, 1.0, cost)]
            settings = {"env.id": env, "seed": seed}
            write_run(tmp_path / f"{env}_{seed}", evaluations=evaluations, **settings)
    *_, everywhere = comparisons_of(tmp_path, by=("env.id",))
    (row,) = everywhere.rows
    assert row.values["p_safe"].estimate == 0.5
    assert row.values["p_safe"].low < 0.4


# ---- what is compared ----


def test_quantities_of_groups_with_known_numbers(tmp_path: Path) -> None:
    (comparison,) = comparisons_of(write_two_groups(tmp_path))
    fixed, dual = comparison.rows
    assert comparison.baseline == fixed.group.label == "multiplier=fixed"
    # sorted 10 .. 50, weights .3 .4 .3 on the middle three
    assert dual.values["return"].estimate == pytest.approx(30.0)
    assert dual.values["cost"].estimate == pytest.approx(0.3 * 20 + 0.4 * 24 + 0.3 * 25)
    assert dual.values["p_safe"].estimate == 0.8
    assert dual.values["return_given_safe"].estimate == pytest.approx((10 + 20 + 30 + 50) / 4)
    assert dual.values["training_violations"].estimate == 0.5
    assert dual.values["excess_cost"].estimate == 5.0
    assert dual.values["first_safe_step"].estimate == 1000.0
    assert dual.values["return_area"].estimate == pytest.approx(15.0)
    assert fixed.values["p_safe"].estimate == 0.0
    assert np.isnan(fixed.values["return_given_safe"].estimate)
    assert np.isinf(fixed.values["first_safe_step"].estimate)
    assert np.isnan(fixed.values["p_better"].estimate)
    # the unsafe run of the other group exceeds the limit by 1, those of the baseline by 5
    assert dual.values["p_better"].estimate == 1.0


def test_a_baseline_that_an_environment_lacks_is_replaced_by_no_other(tmp_path: Path) -> None:
    write_two_groups(tmp_path)
    for kind in ("scalar_dual", "scalar_pid"):
        for seed in range(2):
            settings = {"multiplier.kind": kind, "env.id": "Other-v0", "seed": seed}
            evaluations = [(0, 0.0, 0.0), (9, 1.0, 1.0)]
            write_run(tmp_path / f"other_{kind}_{seed}", evaluations=evaluations, **settings)
    runs = usable_runs(read_runs([tmp_path]).runs).runs
    groups = group_runs(runs, by=("env.id",))
    comparisons = {one.env_id: one for one in compare(groups, baseline="multiplier=fixed")}
    for row in comparisons["Other-v0"].rows:
        assert np.isnan(row.values["p_better"].estimate)
    (everywhere,) = comparisons[ALL_ENVIRONMENTS].rows
    assert np.isnan(everywhere.values["p_better"].estimate)
    assert "; baseline: multiplier=fixed" in terminal_table(comparisons[ENV]).splitlines()[0]
    title = terminal_table(comparisons["Other-v0"]).splitlines()[0]
    assert title.endswith("; baseline: multiplier=fixed (no run of it here)")


def test_a_link_to_a_run_is_followed_and_a_run_is_read_once(tmp_path: Path) -> None:
    points = [(0, 0.0, 0.0)]
    write_run(tmp_path / "elsewhere" / "far", evaluations=points, seed=1)
    write_run(tmp_path / "runs" / "near", evaluations=points, seed=2)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "far")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "near")
    (tmp_path / "runs" / "round").symlink_to(tmp_path / "runs")
    assert sorted(run.seed for run in read_runs([tmp_path / "runs"]).runs) == [1, 2]


def test_a_run_given_twice_under_two_names_counts_once(tmp_path: Path) -> None:
    write_two_groups(tmp_path)
    shutil.copytree(tmp_path / f"{ENV}_fixed_0", tmp_path / "copy")
    usable = usable_runs(read_runs([tmp_path]).runs)
    assert len(usable.runs) == 10
    assert usable.notes == [f"skipped copy: repeats {ENV}_fixed_0, same configuration and seed"]


def test_unfinished_runs_and_runs_without_evaluations_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "short", evaluations=[(0, 1.0, 1.0)], train__total_steps=1000)
    write_run(tmp_path / "odd", evaluations=[(0, float("nan"), 1.0)], seed=1)
    silent = write_run(tmp_path / "silent", seed=2)
    (silent / "metrics.csv").write_text("env_step,loss/policy\n0,1.0\n")
    usable = usable_runs(read_runs([tmp_path]).runs)
    assert [run.name for run in usable.runs] == ["short"]
    assert usable.notes == [
        "skipped odd: eval/return is not finite at some step",
        "skipped silent: logs no eval/cost yet",
        "note: short is unfinished: its last evaluation is of step 0 of 1000",
    ]


def test_curves_are_compared_up_to_the_end_of_the_shortest() -> None:
    first = Series(np.array([0, 10, 20]), np.array([0.0, 1.0, 2.0]))
    second = Series(np.array([0, 15]), np.array([0.0, 3.0]))
    steps, values = on_common_steps([first, second])
    assert steps.tolist() == [0, 10, 15]
    assert values == pytest.approx(np.array([[0.0, 1.0, 1.5], [0.0, 2.0, 3.0]]))


def test_a_run_that_crashed_does_not_cut_the_curve_of_the_others() -> None:
    whole = [Series(np.array([0, 10, 20]), np.array([0.0, k, k])) for k in (1.0, 2.0)]
    crashed = Series(np.array([0]), np.array([9.0]))
    steps, values = on_common_steps([whole[0], crashed, whole[1]])
    assert steps.tolist() == [0, 10, 20]
    assert values.tolist() == [[0.0, 1.0, 1.0], [0.0, 2.0, 2.0]]


def test_pareto_front_holds_what_no_other_point_beats() -> None:
    costs = np.array([10.0, 5.0, 5.0, 20.0, 30.0, 1.0])
    returns = np.array([4.0, 2.0, 3.0, 4.0, 9.0, -1.0])
    assert pareto_front(costs, returns).tolist() == [5, 2, 0, 4]


# ---- the command ----


def test_compare_prints_one_row_per_group_and_writes_tables_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_groups(tmp_path / "runs")
    assert main(["compare", "runs", "--out", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{ENV}, cost limit 25; baseline: multiplier=fixed"
    assert lines[2].split()[:3] == ["multiplier=fixed", "5", "3.00"]
    assert lines[3].split()[:3] == ["multiplier=scalar_dual", "5", "30.00"]
    rows = list(csv.DictReader(io.StringIO(Path("out/comparison.csv").read_text())))
    assert [row["group"] for row in rows] == ["multiplier=fixed", "multiplier=scalar_dual"]
    assert float(rows[1]["return"]) == pytest.approx(30.0)
    assert rows[1]["seeds"] == "0 1 2 3 4"
    assert rows[0]["return_given_safe"] == ""
    runs = list(csv.DictReader(io.StringIO(Path("out/runs.csv").read_text())))
    assert len(runs) == 10
    assert {row["multiplier.kind"] for row in runs} == {"fixed", "scalar_dual"}
    for name in ("curves", "plane", "ablation"):
        assert Path(f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert Path(f"out/{name}.pdf").read_bytes().startswith(b"%PDF")


def test_of_another_score_none_is_called_better(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_two_groups(tmp_path / "runs")
    assert main(["compare", "runs", "--metric", "eval/violation_rate", "-o", "out"]) == 0
    text = capsys.readouterr().out
    assert "eval/violation_rate|safe: mean eval/violation_rate of the runs in the limit" in text
    for word in ("P(better)", "baseline", " return"):
        assert word not in text
    (row, *_) = csv.DictReader(io.StringIO(Path("out/comparison.csv").read_text()))
    assert row["p_better"] == ""
    latex = Path("out/comparison.tex").read_text()
    assert r"eval/violation\_rate given safe" in latex
    assert "better" not in latex


def test_cut_labels_in_figures_stay_apart_and_unknown_intervals_have_no_whiskers(
    tmp_path: Path,
) -> None:
    for k, title in enumerate(("a" * 90 + "1", "a" * 90 + "2")):
        write_run(tmp_path / str(k), env__kwargs__title=title)
    (comparison,) = comparisons_of(tmp_path)
    figure = ablation_figure(comparison)
    first, second = (tick.get_text() for tick in figure.axes[0].get_yticklabels())
    assert (first[:4], second[:4]) == ("(1) ", "(2) ")
    assert first.endswith("... (n = 1) (baseline)")
    assert second.endswith("... (n = 1)")
    for axes in figure.axes:  # of one run there is no interval
        (whiskers,) = (one for one in axes.containers if isinstance(one, ErrorbarContainer))
        for cap in whiskers.lines[1]:
            assert np.isnan(np.asarray(cap.get_xdata(), float)).all()
    assert write_figures([comparison], tmp_path)


def test_equal_runs_give_equal_tables(tmp_path: Path) -> None:
    comparisons = [comparisons_of(write_two_groups(tmp_path / name)) for name in ("one", "two")]
    for table in (csv_table, latex_table, runs_table):
        first, second = map(table, comparisons)
        assert first == second


def test_latex_escapes_what_the_labels_hold(tmp_path: Path) -> None:
    write_run(tmp_path / "a", env__kwargs__title="50 % & {x}_$")
    write_run(tmp_path / "b", env__kwargs__title="~^\\")
    table = latex_table(comparisons_of(tmp_path))
    assert r"title=50 \% \& \{x\}\_\$" in table
    assert r"title=\textasciitilde{}\textasciicircum{}\textbackslash{}" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "absent does not exist; expected the directory of a run"),
        (["empty"], "no run; skipped empty: holds no run"),
        (["runs", "--by", "multiplier.knd"], "multiplier.knd'; did you mean multiplier.kind"),
        (["runs", "--baseline", "x"], "no group is called 'x'; the groups are: multiplier=fixed"),
        (["runs", "--metric", "eval/retrun"], "no run logs the metric 'eval/retrun'; did you mean"),
        (["runs", "--out", "file"], "file is not a directory"),
        ([], "the following arguments are required: RUNS"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    write_two_groups(tmp_path / "runs")
    assert message in fails(capsys, *arguments)


def test_without_matplotlib_the_tables_are_written_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_groups(tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "figures need matplotlib: pip install 'matplotlib>=3.9'" in fails(
        capsys, "runs", "--out", "out"
    )
    assert Path("out/comparison.csv").is_file()


def test_reading_and_comparing_import_no_torch(tmp_path: Path) -> None:
    write_two_groups(tmp_path / "runs")
    program = (
        "import sys; from algd.experiments.verbs.compare import run; run(['runs']); "
        "assert not {'torch', 'matplotlib', 'wandb'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )


def test_a_set_of_runs_may_be_empty(tmp_path: Path) -> None:
    assert read_runs([]) == RunSet([], [])
    (tmp_path / "nothing").mkdir()
    assert read_runs([tmp_path / "nothing"]).runs == []
