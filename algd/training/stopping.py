"""Stopping a run: signals become a wish that the loop grants at its next safe moment.

In: SIGINT (Ctrl-C) and SIGTERM (pre-emption). Out: a flag, and ``Interrupted`` once all is saved.
Who sends SIGTERM often sends SIGKILL some ten seconds later, so nothing waits longer than that:
what may hang (an environment, a server) has a few seconds left once a stop was asked for.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SECONDS = 2.5  # for what may hang; two of them and a checkpoint fit into ten seconds


_NEXT_SECONDS = 0.5  # for the same thing of the next seed, once one has not answered


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint has been written."""

    def __init__(self, run_dir: Path, env_step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {env_step}")
        self.run_dir = run_dir
        self.env_step = env_step
        self.signal_number = signal_number


class StopAsked(Exception):
    """Leaves an evaluation or a video; what it had so far is done again on resume."""


class StopWhileWaiting(Exception):
    """Leaves what has not answered ``STOP_SECONDS`` after a request to stop."""

    def __init__(self) -> None:
        super().__init__(f"no answer within {STOP_SECONDS:g} s of the request to stop")


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._leave_by: type[Exception] | None = None
        self.patience = STOP_SECONDS  # with servers, of all runs of the process together
        self._alarm_seconds = STOP_SECONDS
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever owns it handles signals
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if signal.SIGALRM in self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def raise_if_asked(self) -> None:
        """Raise ``StopAsked`` once a signal has come; cheap enough for every step."""
        if self.signal_number is not None:
            raise StopAsked

    @contextmanager
    def patiently(self) -> Iterator[float]:
        """Give the seconds that a server may take after a stop; what is taken is gone."""
        began = time.monotonic()
        try:
            yield self.patience
        finally:
            self.patience = max(self.patience - (time.monotonic() - began), 0.0)

    @contextmanager
    def bounded(self, leave_by: type[Exception] = StopWhileWaiting) -> Iterator[None]:
        """Raise ``leave_by`` in what runs inside, a while after a stop was asked for.

        It reaches Python code and system calls; of a loop in C only a second signal is the end.
        """
        self._leave_by = leave_by
        try:
            if self.signal_number is not None:
                self._set_alarm()
            yield
        finally:
            self._leave_by = None

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
        if self._leave_by is not None:
            self._set_alarm()

    def _set_alarm(self) -> None:
        """Wake this thread up in a while; SIGALRM is whoever's it was until a stop is asked for."""
        if not self._previous:
            return  # not the main thread
        if signal.SIGALRM not in self._previous:
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._wake_up)
        signal.setitimer(signal.ITIMER_REAL, self._alarm_seconds)

    def _wake_up(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        leave_by, self._leave_by = self._leave_by, None
        if leave_by is not None:
            self._alarm_seconds = _NEXT_SECONDS
            raise leave_by
