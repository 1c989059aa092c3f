"""Several seeds in one process: each is the run that it would be alone."""

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults.crashing_envs  # noqa: F401 - registers Crashing-v0
import pytest
import torch
from faults.tiny_runs import saved_steps
from replayed_calls import record

from algd.errors import CheckpointError, ConfigError, EnvironmentFault
from algd.experiments.cli import main
from algd.experiments.config import load_config
from algd.training import lockstep, seeds
from algd.training.checkpoint import CheckpointStore
from algd.training.lockstep import Lockstep
from algd.training.run_lock import RunLock
from algd.training.seeds import resume_seeds, train_seeds
from algd.training.stopping import Interrupted
from algd.training.trainer import Trainer, claim, train
from algd.training.wandb_file import offline_rows

pytestmark = pytest.mark.usefixtures("no_shape_checks")  # vmap is slow under them
TINY: dict[str, Any] = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 2.0,
    "policy.hidden": [16, 16],
    "critics.hidden": [16, 16],
    "critics.num_cost_critics": 2,
    "multiplier.hidden": [16, 16],
    "train.total_steps": 100,
    "train.learning_starts": 60,
    "train.batch_size": 16,
    "train.log_interval": 20,
    "train.checkpoint_interval": 40,
    "evaluation.interval": 50,
    "evaluation.episodes": 1,
    "evaluation.video": False,
    "tracking.wandb": "disabled",
    "tracking.progress": False,
}
DIFFUSION = {"policy.schedule": {"kind": "ve", "num_train_timesteps": 3}}
GAUSSIAN = {"policy.kind": "gaussian", "train.normalize_obs": True}
OVERLAP = GAUSSIAN | {"env.vector": "subprocess", "train.overlap": True}
PID = DIFFUSION | {
    "multiplier": {"kind": "scalar_pid"},
    "env.num_envs": 2,
    "train.updates_per_step": 0.4,
}
CASES = {"diffusion": DIFFUSION, "overlapping": OVERLAP, "vector-pid": PID}
FILES = ("metrics.csv", "episodes.csv", "evaluations.csv")


def settings(changes: dict[str, Any]) -> dict[str, Any]:
    given = TINY | changes
    if "multiplier" in changes:
        del given["multiplier.hidden"]
    return given


def alone(root: Path, num_seeds: int, changes: dict[str, Any], first: int = 0) -> list[Path]:
    """Train every seed in a run of its own."""
    runs = [root / "alone" / f"seed_{first + number}" for number in range(num_seeds)]
    for number, run_dir in enumerate(runs):
        train(load_config([], settings(changes) | {"seed": first + number}), run_dir)
    return runs


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_bytes(directory: Path, expected: list[Path]) -> None:
    for run_dir in expected:
        for name in FILES:
            actual = directory / run_dir.name / name
            assert actual.read_bytes() == (run_dir / name).read_bytes(), (run_dir.name, name)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Take updates of several seeds as one on this CPU; return the seeds of each joint update."""
    groups: list[list[int]] = []
    original = lockstep._Together.update

    def noted(learner: Any) -> Any:
        groups.append([trainer.config.seed for trainer in learner.trainers])
        return original(learner)

    def joining(*words: Any) -> Lockstep:
        return Lockstep(*words, joins=True)

    monkeypatch.setattr(lockstep._Together, "update", noted)
    monkeypatch.setattr(seeds, "Lockstep", joining)
    return groups


def stop_seed(
    seed: int, env_step: int, monkeypatch: pytest.MonkeyPatch, *, phase: str = "_earn_updates"
) -> None:
    """Have a signal come while this seed is in that step."""
    original: Callable[..., Any] = getattr(Trainer, phase)

    def stopping(trainer: Trainer, *words: Any, **named: Any) -> Any:
        result = original(trainer, *words, **named)
        if trainer.config.seed == seed and trainer.env_step >= env_step:
            trainer.stop.signal_number = signal.SIGINT
        return result

    monkeypatch.setattr(Trainer, phase, stopping)


@pytest.mark.parametrize("case", CASES)
def test_on_a_cpu_every_seed_has_the_bytes_of_its_lone_run(tmp_path: Path, case: str) -> None:
    expected = alone(tmp_path, 2, CASES[case], first=3)
    train_seeds(load_config([], settings(CASES[case]) | {"seed": 3}), 2, tmp_path / "both")
    assert_same_bytes(tmp_path / "both", expected)


@pytest.mark.parametrize("case", ["diffusion", "vector-pid"])
def test_joint_updates_train_every_seed_as_alone(
    tmp_path: Path, case: str, joined: list[list[int]]
) -> None:
    """To rounding, which batched products move and training carries on."""
    expected = alone(tmp_path, 3, CASES[case])
    train_seeds(load_config([], settings(CASES[case])), 3, tmp_path / "all")
    updates = int(float(rows(expected[0])[-1]["train/num_updates"]))
    assert joined == [[0, 1, 2]] * updates
    for run_dir in expected:
        for actual, wanted in zip(
            rows(tmp_path / "all" / run_dir.name), rows(run_dir), strict=True
        ):
            numbers = {name: float(value) for name, value in wanted.items() if value}
            assert {name: float(actual[name]) for name in numbers} == pytest.approx(
                numbers, rel=2e-3, abs=2e-4
            )


@pytest.mark.parametrize(
    ("case", "phase"),
    [
        ("diffusion", "_earn_updates"),
        ("vector-pid", "_record_and_save_if_due"),
        ("overlapping", "_start_step"),
    ],
)
def test_stopped_while_one_seed_steps_and_resumed_all_have_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, phase: str
) -> None:
    expected = alone(tmp_path, 3, CASES[case])
    with monkeypatch.context() as patch:
        stop_seed(1, 77, patch, phase=phase)
        with pytest.raises(Interrupted) as stop:
            train_seeds(load_config([], settings(CASES[case])), 3, tmp_path / "all")
    assert stop.value.run_dir == tmp_path / "all"
    resume_seeds(tmp_path / "all")
    assert_same_bytes(tmp_path / "all", expected)


def test_seeds_that_are_behind_catch_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their newest checkpoint gone, as after a kill between two of them."""
    expected = alone(tmp_path, 3, GAUSSIAN)
    with monkeypatch.context() as patch:
        stop_seed(0, 90, patch)
        with pytest.raises(Interrupted):
            train_seeds(load_config([], settings(GAUSSIAN)), 3, tmp_path / "all")
    checkpoint = CheckpointStore(tmp_path / "all" / "seed_1").latest()
    assert checkpoint is not None
    shutil.rmtree(checkpoint)
    groups: list[list[int]] = []
    original = lockstep._OneByOne.update

    def noted(learner: Any) -> Any:
        groups.append([trainer.config.seed for trainer in learner.trainers])
        return original(learner)

    monkeypatch.setattr(lockstep._OneByOne, "update", noted)
    resume_seeds(tmp_path / "all")
    assert groups == [[1]] * 9 + [[0, 1, 2]] * 11
    assert_same_bytes(tmp_path / "all", expected)


