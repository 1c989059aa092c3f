"""Runs the trials of a sweep that are not complete: order, retries, and what went wrong.

In: trials and an engine. Out: which trials failed, with reason and log; every other one is
complete. A trial that fails is started again and continues from its last checkpoint; one whose
machine was lost is moved elsewhere, which is no failure of the trial.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from algd.experiments.sweep_engine import Ended, Engine, log_path
from algd.experiments.sweep_plan import Trial
from algd.experiments.sweep_progress import SweepProgress

_WAIT_SECONDS = 0.5
_MAX_LOSSES = 5  # of one trial; more than bad luck
_LOG_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Failure:
    """A trial that was given up.

    reason: of its last attempt. message: the last line it printed. log: all that it printed.
    """

    trial: Trial
    attempts: int
    reason: str
    message: str
    log: Path

    def describe(self) -> str:
        """Return one line that says what failed and where to look."""
        said = f": {self.message}" if self.message else ""
        return (
            f"failed: {self.trial.name} ({self.reason}, {self.attempts} "
            f"attempt{'s' * (self.attempts != 1)}){said}; log: {self.log}"
        )


def run_trials(
    trials: Sequence[Trial], engine: Engine, progress: SweepProgress, *, retries: int
) -> list[Failure]:
    """Run every trial that is not complete and return those that failed, in order of the plan.

    Args:
        trials: of the sweep.
        engine: runs them; the caller stops it.
        progress: told of every event.
        retries: further attempts after a failure.
    """
    waiting = deque(trial for trial in trials if not trial.is_complete)
    attempts: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    failures: dict[str, Failure] = {}
    begins: dict[str, int] = {}  # of the last attempt in the log, which attempts append to
    running = 0
    while waiting or running:
        while waiting and engine.has_room():
            log = log_path(waiting[0])
            begins[waiting[0].name] = log.stat().st_size if log.is_file() else 0
            engine.start(waiting.popleft())
            running += 1
        progress.update(running)
        for ended in engine.wait(_WAIT_SECONDS):
            running -= 1
            trial = ended.trial
            lost = ended.exit_code is None
            counted = losses if lost else attempts
            counted[trial.name] += 1
            if ended.exit_code == 0:
                progress.complete(trial)
            elif counted[trial.name] <= (_MAX_LOSSES if lost else retries):
                progress.notice(f"{trial.name}: {ended.reason}; continuing it")
                waiting.append(trial)
            else:
                number = attempts[trial.name] + losses[trial.name]
                failures[trial.name] = _failure(ended, number, begins[trial.name])
                progress.failed(trial, ended.reason)
    return [failures[trial.name] for trial in trials if trial.name in failures]


def _failure(ended: Ended, attempts: int, begins: int) -> Failure:
    log = log_path(ended.trial)
    return Failure(ended.trial, attempts, ended.reason, _last_line(log, begins), log)


def _last_line(log: Path, begins: int) -> str:
    """Return the last line that was printed from a place in the log on."""
    try:
        text = log.read_bytes()[begins:][-_LOG_TAIL_BYTES:].decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "?" for c in lines[-1]) if lines else ""
