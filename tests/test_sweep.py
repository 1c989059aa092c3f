"""Sweeps: nothing is lost, repeated or hidden, however they are interrupted."""

import csv
import math
import shutil
import signal
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from sweep_files import (
    finish,
    half_done,
    kill_all,
    plan_of,
    start,
    undisturbed_table,
    wait_until,
    write_sweep,
)

from algd.experiments import sweep_engine
from algd.experiments.cli import main
from algd.experiments.config import dump_yaml
from algd.experiments.sweep_child import TRIAL_FILE
from algd.experiments.sweep_engine import Ended, LocalEngine, TrialProcess, exit_reason, log_path
from algd.experiments.sweep_plan import SweepPlan, Trial
from algd.experiments.sweep_progress import SweepProgress, recorded_step
from algd.experiments.sweep_runner import run_trials
from algd.experiments.sweep_table import make_table
from algd.training.run_lock import RunLock
from algd.training.trainer import train

TWO_BY_TWO = {
    "constraint.penalty_coef": {"values": [0.1, 1.0]},
    "train.updates_per_step": {"values": [0.5, 1.0]},
    "seed": {"values": [0, 1, 2]},
}


def pretend(trial: Trial, *, returns: float, cost: float = 0.25, step: int | None = None) -> None:
    """Write the run directory of a complete trial."""
    trial.run_dir.mkdir(parents=True)
    (trial.run_dir / "config.yaml").write_text(dump_yaml(trial.config))
    last = trial.config.train.total_steps if step is None else step
    (trial.run_dir / "metrics.csv").write_text(
        f"env_step,eval/return,eval/cost\n0,-9.0,9.0\n{last},{returns},{cost}\n"
    )
    (trial.run_dir / TRIAL_FILE).write_text("{}")


def table_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(path.read_text())))


def small_plan(directory: Path, seeds: Sequence[int] = (0, 1, 2)) -> SweepPlan:
    parameters = {
        "constraint.penalty_coef": {"values": [0.1, 1.0]},
        "seed": {"values": list(seeds)},
    }
    path = write_sweep(directory, total_steps=100, parameters=parameters)
    return plan_of(path, directory / "out")


# ---- whole sweeps in their own processes


@pytest.mark.usefixtures("no_shape_checks")
def test_a_sweep_of_more_steps_trains_on_what_it_has(tmp_path: Path) -> None:
    parameters = {"seed": {"values": [0]}}
    short = write_sweep(tmp_path, total_steps=200, parameters=parameters)
    (first,) = plan_of(short, tmp_path / "out").trials
    train(first.config, first.run_dir)
    (first.run_dir / TRIAL_FILE).write_text('{"total_steps": 200}')
    assert first.is_complete
    path = write_sweep(tmp_path, total_steps=400, parameters=parameters)
    (longer,) = plan_of(path, tmp_path / "out").trials
    assert longer.run_dir == first.run_dir
    assert not longer.is_complete
    code, out, told = finish(start(path, tmp_path / "out"))
    assert code == 0, told
    assert "1/1" in out
    assert longer.is_complete
    train(longer.config, tmp_path / "whole")
    expected = (tmp_path / "whole" / "metrics.csv").read_bytes()
    assert (first.run_dir / "metrics.csv").read_bytes() == expected


@pytest.mark.timeout(600)
def test_a_sweep_killed_twice_gives_the_runs_of_undisturbed_training(tmp_path: Path) -> None:
    """Once with every process at the same time, once the sweep alone, whose trials then stop."""
    parameters = {"constraint.penalty_coef": {"values": [0.1, 1.0]}, "seed": {"value": 3}}
    path = write_sweep(tmp_path, total_steps=600, parameters=parameters)
    out = tmp_path / "out"
    first = start(path, out, "--jobs", "1")
    wait_until(lambda: bool(half_done(out)), first)
    kill_all(first, out)
    assert len(half_done(out)) == 1
    stopped_at = recorded_step(half_done(out)[0])
    second = start(path, out, "--jobs", "1")
    wait_until(lambda: any(recorded_step(run) > stopped_at for run in half_done(out)), second)
    second.kill()
    second.communicate()
    code, printed, told = finish(start(path, out))
    assert (code, "0:00 left" in told) == (0, True), told
    plan = plan_of(path, out)
    for trial in plan.trials:
        undisturbed = tmp_path / "undisturbed" / trial.name
        train(trial.config, undisturbed)
        for name in ("metrics.csv", "episodes.csv"):
            assert (trial.run_dir / name).read_bytes() == (undisturbed / name).read_bytes()
        assert trial.is_complete
    assert "checkpoint written" in "".join(log_path(trial).read_text() for trial in plan.trials)
    assert printed == f"{make_table(plan).text()}\ntable: {out / 'table.csv'}\n"


