"""What tracking takes of a training run with W&B offline: measured inside one run of the main job.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.tracking_cost --steps 16000
    OMP_NUM_THREADS=1 python -m tests.benchmarks.tracking_cost --steps 14500 --alternate

In: the shipped configuration of the main job, cut short. Out: a line per call, and two shares.

The first command adds up the seconds inside calls of the tracker, the drawing of pictures and start
and end of W&B among them; to the processor time, the CPU of W&B's threads and of its service beside
them. What happens once or at each evaluation weighs more in a short run: the share of the whole job
follows from how often it does what, at the same seconds a time.
The second turns the tracker on and off (A B A B) after the warm-up, in blocks with a row of metrics
in the middle of each. The difference also holds what tracking does to caches; medians of few blocks
vary by a percent or two.

The first exits with 1 where more than 2 % of the job's wall or processor time are tracking.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from algd.experiments.config import ExperimentConfig, load_config
from algd.training import recording
from algd.training.checkpoint import claim_run_dir
from algd.training.tracking import Tracker
from algd.training.trainer import Trainer

PRESET = "algd_point_goal"
LIMIT = 0.02
# What the trainer calls, by how often it does: with steps, with evaluations, once.
_WITH_STEPS = ("log", "log_time", "episode", "checkpoint", "flush", "progress")
_WITH_EVALUATIONS = ("evaluation", "image", "histogram", "video", "model_artifact")
_ONCE = ("__init__", "finish", "close")
_PICTURES = "record_pictures"
_CALLS = (*_WITH_STEPS, *_WITH_EVALUATIONS)
_TIMES = slice(11, 15)  # of user and system, own and of children, after the name in /proc/PID/stat


class Clocks(NamedTuple):
    """Seconds: wall, CPU of this thread, CPU of this process, CPU of W&B's service."""

    wall: float
    thread: float
    process: float
    service: float

    def since(self, earlier: "Clocks") -> "Clocks":
        """Return the seconds that went by."""
        return Clocks(*(now - then for now, then in zip(self, earlier, strict=True)))

    def processor(self) -> float:
        """Return the CPU time of everything."""
        return self.process + self.service

    def beside(self) -> float:
        """Return the CPU time of all but this thread: of W&B, for training has one thread."""
        return self.processor() - self.thread


def read_clocks() -> Clocks:
    """Return all clocks now; W&B's service is a child of this process, and 0 before it runs."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            _, name, rest = Path(f"/proc/{pid}/stat").read_text().replace(")", "(").split("(", 2)
            if "wandb" in name:
                ticks += sum(map(int, rest.split()[_TIMES]))
    service = ticks / os.sysconf("SC_CLK_TCK")
    return Clocks(time.perf_counter(), time.thread_time(), time.process_time(), service)


class Meter:
    """Seconds inside calls, by name: wall and CPU of the calling thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._is_inside = False

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the call with its time added to a name, unless another timed call made it."""

        def timed_call(*arguments: Any, **options: Any) -> Any:
            if self._is_inside:
                return call(*arguments, **options)
            self._is_inside = True
            wall, thread = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **options)
            finally:
                total = self.seconds.setdefault(name, [0.0, 0.0])
                total[0] += time.perf_counter() - wall
                total[1] += time.thread_time() - thread
                self._is_inside = False

        return timed_call

    def sum_of(self, names: Sequence[str], clock: int) -> float:
        """Return the seconds of some names: wall (0) or CPU (1)."""
        return sum(self.seconds[name][clock] for name in names if name in self.seconds)


class Switch:
    """Turns the tracker off in every second block of steps and keeps the clocks of each block."""

    def __init__(self, *, first: int, block: int, last: int) -> None:
        self._first, self._block, self._last = first, block, last
        self._began: Clocks | None = None
        self.is_on = True
        self.blocks: dict[bool, list[Clocks]] = {True: [], False: []}

    def step(self, env_step: int) -> None:
        """Begin the next block where it is due; at the end the tracker is on."""
        number, rest = divmod(env_step - self._first, self._block)
        if number < 0 or rest:
            return
        now = read_clocks()
        if self._began is not None:
            self.blocks[self.is_on].append(now.since(self._began))
        self._began, self.is_on = now, number % 2 == 0 or env_step >= self._last

    def switched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, which does nothing while the tracker is off."""
        return lambda *arguments, **options: call(*arguments, **options) if self.is_on else None


