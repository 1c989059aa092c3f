"""Run directories written by hand: configurations as algd dumps them, rows with known values."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algd.experiments.config import config_from_dict, dump_yaml, load_overrides

ENV = "AnalyticBandit1-v0"
COST_LIMIT = 25.0


def write_run(
    run_dir: Path,
    *,
    evaluations: Sequence[tuple[int, float, float]] = ((0, 0.0, 0.0), (1000, 1.0, 10.0)),
    episode_costs: Sequence[float] = (10.0, 30.0),
    metrics: Mapping[str, Sequence[float]] | None = None,
    **overrides: Any,
) -> Path:
    """Write a run; evaluations are (step, return, cost), overrides use __ for the dot."""
    given = {
        "env.id": ENV,
        "constraint.cost_limit": COST_LIMIT,
        "train.total_steps": max(1, evaluations[-1][0]),
        "train.learning_starts": 0,
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_yaml(config_from_dict(load_overrides(given))))
    extra = dict(metrics or {})
    rows = [
        {
            "env_step": step,
            "eval/return": value,
            "eval/cost": cost,
            "eval/violation_rate": float(cost > given["constraint.cost_limit"]),
            **{name: values[k] for name, values in extra.items()},
        }
        for k, (step, value, cost) in enumerate(evaluations)
    ]
    write_table(run_dir / "metrics.csv", rows)
    episodes = [
        {"env_step": k + 1, "return": 0.0, "cost": cost, "terminated": False}
        for k, cost in enumerate(episode_costs)
    ]
    write_table(run_dir / "episodes.csv", episodes)
    return run_dir


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys; nothing without a row."""
    if rows:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