def test_a_trial_that_fails_is_tried_again_reported_and_left_out_of_the_table(
    tmp_path: Path,
) -> None:
    parameters = {
        "train.reward_scale": {"values": [1.0, 1e38]},  # the squares of the latter are infinite
        "seed": {"value": 0},
    }
    path = write_sweep(tmp_path, total_steps=60, parameters=parameters)
    code, printed, told = finish(start(path, tmp_path / "out"))
    good, bad = plan_of(path, tmp_path / "out").trials
    assert code == 1
    assert f"{bad.name}: exit code 2; continuing it" in told
    (line,) = [line for line in told.splitlines() if line.startswith("algd: ")]
    assert line.startswith(f"algd: failed: {bad.name} (exit code 2, 2 attempts): algd: error: ")
    assert "loss/reward_critic" in line
    assert line.endswith(f"; log: {log_path(bad)}")
    assert log_path(bad).read_text().count("algd: error: ") == 2
    rows = {row["train.reward_scale"]: row for row in table_rows(tmp_path / "out" / "table.csv")}
    assert rows["1.0"]["complete"] == "1"
    assert float(rows["1.0"]["eval/return"]) < 0
    assert (rows["1e+38"]["complete"], rows["1e+38"]["eval/return"]) == ("0", "")
    assert good.name in told
    assert "0/1" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_twelve_trials_killed_twice_gives_the_same_table(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, total_steps=600, parameters=TWO_BY_TWO)
    out = tmp_path / "out"
    for already_complete in (1, 5):
        process = start(path, out)
        wait_until(
            lambda n=already_complete: (
                len(list(out.glob(f"*/{TRIAL_FILE}"))) >= n and bool(half_done(out))
            ),
            process,
        )
        kill_all(process, out)
    code, _, told = finish(start(path, out), seconds=1200)
    assert code == 0
    assert "of them complete already" in told
    assert (out / "table.csv").read_bytes() == undisturbed_table(path, tmp_path / "whole")
    rows = table_rows(out / "table.csv")
    assert [row["complete"] for row in rows] == ["3"] * 4
    assert len({row["eval/return"] for row in rows}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_every_trial_with_a_checkpoint(
    tmp_path: Path, number: int, exit_code: int
) -> None:
    path = write_sweep(tmp_path, total_steps=20_000, parameters={"seed": {"values": [0, 1]}})
    out = tmp_path / "out"
    process = start(path, out, "--jobs", "2")
    wait_until(lambda: len(half_done(out)) == 2, process)
    process.send_signal(number)
    code, printed, told = finish(process)
    assert (code, printed) == (exit_code, "")
    assert "algd: stopped with 0 of 2 trials complete, checkpoints written" in told
    for trial in plan_of(path, out).trials:
        newest = max((trial.run_dir / "checkpoints").glob("step_*"))
        assert int(newest.name.removeprefix("step_")) >= recorded_step(trial.run_dir) > 0
        assert "checkpoint written" in log_path(trial).read_text()


# ---- the table


def test_the_table_holds_the_last_evaluation_and_counts_what_is_missing(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    values = {0: (-1.0, -2.0, -3.0), 1: (-0.5, -0.7)}
    for trial in plan.trials:
        if trial.seed < len(values[trial.setting]):
            pretend(trial, returns=values[trial.setting][trial.seed])
    table = make_table(plan)
    first, second = table.rows
    assert (first.complete, first.seeds, second.complete, second.seeds) == (3, 3, 2, 3)
    assert first.estimates["eval/return"] == pytest.approx((-2.0, -4.4841, 0.4841), abs=1e-4)
    assert second.estimates["eval/return"].estimate == pytest.approx(-0.6)
    assert table.best() is second
    table.write_csv(tmp_path / "table.csv")
    rows = table_rows(tmp_path / "table.csv")
    assert [row["constraint.penalty_coef"] for row in rows] == ["0.1", "1.0"]
    assert float(rows[0]["eval/return/low"]) == first.estimates["eval/return"].low
    assert rows[0]["eval/violation_rate"] == ""
    assert [line[0] for line in table.text().splitlines()] == [" ", " ", "*"]


def test_no_interval_of_costs_reaches_below_0_and_one_seed_has_none(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    for trial in plan.trials:
        if trial.setting == 0 or trial.seed == 0:
            pretend(trial, returns=3.0, cost=10.0 * trial.seed)
    first, single = make_table(plan).rows
    assert first.estimates["eval/cost"] == pytest.approx((10.0, 0.0, 34.8414), abs=1e-4)
    estimate, low, high = single.estimates["eval/return"]
    assert (estimate, math.isnan(low), math.isnan(high)) == (3.0, True, True)


def test_an_unreadable_run_is_named_and_fails_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, seeds=[0])
    for trial in plan.trials:
        pretend(trial, returns=-1.0)
    (plan.trials[1].run_dir / "metrics.csv").write_text("env_step,eval/return\n0,abc\n")
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert f"algd: skipped {plan.trials[1].run_dir}: metrics.csv: eval/return: could not" in told
    assert [row.complete for row in make_table(plan).rows] == [1, 0]


def test_a_part_of_a_sweep_leaves_the_table_of_the_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path)
    for trial in plan.trials:
        if trial.setting == 1 or trial.seed < 2:
            pretend(trial, returns=-1.0 - trial.seed)
    (other,) = (t for t in plan.trials if (t.setting, t.seed) == (0, 1))
    config = other.run_dir / "config.yaml"
    config.write_text(config.read_text().replace("cost_limit: 0.5", "cost_limit: 0.25"))
    part = ["--only", "constraint.penalty_coef=1.0", "--seeds", "1"]
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out"), *part]) == 0
    rows = table_rows(tmp_path / "out" / "table.csv")
    # One run of the first setting was not started yet, one had another limit.
    assert [(row["constraint.penalty_coef"], row["complete"]) for row in rows] == [
        ("0.1", "1"),
        ("1.0", "3"),
    ]
    assert float(rows[1]["eval/return"]) == -2.0
    assert "0.1" not in capsys.readouterr().out


# ---- bad input


def test_an_environment_that_does_not_exist_stops_a_sweep_before_its_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, total_steps=60, parameters={"seed": {"values": [0, 1]}})
    path.write_text(path.read_text().replace("AnalyticBandit1", "AnalyticBandt1"))
    assert main(["sweep", str(path), "--dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "AnalyticBandt1-v0" in line
    assert not list((tmp_path / "out").glob("s*"))


def test_a_metric_that_no_run_logs_is_one_line_and_the_table_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, seeds=[0])
    for trial in plan.trials:
        pretend(trial, returns=-1.0)
    text = plan.file.path.read_text().replace("eval/return", "evel/return")
    plan.file.path.write_text(text)
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [
        f"algd: error: {plan.file.path}: metric.name 'evel/return' is logged by no run; "
        "did you mean eval/return?"
    ]
    assert (tmp_path / "out" / "table.csv").is_file()


def test_a_misspelt_metric_of_evaluations_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, seeds=[0])
    plan.file.path.write_text(plan.file.path.read_text().replace("eval/return", "eval/retrun"))
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "metric.name 'eval/retrun' is no metric of evaluations; did you mean eval/return" in told
    assert not (tmp_path / "out").exists()


