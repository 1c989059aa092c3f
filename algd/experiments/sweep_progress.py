"""What a person sees of a sweep: one line over all trials with the time that is left.

In: how trials stand. Out: text on stderr, redrawn in place on a terminal, a line per event
elsewhere. The remaining time follows from the environment steps that the trials have recorded, so
that there is an estimate before the first trial ends.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from algd.experiments.sweep_plan import Trial

_REDRAW_SECONDS = 1.0
_TAIL_BYTES = 65_536  # more than a row of metrics.csv
_BAR_WIDTH = 20


class SweepProgress:
    """Progress over the trials of a sweep.

    Args:
        trials: all of them.
        complete: names of those that were complete before.
        stream, clock: stderr and monotonic seconds; other ones in tests.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        complete: set[str],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials = trials
        self._complete = set(complete)
        self._failed: dict[str, int] = {}  # to the steps that they had taken
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._redraws = self._stream.isatty()
        self._shown = False
        self._drawn_at = -float("inf")
        self._started_at = clock()
        self._steps_at_start = self._steps()

    def complete(self, trial: Trial) -> None:
        """Note that a trial is complete."""
        self._complete.add(trial.name)
        self._event(f"{trial.name} is complete")

    def failed(self, trial: Trial, reason: str) -> None:
        """Note that a trial is given up."""
        self._failed[trial.name] = recorded_step(trial.run_dir)
        self._event(f"{trial.name} failed: {reason}")

    def notice(self, text: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._shown = False
        self._stream.write(f"{text}\n")
        self._stream.flush()
        self._drawn_at = -float("inf")

    def update(self, running: int) -> None:
        """Redraw the line where there is one and it is due."""
        if self._redraws and self._clock() - self._drawn_at >= _REDRAW_SECONDS:
            line = f"{self.line()}, {running} running"
            self._stream.write(f"\r\x1b[K{self._fitted(line)}")
            self._stream.flush()
            self._shown = True
            self._drawn_at = self._clock()

    def close(self) -> None:
        """Leave the last line standing and the cursor below it."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = False

    def line(self) -> str:
        """Return "3/12 trials, 1 failed, 0:42 left"."""
        failed = f", {len(self._failed)} failed" if self._failed else ""
        return f"{len(self._complete)}/{len(self._trials)} trials{failed}, {self._left()} left"

    def _event(self, text: str) -> None:
        if not self._redraws:
            self.notice(f"{self.line()}: {text}")

    def _left(self) -> str:
        steps = self._steps()
        elapsed = self._clock() - self._started_at
        done = steps - self._steps_at_start
        if done <= 0 or elapsed <= 0:
            return "-:--"
        seconds = round((self._total() - steps) * elapsed / done)
        minutes, rest = divmod(max(seconds, 0), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

    def _total(self) -> int:
        """Return the steps that all trials are to take; given-up ones take no more."""
        return sum(
            self._failed.get(trial.name, trial.config.train.total_steps) for trial in self._trials
        )

    def _steps(self) -> int:
        """Return the steps of all trials together."""
        return sum(
            self._failed.get(trial.name, trial.config.train.total_steps)
            if trial.name in self._complete or trial.name in self._failed
            else min(recorded_step(trial.run_dir), trial.config.train.total_steps)
            for trial in self._trials
        )

    def _fitted(self, line: str) -> str:
        room = shutil.get_terminal_size().columns - 1
        width = min(_BAR_WIDTH, room - len(line) - 3)
        if width < _BAR_WIDTH // 2:
            return line[:room]
        done = round(self._steps() / max(self._total(), 1) * width)
        return f"[{'#' * done}{'.' * (width - done)}] {line}"


def recorded_step(run_dir: Path) -> int:
    """Return the env step of the last complete row of metrics.csv, 0 without one."""
    try:
        with (run_dir / "metrics.csv").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    first = lines[-1].partition(b",")[0] if lines else b""
    return int(first) if first.isdigit() else 0
