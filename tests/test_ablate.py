"""Ablations: grids, intervals, verdicts, resuming, and one tiny grid end to end."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest

from alam.multiplier_config import StatewiseALaMConfig
from algd.errors import ConfigError
from algd.experiments.ablation import ablate
from algd.experiments.ablation_axes import AXES
from algd.experiments.ablation_cells import CellResult, run_cells
from algd.experiments.ablation_plan import TASKS, Axis, Cell, Task, Variant, find_task, plan_cells
from algd.experiments.ablation_table import markdown, tabulate, write_csv
from algd.experiments.cli import main
from algd.experiments.config import dump_yaml, load_config

TINY = {
    "train.total_steps": 120,
    "train.learning_starts": 40,
    "train.batch_size": 16,
    "train.log_interval": 8,
    "critics.hidden": [8],
    "policy.hidden": [8],
    "policy.schedule.num_train_timesteps": 2,
    "evaluation.episodes": 1,
}
PAIR = Axis(
    "pair", "Off or on?", "algd", ("one",), (Variant("off"), Variant("on", position=1.0)), "off", 2
)


def result(variant: str, seed: int, measures: dict[str, float], task: str = "one") -> CellResult:
    cell = Cell(Task(task), Variant(variant), seed, Path(task, variant, str(seed)), "algd", {})
    return CellResult(cell, measures)


def test_differences_are_paired_by_seed_and_judged_by_direction() -> None:
    # Seeds differ by far more than the variants do: only the pairing can tell them apart.
    results = []
    for seed in range(4):
        base = 10.0 * seed
        results.append(result("off", seed, {"excess": base, "return": base}))
        gain = 1.0 + 0.01 * seed
        results.append(result("on", seed, {"excess": base - gain, "return": base - gain}))
    rows = {(row.variant, row.measure.name): row for row in tabulate(PAIR, results)}
    assert rows["off", "excess"].verdict == "reference"
    assert rows["on", "excess"].verdict == "better"  # less excess cost
    assert rows["on", "return"].verdict == "worse"  # less return
    assert rows["on", "excess"].difference.estimate == pytest.approx(-1.015)
    assert rows["on", "excess"].value.high > 30.0
    assert rows["on", "excess"].value.low == 0.0  # no excess is negative
    assert rows["on", "return"].value.low < 0.0
    assert rows["on", "return"].ratio == pytest.approx((15.0 - 1.015) / 15.0)
    assert rows["off", "return"].ratio == 1.0


def test_overlapping_and_single_seeds_decide_nothing() -> None:
    noisy = [result("off", 0, {"cost_tv": 1.0}), result("off", 1, {"cost_tv": 2.0})]
    noisy += [result("on", 0, {"cost_tv": 2.0}), result("on", 1, {"cost_tv": 1.5})]
    assert tabulate(PAIR, noisy)[1].verdict == "no difference"
    assert tabulate(PAIR, [noisy[0], noisy[2]])[1].verdict == "unknown"


def test_the_markdown_names_every_claim_and_its_winners() -> None:
    results = [result("off", k, {"curvature": -1.0 + 0.01 * k}) for k in range(3)]
    results += [result("on", k, {"curvature": 1.0 + 0.02 * k}) for k in range(3)]
    text = markdown(PAIR, tabulate(PAIR, results))
    assert "better conditioned than off" in text
    assert "better: on (+2 [" in text
    assert "Claim: violates less than off\n  - not measured on these tasks" in text


def test_what_failed_is_told_where_the_means_are() -> None:
    results = [result("off", k, {"cost": 1.0 + k}) for k in range(3)]
    results.append(result("on", 0, {"cost": 2.0}))
    failed = [replace(result("on", k, {}), error="diverged") for k in (1, 2)]
    failed.append(replace(result("on", 0, {}, task="two"), error="diverged, too"))
    results.append(result("off", 0, {"cost": 4.0}, task="two"))
    text = markdown(PAIR, tabulate(PAIR, [*results, *failed]), failed)
    assert re.search(r"\| cost \(per episode\) \| 2 \[0, .*\] \| 2 \(n = 1\) \|", text)
    assert "- one, on, seed 2: diverged\n" in text
    assert "| measure | off | on |\n|---|---|---|\n| cost (per episode) | 4 |  |" in text


def test_shares_of_seeds_that_agree_have_wilsons_interval() -> None:
    (row,) = tabulate(PAIR, [result("off", k, {"violations": 0.0}) for k in range(3)])
    assert row.value[:2] == (0.0, 0.0)
    assert row.value.high > 0.5
    (row,) = tabulate(PAIR, [result("off", k, {"auroc": 0.5}) for k in range(3)])
    assert math.isnan(row.value.low)


def test_the_csv_reads_back(tmp_path: Path) -> None:
    measured = [{"cost": 1.5 + k, "violations": 0.25 + 0.5 * k} for k in range(2)]
    rows = tabulate(PAIR, [result("off", k, values) for k, values in enumerate(measured)])
    write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as stream:
        lines = {line["measure"]: line for line in csv.DictReader(stream)}
    assert {name: float(line["mean"]) for name, line in lines.items()} == {
        "cost": 2.0,
        "violations": 0.5,
    }
    for row in rows:
        line = lines[row.measure.name]
        assert (line["task"], line["variant"]) == ("one", "off")
        assert (float(line["low"]), float(line["high"])) == (row.value.low, row.value.high)


@pytest.mark.parametrize("name", AXES)
def test_every_cell_of_every_axis_is_a_valid_configuration(name: str, tmp_path: Path) -> None:
    axis = AXES[name]
    assert axis.reference in {variant.name for variant in axis.variants}
    tasks = [find_task(env) for env in (axis.tasks[-1], "SafetyPointGoal1-v0")]
    cells = plan_cells(axis, tasks, seeds=2, directory=tmp_path)
    left_out = sum(variant.quick_only for variant in axis.variants)
    assert len(cells) == 2 * (len(tasks) * len(axis.variants) - left_out)
    assert len({cell.directory for cell in cells}) == len(cells)
    for cell in cells[: len(cells) // 2]:
        config = load_config(cell.presets, cell.overrides)
        assert config.tracking.wandb == "disabled"
        assert config.seed == 0


def test_axes_hold_the_values_that_were_asked_for() -> None:
    def settings(axis: str, key: str) -> list[object]:
        return [variant.overrides.get(key) for variant in AXES[axis].variants]

    assert settings("convexification", "constraint.penalty_coef") == [None, 0.1, 0.5, 1, 2, 4]
    assert settings("rho", "constraint.penalty_coef") == [0.1, 0.5, 1, 2, 4]
    assert settings("lag", "multiplier.dual_target_interval") == [None, 1, 10, 100, 1000]
    steps = settings("steps", "policy.schedule.num_train_timesteps")
    assert steps == [1, 2, 5, 10, 20, None]
    assert settings("estimator", "policy.num_score_samples") == [2, 4, 8, 16, 32, 64] * 3


def test_convexification_leaves_the_dual_target_alone() -> None:
    keys = {
        json.dumps(variant.overrides["multiplier.penalty_coef"])
        for variant in AXES["convexification"].variants
    }
    assert keys == {"1.0"}


def test_an_environment_keeps_the_sizes_of_its_preset(tmp_path: Path) -> None:
    task = find_task("SafetyPointGoal1-v0")
    cell = plan_cells(AXES["lag"], [task], seeds=1, directory=tmp_path)[1]
    preset = load_config(["sac_alam"])
    config = load_config(cell.presets, cell.overrides)
    assert config.critics == preset.critics
    assert config.train == preset.train
    # The lag aside, nothing but the preset's own network.
    assert isinstance(config.multiplier, StatewiseALaMConfig)
    assert config.multiplier == StatewiseALaMConfig(dual_target_interval=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rho", "--env", "nosuchtask"], r"--env must name a task \(bandit, .*'nosuchtask' is not"),
        (["lag", "--env", "energy1"], r"energy1 needs a denoising policy .*got gaussian"),
        (["rho", "--env", "bandit", "--nokey.foo=3"], "nokey is not a key"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid"
    assert main(["ablate", *arguments, "--dir", str(grid), "--jobs", "1"]) == 2
    told = capsys.readouterr()
    assert re.search(message, told.err)
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not grid.exists()


def test_a_file_where_the_grid_should_lie_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert main(["ablate", "rho", "--env", "bandit", "--dir", str(taken), "--jobs", "1"]) == 2
    assert f"{taken} is not a directory" in capsys.readouterr().err
    assert taken.read_text() == "mine"


def test_presets_and_files_lie_over_one_another_in_their_order(tmp_path: Path) -> None:
    wide, narrow = tmp_path / "wide.yaml", tmp_path / "narrow.yaml"
    wide.write_text("critics: {hidden: [48]}\ntrain: {batch_size: 77}\n")
    narrow.write_text("critics: {hidden: [12]}\n")
    cell = plan_cells(
        AXES["rho"],
        [find_task("SafetyPointGoal1-v0")],
        seeds=1,
        directory=tmp_path,
        presets=[str(wide), str(narrow), "sac_alam"],
    )[0]
    config = load_config(cell.presets, cell.overrides)
    assert config.policy.kind == "gaussian"
    assert config.critics.hidden == (12,)
    assert config.train.batch_size == 77
    assert config.constraint.penalty_coef == 0.1


def test_a_grid_runs_once_and_ends_in_table_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axis = AXES["convexification"]
    monkeypatch.setitem(AXES, "two", replace(axis, name="two"))

    def run(*variants: str) -> list[str]:
        lines: list[str] = []
        results = ablate(
            "two",
            tmp_path,
            envs=["bandit", "bandit"],
            variants=variants,
            seeds=1,
            overrides=TINY | {"multiplier.hidden": [8]},
            say=lines.append,
        )
        assert not [found.error for found in results if found.error]
        return lines

    run("off")
    run("rho 0.1")  # the table holds what an earlier part of the grid has found
    files = sorted(tmp_path.glob("cells/bandit/*/seed_0/measures.json"))
    assert len(files) == 2
    times = [path.stat().st_mtime_ns for path in files]
    text = (tmp_path / "table.md").read_text()
    assert text.count("| smallest Hessian eigenvalue") == 1
    assert "| measure | off | rho 0.1 |" in text
    assert len(list(tmp_path.glob("two_*.png"))) == 4
    again = run("off", "rho 0.1")
    assert any(line == "2 of 2 cells are finished already" for line in again)
    assert [path.stat().st_mtime_ns for path in files] == times
    measures = json.loads(files[0].read_text())["measures"]
    assert {"curvature", "tv_exact", "multiplier_l1", "multiplier_tv", "excess"} <= set(measures)


def test_an_unfinished_run_is_resumed(tmp_path: Path) -> None:
    cell = plan_cells(
        AXES["convexification"],
        [TASKS["bandit"]],
        seeds=1,
        directory=tmp_path,
        overrides=TINY | {"multiplier.hidden": [8]},
    )[0]
    (first,) = run_cells([cell], jobs=1, updates=1, say=lambda _: None)
    (cell.directory / "measures.json").unlink()
    (again,) = run_cells([cell], jobs=1, updates=1, say=lambda _: None)
    assert again.error == ""
    assert "cpu_seconds" not in again.measures
    assert {**first.measures, "cpu_seconds": 0.0} == {**again.measures, "cpu_seconds": 0.0}


def test_islands_are_counted(tmp_path: Path) -> None:
    cells = plan_cells(
        AXES["convexification"],
        [TASKS["islands"]],
        seeds=1,
        directory=tmp_path,
        overrides=TINY | {"multiplier.hidden": [8]},
    )[:1]
    (found,) = run_cells(cells, jobs=1, updates=1, say=lambda _: None)
    assert found.error == ""
    for name in ("both_islands", "infeasible", "convex", "tv_exact"):
        assert 0.0 <= found.measures[name] <= 1.0


def test_a_corridor_is_held_against_the_safe_optimum(tmp_path: Path) -> None:
    cells = plan_cells(
        AXES["multiplier"],
        [TASKS["corridor"]],
        seeds=1,
        directory=tmp_path,
        presets=["algd"],
        overrides=TINY,
    )[:1]
    (found,) = run_cells(cells, jobs=1, updates=1, say=lambda _: None)
    assert found.error == ""
    # The untrained policy knows nothing of the obstacle.
    assert found.measures["mode_violations"] > 0.5
    # 37.3 without the constraint, 28.7 with it.
    assert found.measures["mode_of_optimum"] < 1.31
    # The optimum crosses to the other side from 88 % of the starts; who does not steer seldom does.
    assert 0.0 < found.measures["best_passage"] < 0.6


@pytest.mark.parametrize(("preset", "kind"), [("sac_alam", "gaussian"), ("algd", "diffusion")])
def test_either_policy_goes_through_the_same_grid(preset: str, kind: str, tmp_path: Path) -> None:
    (cell, *_) = plan_cells(
        AXES["multiplier"], [TASKS["finite"]], seeds=1, directory=tmp_path, presets=[preset]
    )
    config = load_config(cell.presets, cell.overrides)
    assert config.policy.kind == kind
    assert config.train.total_steps == 512 + 8 * AXES["multiplier"].updates


def test_longer_tasks_take_more_updates(tmp_path: Path) -> None:
    axis = AXES["multiplier"]
    steps = {
        name: plan_cells(axis, [TASKS[name]], seeds=1, directory=tmp_path)[0].overrides
        for name in ("bandit", "corridor")
    }
    updates = {
        name: (found["train.total_steps"] - found["train.learning_starts"])
        * found["train.updates_per_step"]
        for name, found in steps.items()
    }
    assert updates == {"bandit": axis.updates, "corridor": TASKS["corridor"].length * axis.updates}


def test_samplers_are_cells_without_a_run(tmp_path: Path) -> None:
    cells = plan_cells(
        AXES["estimator"],
        [TASKS["energy1"]],
        seeds=1,
        directory=tmp_path,
        overrides={"policy.hidden": [8], "policy.schedule.num_train_timesteps": 2},
    )[:1]
    (found,) = run_cells(cells, jobs=1, updates=3, say=lambda _: None)
    assert found.error == ""
    assert 0.0 <= found.measures["tv_exact"] <= 1.0


def test_all_cheap_settings_together_are_those_of_the_preset() -> None:
    (together,) = (v for v in AXES["economy"].variants if v.name == "all (algd_fast)")
    assert load_config(["algd"], together.overrides) == load_config(["algd_fast"])


def test_cells_of_other_settings_are_refused(tmp_path: Path) -> None:
    def cells(width: int) -> list[Cell]:
        return plan_cells(
            AXES["estimator"],
            [TASKS["energy1"]],
            seeds=1,
            directory=tmp_path,
            overrides={"policy.hidden": [width], "policy.schedule.num_train_timesteps": 2},
        )[:1]

    run_cells(cells(8), jobs=1, updates=1, say=lambda _: None)
    with pytest.raises(
        ConfigError, match=r"other settings: policy.hidden was \[8\], now it is \[9\]"
    ):
        run_cells(cells(9), jobs=1, updates=1, say=lambda _: None)


def test_a_part_may_be_run_with_what_another_variant_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axis = AXES["estimator"]
    monkeypatch.setitem(AXES, "brief", replace(axis, name="brief", updates=1))
    changed = {"policy.hidden": [8], "policy.schedule.num_train_timesteps": 2}
    plain, other = (v.name for v in axis.variants[:2])
    variants = (Variant(plain), Variant(other, {"policy.hidden": [9]}))
    monkeypatch.setitem(AXES, "brief", replace(AXES["brief"], variants=variants, reference=plain))
    (result,) = ablate(
        "brief",
        tmp_path,
        envs=["energy1"],
        variants=[plain],
        seeds=1,
        overrides=changed,
        say=lambda _: None,
    )
    assert result.error == ""
    assert plain in (tmp_path / "table.md").read_text()


def test_an_unfinished_cell_of_other_settings_is_refused(tmp_path: Path) -> None:
    def cells(limit: float) -> list[Cell]:
        return plan_cells(
            AXES["rho"],
            [TASKS["bandit"]],
            seeds=1,
            directory=tmp_path,
            overrides={"constraint.cost_limit": limit},
        )[:1]

    (cell,) = cells(0.5)
    cell.directory.mkdir(parents=True)
    text = dump_yaml(load_config(cell.presets, cell.overrides))
    (cell.directory / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run with constraint.cost_limit 0.5, now it is 0.05"):
        run_cells(cells(0.05), jobs=1, updates=1, say=lambda _: None)


def test_cells_whose_process_was_killed_are_run_again_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan_cells(AXES["rho"], [TASKS["bandit"]], seeds=3, directory=tmp_path)[:3]
    rounds: list[int] = []

    def pooled(waiting: Sequence[Cell], *_: object) -> Iterator[CellResult]:
        rounds.append(len(waiting))
        if len(rounds) == 1:  # one finishes, then a process dies
            yield CellResult(waiting[0], {"cost": 1.0})
        raise BrokenProcessPool

    monkeypatch.setattr("algd.experiments.ablation_cells._pooled", pooled)
    results = run_cells(cells, jobs=2, updates=1, say=lambda _: None)
    assert rounds == [3, 2, 2]
    assert [result.measures for result in results] == [{"cost": 1.0}, {}, {}]
    assert all("its process was killed" in result.error for result in results[1:])


def test_a_cell_that_cannot_run_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    cells = plan_cells(
        AXES["convexification"],
        [Task("NoSuch-v0", {"env.id": "NoSuch-v0"})],
        seeds=1,
        directory=tmp_path,
    )[:2]
    found = run_cells(cells, jobs=1, updates=1, say=lambda _: None)
    assert all("NoSuch-v0" in each.error for each in found)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["rho", "--seeds", "0"], "seeds"),
        (["rho", "--dirr=x"], "--dir"),
        (["rho", "--variant=rho 3"], "rho 3"),
        (["rho", "--constraint.penalty_coef=3"], "the axis rho sets it itself"),
        (["rho", "--env.id=AnalyticFinite-v0"], "use --env"),
        (["rho", "--seed=3"], "--seeds"),
        (["estimator", "--env=energy1", "--train.batch_size=7"], "energy1, which train no agent"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