def test_a_directory_made_with_another_configuration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, seeds=[0])
    pretend(plan.trials[0], returns=-1.0)
    path = plan.trials[0].run_dir / "config.yaml"
    path.write_text(path.read_text().replace("batch_size: 16", "batch_size: 32"))
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "was run with train.batch_size 32, now it is 16; move that directory away" in told


def test_runs_of_fewer_steps_are_refused_where_training_depends_on_the_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"train.final_learning_rate": {"values": [0.1]}, "seed": {"values": [0]}}
    for steps in (100, 300):
        path = write_sweep(tmp_path, total_steps=steps, parameters=values)
        for trial in plan_of(path, tmp_path / "out").trials if steps == 100 else ():
            pretend(trial, returns=-1.0)
    assert main(["sweep", str(path), "--dir", str(tmp_path / "out")]) == 2
    assert "was run with train.total_steps 100, now it is 300" in capsys.readouterr().err


def test_a_sweep_does_not_move_into_the_directory_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path)
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    assert main(["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]) == 2
    assert "out is the directory of a run; a sweep needs one of its own" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoints"]


def test_a_second_sweep_in_the_same_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with RunLock(out):
        assert main(["sweep", str(plan.file.path), "--dir", str(out)]) == 2
    assert f"another process is writing in {out} (process " in capsys.readouterr().err


def test_seeds_of_the_command_line_win_over_those_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path, seeds=[0, 1])
    for trial in plan.trials:
        pretend(trial, returns=-1.0)
    arguments = ["sweep", str(plan.file.path), "--dir", str(tmp_path / "out")]
    assert main([*arguments, "--seeds", "1"]) == 0
    assert "2 settings x 1 seed = 2 trials, 2 of them complete" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "2 settings x 2 seeds = 4 trials, 4 of them complete" in capsys.readouterr().err


# ---- retries and losses, with an engine that does as it is told


class ScriptedEngine:
    """Ends every trial as the script says, one exit code per attempt; None is a lost worker."""

    def __init__(self, script: dict[str, list[int | None]], *, slots: int = 2) -> None:
        self.script = {name: list(codes) for name, codes in script.items()}
        self.slots = slots
        self.running: list[Trial] = []
        self.started: list[str] = []

    def describe(self) -> str:
        return "scripted"

    def has_room(self) -> bool:
        return len(self.running) < self.slots

    def start(self, trial: Trial) -> None:
        assert self.has_room()
        self.running.append(trial)
        self.started.append(trial.name)

    def wait(self, seconds: float) -> list[Ended]:
        trial = self.running.pop(0)
        code = self.script[trial.name].pop(0)
        return [Ended(trial, code, "lost" if code is None else exit_reason(code))]

    def stop(self) -> None:
        self.running.clear()


def scripted(
    directory: Path, codes: Sequence[Sequence[int | None]], *, retries: int = 1
) -> tuple[list[str], ScriptedEngine, str]:
    plan = small_plan(directory, seeds=range(len(codes)))
    trials = [trial for trial in plan.trials if trial.setting == 0]
    script = {t.name: list(c) for t, c in zip(trials, codes, strict=True)}
    engine, stream = ScriptedEngine(script), StringIO()
    progress = SweepProgress(trials, complete=set(), stream=stream)
    failures = run_trials(trials, engine, progress, retries=retries)
    assert not any(engine.script.values())  # every attempt was made
    names = {trial.name: f"s{trial.seed}" for trial in trials}
    engine.started = [names[name] for name in engine.started]
    return (
        [f"{names[f.trial.name]} {f.attempts} {f.reason}" for f in failures],
        engine,
        stream.getvalue(),
    )


def test_a_failed_trial_is_started_once_more_after_the_others(tmp_path: Path) -> None:
    failures, engine, told = scripted(tmp_path, [[1, 0], [0], [0]])
    assert failures == []
    assert engine.started == ["s0", "s1", "s2", "s0"]
    assert "exit code 1; continuing it" in told


def test_retries_are_a_setting_and_failures_keep_the_order_of_the_plan(tmp_path: Path) -> None:
    failures, _, told = scripted(tmp_path, [[1, 1, 2], [0], [-9, -9, -9]], retries=2)
    assert failures == ["s0 3 exit code 2", "s2 3 killed by SIGKILL"]
    assert told.count("failed") > 0
    again, _, _ = scripted(tmp_path, [[3]], retries=0)
    assert again == ["s0 1 exit code 3"]


def test_a_lost_worker_is_no_failure_of_the_trial_up_to_a_limit(tmp_path: Path) -> None:
    failures, _, _ = scripted(tmp_path, [[None] * 5 + [1, 0]])
    assert failures == []
    failures, _, _ = scripted(tmp_path, [[None] * 6])
    assert failures == ["s0 6 lost"]


def test_a_failure_tells_what_its_last_attempt_said(tmp_path: Path) -> None:
    (trial,) = (t for t in small_plan(tmp_path, seeds=[0]).trials if t.setting == 0)
    log = log_path(trial)
    log.parent.mkdir(parents=True)
    log.write_text("algd: error: my cost broke\n")  # of an earlier sweep, mended since
    progress = SweepProgress([trial], complete=set(), stream=StringIO())
    (failure,) = run_trials([trial], ScriptedEngine({trial.name: [-9]}), progress, retries=0)
    assert (failure.reason, failure.message) == ("killed by SIGKILL", "")


def test_complete_trials_are_not_started(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, seeds=[0, 1])
    for trial in plan.trials[:3]:
        pretend(trial, returns=0.0)
    engine = ScriptedEngine({plan.trials[3].name: [0]})
    progress = SweepProgress(plan.trials, complete=set(), stream=StringIO())
    assert run_trials(plan.trials, engine, progress, retries=1) == []
    assert engine.started == [plan.trials[3].name]


def test_a_trial_whose_last_word_is_damaged_counts_as_unfinished(tmp_path: Path) -> None:
    (trial,) = small_plan(tmp_path, seeds=[0]).trials[:1]
    pretend(trial, returns=0.0)
    assert trial.is_complete
    (trial.run_dir / TRIAL_FILE).write_bytes(b"\xff{")
    assert not trial.is_complete


# ---- the pool


def test_the_pool_is_as_large_as_cores_and_gpus_carry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = small_plan(tmp_path).trials
    monkeypatch.setattr(sweep_engine, "cores", lambda: 12)
    for gpus, jobs in (([], 12), (["0"], 4), (["0", "1"], 8), (["0", "1", "2", "3"], 12)):
        monkeypatch.setattr(sweep_engine, "gpu_names", lambda gpus=gpus: gpus)
        assert LocalEngine(trials).jobs == jobs
        assert LocalEngine(trials, jobs=3).jobs == 3


def test_trials_take_turns_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def note(process: TrialProcess) -> None:
        seen.append(process.environment["CUDA_VISIBLE_DEVICES"])
        assert process.environment["OMP_NUM_THREADS"] == "1"

    monkeypatch.setattr(TrialProcess, "start", note)
    monkeypatch.setattr(sweep_engine, "gpu_names", lambda: ["2", "5"])
    engine = LocalEngine(small_plan(tmp_path).trials, jobs=4)
    for trial in small_plan(tmp_path).trials[:4]:
        engine.start(trial)
    assert seen == ["2", "5", "2", "5"]
    assert not engine.has_room()


def test_visible_gpus_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep_engine.gpu_names() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a")
    assert sweep_engine.gpu_names() == ["3", "GPU-8a"]


# ---- progress


def test_the_remaining_time_follows_from_recorded_steps(tmp_path: Path) -> None:
    plan = small_plan(tmp_path, seeds=[0, 1])
    now = [0.0]
    pretend(plan.trials[0], returns=0.0)
    progress = SweepProgress(
        plan.trials, complete={plan.trials[0].name}, stream=StringIO(), clock=lambda: now[0]
    )
    assert progress.line() == "1/4 trials, -:-- left"
    pretend(plan.trials[1], returns=0.0, step=50)
    now[0] = 10.0  # 50 of 300 steps in 10 s: 250 are left
    assert progress.line() == "1/4 trials, 0:50 left"
    progress.failed(plan.trials[2], "exit code 1")
    progress.complete(plan.trials[1])
    now[0] = 20.0  # 100 steps in 20 s; the failed trial took none and takes none: 100 are left
    assert progress.line() == "2/4 trials, 1 failed, 0:20 left"


def test_a_row_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    assert recorded_step(tmp_path) == 0
    (tmp_path / "metrics.csv").write_text("env_step,a\n")
    assert recorded_step(tmp_path) == 0
    (tmp_path / "metrics.csv").write_text("env_step,a\n0,1\n50,2\n100")
    assert recorded_step(tmp_path) == 50


def test_a_trial_without_a_checkpoint_starts_again_from_nothing(tmp_path: Path) -> None:
    """What a kill between directory and configuration leaves is no obstacle."""
    path = write_sweep(tmp_path, total_steps=60, parameters={"seed": {"value": 0}})
    (trial,) = plan_of(path, tmp_path / "out").trials
    (trial.run_dir / "checkpoints").mkdir(parents=True)
    (trial.run_dir / "config.yaml").write_text("")
    (trial.run_dir / "metrics.csv").write_text("env_step,x\n0,1\n")
    code, _, told = finish(start(path, tmp_path / "out"))
    assert code == 0, told
    train(trial.config, tmp_path / "undisturbed")
    expected = (tmp_path / "undisturbed" / "metrics.csv").read_bytes()
    assert (trial.run_dir / "metrics.csv").read_bytes() == expected
    shutil.rmtree(tmp_path / "undisturbed")
