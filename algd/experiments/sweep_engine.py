"""Where trials run: what every engine offers, and the pool of processes on this machine.

In: trials. Out: how each ended. An engine knows nothing of retries, tables or sweep files.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from algd.experiments.sweep_plan import Trial

_POLL_SECONDS = 0.1
_STOP_SECONDS = 90.0  # more than a trial gives itself for its checkpoint
# Networks of this size leave most of a GPU idle, and the environments want cores anyway.
TRIALS_PER_GPU = 4
_CHILD = "algd.experiments.sweep_child"


@dataclass(frozen=True)
class Ended:
    """How a trial's process ended.

    exit_code: that of the process, negative for a signal; None when the machine or worker that
        ran it was lost, which says nothing about the trial.
    reason: in words, empty when it succeeded.
    """

    trial: Trial
    exit_code: int | None
    reason: str = ""


class Engine(Protocol):
    """Runs trials, several at a time."""

    def describe(self) -> str:
        """Return where trials run, for the first line of a sweep."""
        ...

    def has_room(self) -> bool:
        """Say whether another trial may start."""
        ...

    def start(self, trial: Trial) -> None:
        """Start a trial; it continues where its run directory stands."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Return trials that ended, at the latest after ``seconds``."""
        ...

    def stop(self) -> None:
        """Stop what runs, each with a checkpoint, and release everything. May be repeated."""
        ...


@dataclass(frozen=True)
class TrialProcess:
    """What starts the process of a trial, here or on another machine that shares the files.

    log: the file its output is appended to. environment: variables set for it.
    """

    run_dir: str
    log: str
    arguments: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it; the process stops when this one ends, or closes the pipe to it."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with Path(self.log).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", _CHILD, self.run_dir, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                env=os.environ | dict(self.environment),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its trials
            )


def process_of(trial: Trial, environment: Mapping[str, str] | None = None) -> TrialProcess:
    """Return the process of a trial."""
    threads = {"OMP_NUM_THREADS": str(trial.config.train.num_threads)}
    return TrialProcess(
        run_dir=str(trial.run_dir.absolute()),
        log=str(log_path(trial).absolute()),
        arguments=trial.arguments,
        cwd=str(Path.cwd()),
        environment=threads | dict(environment or {}),
    )


def log_path(trial: Trial) -> Path:
    """Return the file that holds what the trial's process printed."""
    return trial.run_dir.parent / "logs" / f"{trial.name}.log"


def exit_reason(code: int) -> str:
    """Return an exit code in words; empty for success."""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def wants_gpu(trials: Sequence[Trial]) -> bool:
    """Say whether any trial would take a GPU that is there."""
    return any(trial.config.train.device != "cpu" for trial in trials)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_names() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


class LocalEngine:
    """A pool of processes on this machine.

    Args:
        trials: all that will run, for the size of the pool.
        jobs: processes at a time; None takes as many as cores and GPUs carry.
    """

    def __init__(self, trials: Sequence[Trial], *, jobs: int | None = None) -> None:
        gpus = gpu_names() if wants_gpu(trials) else []
        if jobs is None:
            threads = max((trial.config.train.num_threads for trial in trials), default=1)
            jobs = max(cores() // threads, 1)
            if gpus:
                jobs = min(jobs, TRIALS_PER_GPU * len(gpus))
        self.jobs = jobs
        self._gpus = gpus
        self._free = list(range(jobs))
        self._running: dict[int, tuple[Trial, subprocess.Popen[bytes]]] = {}

    def describe(self) -> str:
        """Return the size of the pool."""
        gpus = f" on {len(self._gpus)} GPU{'s' * (len(self._gpus) > 1)}" if self._gpus else ""
        return f"{self.jobs} at a time{gpus}"

    def has_room(self) -> bool:
        """Say whether a slot is free."""
        return bool(self._free)

    def start(self, trial: Trial) -> None:
        """Start a trial in the first free slot; slots take turns over the GPUs."""
        slot = self._free.pop(0)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        self._running[slot] = (trial, process_of(trial, gpu).start())

    def wait(self, seconds: float) -> list[Ended]:
        """Return trials that ended, at the latest after ``seconds``."""
        give_up = time.monotonic() + seconds
        while True:
            ended = [slot for slot, (_, child) in self._running.items() if child.poll() is not None]
            if ended or not self._running or time.monotonic() >= give_up:
                return [self._release(slot) for slot in ended]
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Ask every trial to write a checkpoint and stop; kill those that do not."""
        for _, child in self._running.values():
            child.terminate()
        give_up = time.monotonic() + _STOP_SECONDS
        for _, child in self._running.values():
            try:
                child.wait(max(give_up - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                child.kill()
        for slot in list(self._running):
            self._release(slot)

    def _release(self, slot: int) -> Ended:
        trial, child = self._running.pop(slot)
        code = child.wait()
        if child.stdin is not None:
            child.stdin.close()
        self._free.append(slot)
        self._free.sort()
        return Ended(trial, code, exit_reason(code))
