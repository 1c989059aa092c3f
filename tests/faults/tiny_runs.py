"""What the fault tests share: a run of a second or two, and what it leaves to compare."""

from pathlib import Path
from typing import Any

import faults.crashing_envs  # noqa: F401 - registers Crashing-v0

from algd.experiments.config import ExperimentConfig, load_config
from algd.training.checkpoint import CheckpointStore
from algd.training.trainer import train

TINY: dict[str, Any] = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 2.0,
    "policy.kind": "gaussian",
    "policy.hidden": [16],
    "critics.hidden": [16],
    "critics.num_cost_critics": 2,
    "train.total_steps": 120,
    "train.learning_starts": 60,
    "train.batch_size": 8,
    "train.log_interval": 15,
    "train.checkpoint_interval": 30,
    "evaluation.interval": 60,
    "evaluation.episodes": 1,
    "evaluation.video": False,
    "tracking.wandb": "disabled",
    "tracking.progress": False,
}


def tiny(**changes: Any) -> ExperimentConfig:
    """Return the tiny configuration with changes; ``train__num_threads`` is train.num_threads."""
    return load_config([], TINY | {k.replace("__", "."): v for k, v in changes.items()})


def run(directory: Path, **changes: Any) -> Path:
    """Train to the end."""
    train(tiny(**changes), directory)
    return directory


def saved_steps(run_dir: Path) -> list[int]:
    """Return the env steps of the checkpoints, oldest first."""
    return sorted(int(p.name[5:17]) for p in (run_dir / "checkpoints").glob("step_*"))


def training_stream(run_dir: Path) -> dict[str, Any]:
    """Return what must not depend on observers: episodes, weights, generators, counters."""
    state = CheckpointStore(run_dir).load()
    kept = ("agent", "normalizer", "acting", "sampling", "exploration", "counters")
    return {name: state[name] for name in kept} | {
        "episodes": (run_dir / "episodes.csv").read_text()
    }
