"""What the tests of sweeps share: a file of cheap trials, the command that runs it, its trials."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from algd.experiments.sweep_child import TRIAL_FILE
from algd.experiments.sweep_file import read_sweep_file
from algd.experiments.sweep_plan import SweepPlan, plan_sweep, seeds_of
from algd.experiments.sweep_table import make_table
from algd.experiments.yaml_files import write_yaml
from algd.training.run_lock import LOCK_FILE
from algd.training.trainer import train

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "algd.experiments.cli")
TINY = [
    "--env.id=AnalyticBandit1-v0",
    "--constraint.cost_limit=0.5",
    "--critics.hidden=[8]",
    "--policy.hidden=[8]",
    "--multiplier.hidden=[8]",
    "--train.learning_starts=50",
    "--train.batch_size=16",
    "--train.log_interval=50",
    "--train.checkpoint_interval=50",
    "--evaluation.interval=200",
    "--evaluation.episodes=5",
    "--evaluation.video=false",
    "--tracking.wandb=disabled",
]


def write_sweep(directory: Path, *, total_steps: int, parameters: dict[str, Any]) -> Path:
    """Write a grid over the bandit; each trial takes seconds."""
    tree = {
        "name": "tiny",
        "method": "grid",
        "metric": {"name": "eval/return", "goal": "maximize"},
        "command": [
            "algd",
            "train",
            *([] if "base" in parameters else ["sac_alam"]),
            *TINY,
            f"--train.total_steps={total_steps}",
            "${args}",
        ],
        "parameters": parameters,
    }
    path = directory / "tiny.yaml"
    path.write_text(write_yaml(tree))
    return path


def plan_of(path: Path, directory: Path) -> SweepPlan:
    file = read_sweep_file(path)
    return plan_sweep(file, directory.absolute(), seeds=seeds_of(file) or [0])


def undisturbed_table(path: Path, directory: Path) -> bytes:
    """Train every trial of a sweep here, one after the other, and return the table as CSV."""
    plan = plan_of(path, directory)
    for trial in plan.trials:
        train(trial.config, trial.run_dir)
        (trial.run_dir / TRIAL_FILE).write_text("{}")
    make_table(plan).write_csv(directory / "table.csv")
    return (directory / "table.csv").read_bytes()


def start(path: Path, directory: Path, *options: str) -> subprocess.Popen[str]:
    """Start `algd sweep` as a user would."""
    return subprocess.Popen(
        [*COMMAND, "sweep", str(path), "--dir", str(directory), *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 900.0) -> tuple[int, str, str]:
    """Wait for the end; return exit code, stdout and stderr."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that must come while the sweep runs."""
    give_up = time.monotonic() + 600
    while not holds():
        if process.poll() is not None:
            raise AssertionError(f"the sweep ended early: {finish(process)}")
        if time.monotonic() > give_up:
            raise AssertionError("waited for ten minutes")
        time.sleep(0.02)


def half_done(directory: Path) -> list[Path]:
    """Return trials that have a checkpoint and are not complete."""
    runs = {path.parents[1] for path in directory.glob("*/checkpoints/step_*")}
    return sorted(run for run in runs if not (run / TRIAL_FILE).exists())


def kill_all(process: subprocess.Popen[str], directory: Path) -> None:
    """SIGKILL the sweep and its trials, as a power cut would."""
    process.kill()
    for lock in directory.glob(f"*/{LOCK_FILE}"):
        text = lock.read_text()
        if text:
            try:
                os.kill(json.loads(text)["pid"], signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.communicate()