def run_once(config: ExperimentConfig, run_dir: Path) -> Clocks:
    """Train a run and return what it took."""
    began = read_clocks()
    claim_run_dir(run_dir)
    Trainer(config, run_dir).run()
    return read_clocks().since(began)


def add_up(config: ExperimentConfig, job: ExperimentConfig, run_dir: Path) -> bool:
    """Print what calls of the tracker take of a run; say whether the job is within the limit."""
    meter, evaluations = Meter(), Meter()
    tracked = {name: meter.timed(getattr(Tracker, name), name) for name in (*_CALLS, *_ONCE)}
    pictures = meter.timed(recording.record_pictures, _PICTURES)
    evaluate = evaluations.timed(recording.evaluate_policy, "")
    with (
        patch.multiple(Tracker, **tracked),
        patch.multiple(recording, record_pictures=pictures, evaluate_policy=evaluate),
    ):
        spent = run_once(config, run_dir)
    for name, (wall, thread) in sorted(meter.seconds.items(), key=lambda item: -item[1][0]):
        print(f"{name:<16} {wall:7.3f} s of wall time, {thread:7.3f} s of processor time")
    print(f"W&B beside them: {spent.beside():.3f} s of processor time")
    shares = []
    for clock, total, beside in ((0, spent.wall, 0.0), (1, spent.processor(), spent.beside())):
        once = meter.sum_of(_ONCE, clock)
        with_evaluations = meter.sum_of((*_WITH_EVALUATIONS, _PICTURES), clock)
        with_steps = meter.sum_of(_WITH_STEPS, clock) + beside
        tracking = once + with_evaluations + with_steps
        evaluating = evaluations.sum_of(("",), clock)
        training = total - tracking - evaluating
        steps = config.train.learning_starts  # nearly free, and as many in both
        longer = (job.train.total_steps - steps) / (config.train.total_steps - steps)
        more = _evaluations(job) / _evaluations(config)
        job_tracking = once + more * with_evaluations + longer * with_steps
        job_total = job_tracking + longer * training + more * evaluating
        shares.append(job_tracking / job_total)
        print(
            f"{('wall', 'processor')[clock]} time: {tracking:.1f} of {total:.1f} s "
            f"({tracking / total:.2%}) in {config.train.total_steps} steps, hence "
            f"{job_tracking:.1f} of {job_total:.1f} s ({shares[-1]:.2%}) in "
            f"{job.train.total_steps}"
        )
    return max(shares) <= LIMIT


def _evaluations(config: ExperimentConfig) -> int:
    """Return how many evaluations a run has, those at its start and end included."""
    return 1 + -(-config.train.total_steps // config.evaluation.interval)


def alternate(config: ExperimentConfig, run_dir: Path) -> None:
    """Print medians of blocks with and without tracking."""
    block = config.train.log_interval
    first = config.train.learning_starts + block // 2
    switch = Switch(first=first, block=block, last=config.train.total_steps)
    calls = {name: switch.switched(getattr(Tracker, name)) for name in _CALLS}
    progress = Tracker.progress

    def count_step(tracker: Tracker, *, env_step: int, **options: Any) -> None:
        switch.step(env_step)
        if switch.is_on:
            progress(tracker, env_step=env_step, **options)

    with patch.multiple(Tracker, **(calls | {"progress": count_step})):
        run_once(config, run_dir)
    for name, seconds in (("wall", lambda b: b.wall), ("processor", Clocks.processor)):
        on, off = (statistics.median(map(seconds, switch.blocks[key])) for key in (True, False))
        count = len(switch.blocks[True]), len(switch.blocks[False])
        print(
            f"{block} steps, {name} time: {on:.3f} s with tracking, {off:.3f} s without "
            f"({count[0]} and {count[1]} blocks): {1 - off / on:+.2%}"
        )


def main() -> int:
    """Measure and print; 1 where tracking takes more than the limit."""
    parser = argparse.ArgumentParser(description="What tracking takes of a run, W&B offline.")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--alternate", action="store_true", help="with and without, by turns")
    arguments = parser.parse_args()
    overrides = {
        "train.total_steps": arguments.steps,
        "tracking.wandb": "offline",
        "evaluation.video": False,  # its renderer has threads of its own, which W&B's are not
    }
    config = load_config([PRESET], overrides)
    with tempfile.TemporaryDirectory(prefix="tracking_cost_") as directory:
        run_dir = Path(directory) / "run"
        if arguments.alternate:
            alternate(config, run_dir)
            return 0
        return 0 if add_up(config, load_config([PRESET]), run_dir) else 1


if __name__ == "__main__":
    sys.exit(main())