@pytest.mark.parametrize("how", ["one by one", "joined", "joined, as graphs"])
def test_a_seed_that_fails_leaves_the_others_as_they_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    crashing = GAUSSIAN | {
        "env.id": "Crashing-v0",
        "env.kwargs": {"how": "exception", "index": 0, "episode": 14},
    }
    expected = alone(tmp_path, 2, crashing, first=1)  # their episodes have other seeds
    groups = request.getfixturevalue("joined") if how.startswith("joined") else []
    if how.endswith("graphs"):
        monkeypatch.setattr(Trainer, "captures_updates", True)
        monkeypatch.setattr("alam.captured.CUDACapture", lambda: record)
    config = load_config([], settings(crashing) | {"tracking.progress": True})
    with pytest.raises(EnvironmentFault, match=r"stopped at step 72, checkpoint kept in .*seed_0"):
        train_seeds(config, 3, tmp_path / "all")
    assert "seed_0 failed: " in caplog.text
    assert "the other seeds go on" in caplog.text
    shown = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "%" in line]
    assert list(dict.fromkeys(shown)) == ["seed 0", "seed 1"]  # never two lines at a time
    if how == "one by one":
        assert_same_bytes(tmp_path / "all", expected)
        return
    assert groups == [[0, 1, 2]] * 13 + [[1, 2]] * 28
    for run_dir in expected:
        actual, wanted = (
            CheckpointStore(path).load()["agent"]
            for path in (tmp_path / "all" / run_dir.name, run_dir)
        )
        assert_close(actual, wanted)


def assert_close(actual: Any, expected: Any, path: str = "") -> None:
    """Weights and moments of the optimisers, to what rounding makes of them."""
    if isinstance(expected, torch.Tensor) and expected.is_floating_point():
        torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-4, msg=path)
    elif isinstance(expected, dict):
        for name, value in expected.items():
            assert_close(actual[name], value, f"{path}/{name}")
    elif isinstance(expected, list | tuple):
        for index, value in enumerate(expected):
            assert_close(actual[index], value, f"{path}/{index}")


def test_a_stop_that_one_seed_cannot_save_is_an_error_and_the_others_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_seed(2, 77, monkeypatch)
    save = Trainer.save_for_stop

    def saving(trainer: Trainer, **words: Any) -> None:
        if trainer.config.seed == 1:
            raise CheckpointError("no space left")
        save(trainer, **words)

    monkeypatch.setattr(Trainer, "save_for_stop", saving)
    with pytest.raises(CheckpointError, match="no space left"):
        train_seeds(load_config([], settings(GAUSSIAN)), 3, tmp_path / "all")
    assert "seed_1 failed: no space left; the other seeds are saved" in caplog.text
    steps = [saved_steps(tmp_path / "all" / f"seed_{seed}")[-1] for seed in range(3)]
    assert steps == [77, 40, 77]


