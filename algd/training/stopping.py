"""Stopping a run: signals become a wish that the loop grants at its next safe moment.

In: SIGINT (Ctrl-C) and SIGTERM (pre-emption). Out: a flag, and ``Interrupted`` once all is saved.
"""

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint has been written."""

    def __init__(self, run_dir: Path, env_step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {env_step}")
        self.run_dir = run_dir
        self.env_step = env_step
        self.signal_number = signal_number


class StopAsked(Exception):
    """Leaves an evaluation or a video; what it had so far is done again on resume."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> Self:
        self._previous = {}
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
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def raise_if_asked(self) -> None:
        """Raise ``StopAsked`` once a signal has come; cheap enough for every step."""
        if self.signal_number is not None:
            raise StopAsked

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number
