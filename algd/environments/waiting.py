"""Waiting for a pipe: awake at first, then asleep.

To be woken by the kernel takes some 50 us, as long as half a step of a small task; who expects an
answer soon does better to keep looking. How long, is learned: twice as long after each answer that
came meanwhile, half as long after each that did not. Beside a learner that computes between two
steps, or on a machine that others use, a wait is soon almost all asleep.
"""

import select
import time
from multiprocessing.connection import Connection

LEAST_AWAKE, MOST_AWAKE = 50e-6, 2e-3
"""Seconds of a wait spent looking."""


class Waiter:
    """Waits until a connection has something to read, or its other end has closed."""

    def __init__(self, connection: Connection) -> None:
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self.awake = LEAST_AWAKE

    def wait(self) -> None:
        """Wait, awake at first."""
        if not self._look():
            self._poll.poll()

    def wait_until(self, deadline: float, *, awake: bool) -> bool:
        """Wait until `time.monotonic()` is `deadline`; say whether there is something to read."""
        if awake and self._look():
            return True
        return bool(self._poll.poll(1e3 * max(deadline - time.monotonic(), 0.0)))

    def _look(self) -> bool:
        look, end = self._poll.poll, time.perf_counter() + self.awake
        while time.perf_counter() < end:
            if look(0):
                self.awake = min(2 * self.awake, MOST_AWAKE)
                return True
        self.awake = max(self.awake / 2, LEAST_AWAKE)
        return False