def test_a_seed_that_cannot_be_continued_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(tmp_path, 3, GAUSSIAN)
    with monkeypatch.context() as patch:
        stop_seed(0, 90, patch)
        with pytest.raises(Interrupted):
            train_seeds(load_config([], settings(GAUSSIAN)), 3, tmp_path / "all")
    with RunLock(tmp_path / "all" / "seed_1"), pytest.raises(CheckpointError, match="seed_1"):
        resume_seeds(tmp_path / "all")
    assert_same_bytes(tmp_path / "all", [expected[0], expected[2]])
    resume_seeds(tmp_path / "all")
    assert_same_bytes(tmp_path / "all", expected)


def test_told_of_more_steps_and_stopped_at_once_all_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stop comes while the second of three is built, so the third was never told."""
    train_seeds(load_config([], settings(GAUSSIAN)), 3, tmp_path / "all")
    with monkeypatch.context() as patch:
        stop_seed(1, 100, patch, phase="_record_into")
        with pytest.raises(Interrupted):
            resume_seeds(tmp_path / "all", 140)
    steps = [
        load_config([tmp_path / "all" / f"seed_{seed}" / "config.yaml"]).train.total_steps
        for seed in range(3)
    ]
    assert steps == [140, 140, 100]
    resume_seeds(tmp_path / "all")
    assert "all were to end earlier; all go on to 140 steps" in caplog.text
    longer = settings(GAUSSIAN) | {"train.total_steps": 140}
    train(load_config([], longer | {"seed": 2}), tmp_path / "alone")
    for seed in range(3):
        assert int(rows(tmp_path / "all" / f"seed_{seed}")[-1]["env_step"]) == 140
    episodes = [path / "episodes.csv" for path in (tmp_path / "all" / "seed_2", tmp_path / "alone")]
    assert episodes[0].read_bytes() == episodes[1].read_bytes()
    with pytest.raises(ConfigError, match=r"can only grow: .*all has 140, got 120"):
        resume_seeds(tmp_path / "all", 120)


def test_runs_that_differ_in_more_than_their_seed_are_not_continued_together(
    tmp_path: Path,
) -> None:
    for seed, rate in ((0, 1e-3), (1, 3e-4)):
        config = load_config([], settings(GAUSSIAN) | {"seed": seed, "policy.learning_rate": rate})
        claim(config, tmp_path / "all" / f"seed_{seed}")
    with pytest.raises(ConfigError, match=r"seed_1 differs from .*seed_0 in more than its seed"):
        resume_seeds(tmp_path / "all")


def test_a_group_is_not_started_in_a_run_nor_a_run_in_a_group(tmp_path: Path) -> None:
    config = load_config([], settings(GAUSSIAN))
    claim(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="run already holds a run"):
        train_seeds(config, 2, tmp_path / "run")
    claim(config, tmp_path / "all" / "seed_0")
    with pytest.raises(ConfigError, match="all holds the runs of several seeds"):
        claim(config, tmp_path / "all")


def test_the_command_trains_stops_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = settings(GAUSSIAN) | {"tracking.progress": True, "tracking.wandb": "offline"}
    options = [f"--{key}={json.dumps(value)}" for key, value in changes.items()]
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_seed(5, 70, patch)
        arguments = ["train", *options, "--base=sac_alam", "--seed=4", "--seeds=2"]
        assert main([*arguments, "--run-dir=both"]) == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert "stopped at step" in said
    assert said.strip().endswith("continue with: algd train --resume both")
    assert "seed 4: " in said
    assert "2 seeds take turns on a CPU" in caplog.text
    assert main(["train", "--resume", "both", "--train.total_steps=120"]) == 0
    out = capsys.readouterr().out
    assert "seed 4;" in out
    assert "seed 5;" in out
    for seed in (4, 5):
        run_dir = tmp_path / "both" / f"seed_{seed}"
        recorded = [int(row["env_step"]) for row in offline_rows(run_dir) if "train/cost" in row]
        assert recorded == [int(row["env_step"]) for row in rows(run_dir) if row["train/cost"]]
        assert recorded[-1] == 120
    assert main([*arguments, "--run-dir=both"]) == 2
    assert "continue with `algd train --resume both`" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_seeds_is_a_whole_one_from_1(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "sac_alam", f"--seeds={number}"]) == 2
    assert f"got '{number}'" in capsys.readouterr().err


def test_a_seed_beyond_the_largest_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["sac", f"--seed={2**32 - 1}", "--seeds=2", "--run-dir", str(tmp_path / "both")]
    assert main(["train", *options]) == 2
    assert "seeds must be in [0, 2^32), got 4294967295 to 4294967296" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
