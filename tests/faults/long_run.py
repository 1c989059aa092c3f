"""Train for a while and measure whether memory, speed and the number of files stay flat.

In: minutes and configuration overrides. Out: a table over time and, after a warm-up of a third of
the run, the slope of resident memory in MB per 10,000 steps, and the speed of the last quarter
against that of the first, in updates per second of wall clock and of processor time (the second
is the one to trust on a busy machine).

    python tests/faults/long_run.py --minutes 120 --preset cpu --run-dir DIR

On a machine that others use, both figures of speed move with what they do. With ``--compare`` the
kept run, continued from its last checkpoint, and a young one of the same settings take turns in one
process (A B A B), and the median ratio of their times is printed:

    python tests/faults/long_run.py --compare DIR --preset cpu
"""

# ruff: noqa: E402 - the path comes first, so that this file runs by its name alone

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from stepping import step_and_update

from algd.experiments.config import load_config
from algd.experiments.yaml_files import parse_yaml
from algd.training.checkpoint import CheckpointStore
from algd.training.run_directory import claim_run_dir
from algd.training.trainer import Trainer

_SAMPLE_SECONDS = 5.0
_BASE = {"tracking.wandb": "disabled", "tracking.progress": False, "evaluation.video": False}
_BLOCKS, _BLOCK_STEPS, _YOUNG_STEPS = 24, 500, 2_000


@dataclass
class Sample:
    """One look at the process."""

    wall: float
    processor: float
    env_step: int
    num_updates: int
    rss_mb: float
    files: int


def resident_mb() -> float:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def train_and_sample(run_dir: Path, presets: list[str], changes: dict, seconds: float) -> list:
    """Train until the time is over; return the samples."""
    claim_run_dir(run_dir)
    trainer = Trainer(load_config(presets, _BASE | changes), run_dir)
    samples: list[Sample] = []
    began, earn = time.perf_counter(), trainer._earn_updates

    def watched() -> None:
        earn()
        now = time.perf_counter() - began
        if not samples or now - samples[-1].wall >= _SAMPLE_SECONDS:
            files = sum(len(names) for _, _, names in os.walk(run_dir))
            samples.append(
                Sample(
                    *(now, time.process_time(), trainer.env_step, trainer.num_updates),
                    *(resident_mb(), files),
                )
            )
        if now >= seconds:
            trainer.stop.signal_number = 15

    trainer._earn_updates = watched
    try:
        trainer.run()
    except Exception as stopped:
        print(f"ended: {stopped}")
    return samples


def report(samples: list[Sample]) -> None:
    """Print the table and the two figures."""
    print("  wall s  processor s     steps   updates  RSS MB  files")
    for s in samples[:: max(len(samples) // 20, 1)]:
        print(
            f"{s.wall:8.0f} {s.processor:12.0f} {s.env_step:9d} {s.num_updates:9d} "
            f"{s.rss_mb:7.1f} {s.files:6d}"
        )
    warm = samples[len(samples) // 3 :]
    steps = np.array([s.env_step for s in warm], float)
    slope = np.polyfit(steps / 1e4, [s.rss_mb for s in warm], 1)[0]
    print(f"slope of memory after warm-up: {slope:.3f} MB per 10k steps")

    def speed(part: list[Sample], clock: str) -> float:
        elapsed = getattr(part[-1], clock) - getattr(part[0], clock)
        return (part[-1].num_updates - part[0].num_updates) / elapsed

    quarter = max(len(warm) // 4, 2)
    for clock in ("wall", "processor"):
        first, last = speed(warm[:quarter], clock), speed(warm[-quarter:], clock)
        print(f"updates per {clock} second: {first:.1f} then {last:.1f} ({last / first - 1:+.1%})")


def compare(kept: Path, presets: list[str], changes: dict, root: Path) -> None:
    """Print how long a step of a kept run takes, in units of a young run's."""
    config = load_config(presets, _BASE | changes)
    shutil.copytree(kept, root / "old")
    claim_run_dir(root / "young")
    checkpoint = CheckpointStore(root / "old").latest()
    assert checkpoint is not None, f"{kept} holds no checkpoint"
    old = Trainer(config, root / "old", checkpoint=checkpoint)
    young = Trainer(config, root / "young")

    def seconds(trainer: Trainer, steps: int) -> tuple[float, float]:
        clocks = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step_and_update(trainer)
        return time.perf_counter() - clocks[0], time.process_time() - clocks[1]

    seconds(young, config.train.learning_starts + _YOUNG_STEPS)
    pairs = [(seconds(old, _BLOCK_STEPS), seconds(young, _BLOCK_STEPS)) for _ in range(_BLOCKS)]
    print(f"run of {old.env_step} steps against one of {young.env_step}, blocks A B A B:")
    for place, clock in enumerate(("wall", "processor")):
        ratios = sorted(a[place] / b[place] for a, b in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-len(ratios) // 4]
        middle = statistics.median(ratios)
        print(
            f"{clock} time a step: {middle:.3f} of the young one (quartiles {low:.3f} {high:.3f})"
        )


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-dir", type=Path, help="keep the run here (default: thrown away)")
    parser.add_argument("--compare", type=Path, metavar="RUN_DIR", help="with a young run")
    options = parser.parse_args()
    pairs = [text.partition("=") for text in options.set]
    changes = {key: parse_yaml(value, "command line") for key, _, value in pairs}
    root = Path(tempfile.mkdtemp(prefix="long_run_"))
    try:
        if options.compare:
            return compare(options.compare, options.preset, changes, root)
        run_dir = options.run_dir or root / "run"
        report(train_and_sample(run_dir, options.preset, changes, options.minutes * 60))
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
