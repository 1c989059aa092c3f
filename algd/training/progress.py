"""What a person sees while a run goes on: one line that redraws itself, or a line now and then.

In: counters after each step. Out: text on stderr. On a terminal the line is redrawn in place;
elsewhere (a log file, a pipe) a plain line is printed rarely. Speeds and the remaining time come
from a recent stretch of wall-clock time with everything in it, evaluation and saving included; not
from before the first update, when steps are many times as fast.
"""

import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_REDRAW_SECONDS = 0.25
_LINE_SECONDS = 30.0
_LINE_FRACTION = 0.05
# Long enough to hold an evaluation and its share of training, short enough to follow a change.
_WINDOW_SECONDS = 120.0
_WINDOW_SAMPLES = 240
_BAR_WIDTH = 20


class SpeedMeter:
    """Steps and updates per second over the last two minutes, or since the first update."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int, int]] = deque()

    def update(self, env_step: int, num_updates: int) -> None:
        """Note the counters now."""
        now = self._clock()
        if self._samples and num_updates > 0 == self._samples[-1][2]:
            self._samples = deque([self._samples[-1]])
        spacing = _WINDOW_SECONDS / _WINDOW_SAMPLES
        if len(self._samples) > 1 and now - self._samples[-2][0] < spacing:
            self._samples.pop()  # the newest sample moves on until it is far enough from the last
        self._samples.append((now, env_step, num_updates))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_SECONDS:
            self._samples.popleft()

    def speeds(self) -> tuple[float, float]:
        """Return steps and updates per second; NaN before two moments are known."""
        if len(self._samples) < 2:
            return math.nan, math.nan
        (start, first_step, first_update) = self._samples[0]
        (_, step, update) = self._samples[-1]
        # To now rather than to the newest sample: a long evaluation counts while it lasts.
        elapsed = max(self._clock() - start, 1e-9)
        return (step - first_step) / elapsed, (update - first_update) / elapsed


class Progress:
    """Progress of one run.

    Args:
        total_steps: env steps of the whole run.
        cost_limit: shown beside the cost, per episode.
        enabled: False prints nothing; speeds are measured all the same.
        label: what the line begins with, where several runs could be meant.
        stream, clock: stderr and monotonic seconds; other ones in tests.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        cost_limit: float,
        enabled: bool = True,
        label: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.cost_limit = cost_limit
        self._label = f"{label}: " if label else ""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._meter = SpeedMeter(clock)
        self._enabled = enabled
        self._redraws = enabled and self._stream.isatty()
        self._env_step = 0
        self._last_line_step: int | None = None
        self._last_time = -float("inf")
        self._shown = False
        self._notices: _NoticesAboveTheBar | None = None

    def update(self, env_step: int, num_updates: int) -> bool:
        """Note the counters; True when a line is due, for which ``draw`` wants the values."""
        self._env_step = env_step
        self._meter.update(env_step, num_updates)
        if not self._enabled:
            return False
        waited = self._clock() - self._last_time
        if self._redraws:
            return waited >= _REDRAW_SECONDS
        if self._last_line_step is None:
            return True
        advanced = env_step - self._last_line_step
        return waited >= _LINE_SECONDS or advanced >= _LINE_FRACTION * self.total_steps

    def speeds(self) -> tuple[float, float]:
        """Return env steps and updates per second, recently."""
        return self._meter.speeds()

    def draw(
        self, *, episode_return: float | None, cost: float | None, multiplier: float | None
    ) -> None:
        """Show the line; None stands for a value that is not known yet."""
        self._last_time = self._clock()
        self._last_line_step = self._env_step
        line = self._line(episode_return, cost, multiplier)
        if self._redraws:
            if self._notices is None:  # not before: of several runs only one draws its line
                self._notices = _NoticesAboveTheBar(self)
                logging.getLogger("algd").addHandler(self._notices)
            self._stream.write(f"\r\x1b[K{self._fitted(line)}")
            self._shown = True
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def write(self, text: str) -> None:
        """Print a line of text above the bar."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._shown = False
        self._stream.write(f"{text}\n")
        self._stream.flush()
        self._last_time = -float("inf")

    def close(self) -> None:
        """Leave the last line standing and the cursor below it."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = False
        if self._notices is not None:
            logging.getLogger("algd").removeHandler(self._notices)
            self._notices = None

    def _line(
        self, episode_return: float | None, cost: float | None, multiplier: float | None
    ) -> str:
        fraction = min(self._env_step / self.total_steps, 1.0)
        steps, updates = self.speeds()
        left = (self.total_steps - self._env_step) / steps if steps > 0 < updates else None
        return (
            f"{self._label}{fraction:4.0%} {self._env_step}/{self.total_steps} steps, "
            f"{_speed(steps)} steps/s, "
            f"{_speed(updates)} updates/s, {_duration(left)} left, "
            f"return {_number(episode_return, '.2f')}, "
            f"cost {_number(cost, '.2f')}/{self.cost_limit:g}, "
            f"multiplier {_number(multiplier, '.3g')}"
        )

    def _fitted(self, line: str) -> str:
        """Put a bar before the line where the terminal has room for it; never wrap."""
        room = shutil.get_terminal_size().columns - 1
        width = min(_BAR_WIDTH, room - len(line) - 3)
        if width < _BAR_WIDTH // 2:
            return line[:room]
        done = round(min(self._env_step / self.total_steps, 1.0) * width)
        return f"[{'#' * done}{'.' * (width - done)}] {line}"


class _NoticesAboveTheBar(logging.Handler):
    """Keeps warnings from being printed into the middle of the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.write(self.format(record))


def _speed(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    """Return h:mm:ss, or m:ss below an hour."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
