"""Measure training under a W&B server that hangs, errors or is slow, against training without W&B.

In: the server's behaviour. Out: processor and wall-clock time per update of two runs in one
process, which take turns (A B A B ...), so that both meet the same machine, and their ratio. The
limit of interest: 5 %.

    python tests/faults/tracking_speed.py hang --turns 8 --updates 40
"""

# ruff: noqa: E402 - the path comes first, so that this file runs by its name alone

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults.wandb_server import WandbServer
from stepping import step_and_update

from algd.experiments.config import load_config
from algd.training import wandb_run
from algd.training.run_directory import claim_run_dir
from algd.training.trainer import Trainer

SETTINGS = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 2.0,
    "train.total_steps": 10**6,
    "train.learning_starts": 300,
    "train.log_interval": 20,  # 50 times as often as by default
    "train.checkpoint_interval": 10**6,
    "evaluation.interval": 10**6,
    "evaluation.episodes": 1,
    "evaluation.video": False,
    "tracking.progress": False,
}


def trainer_of(run_dir: Path, wandb: str) -> Trainer:
    """Return a run that has begun to update."""
    claim_run_dir(run_dir)
    trainer = Trainer(load_config(["sac_alam"], SETTINGS | {"tracking.wandb": wandb}), run_dir)
    advance(trainer, 20)
    return trainer


def advance(trainer: Trainer, updates: int) -> tuple[float, float]:
    """Train on; return seconds of processor and wall clock per update."""
    end = trainer.num_updates + updates
    wall, processor = time.perf_counter(), time.process_time()
    while trainer.num_updates < end:
        trainer._record_and_save_if_due()
        step_and_update(trainer)
    spent = time.process_time() - processor, time.perf_counter() - wall
    return spent[0] / updates, spent[1] / updates


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", choices=["good", "hang", "error", "drop", "slow", "refuse"])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--updates", type=int, default=40)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tracking_speed_"))
    server = WandbServer(options.how)
    os.environ |= server.environment()
    wandb_run._FINISH_SECONDS = 2.0
    try:
        runs = [trainer_of(root / name, name) for name in ("disabled", "online")]
        turns = [[advance(run, options.updates) for run in runs] for _ in range(options.turns)]
        steps = runs[1].env_step
        rows = [
            len((root / name / "metrics.csv").read_text().splitlines())
            for name in ("disabled", "online")
        ]
        for index, clock in enumerate(("processor", "wall")):
            alone, tracked = ([1e3 * turn[run][index] for turn in turns] for run in (0, 1))
            ratio = statistics.median(b / a for a, b in zip(alone, tracked, strict=True))
            print(
                f"{options.how}: {clock} ms per update {statistics.median(alone):.2f} without, "
                f"{statistics.median(tracked):.2f} with W&B; median ratio {ratio:.3f}"
            )
        print(f"requests spoiled: {server.spoiled}; rows {rows} after {steps} steps")
        for run in runs:
            run._resources.close()
    finally:
        server.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
