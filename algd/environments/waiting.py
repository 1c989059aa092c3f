"""Waiting for a pipe: awake at first, then asleep.

To be woken by the kernel takes some 50 us, as long as half a step of a small task; who expects an
answer within that time does better to keep looking. Between two looks the core is offered to
whoever else wants it.
"""

import os
import select
import time
from multiprocessing.connection import Connection


class Waiter:
    """Waits until a connection has something to read, or its other end has closed."""

    def __init__(self, connection: Connection) -> None:
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    def wait(self, *, awake: float, timeout: float | None = None) -> bool:
        """Wait for at most `timeout` seconds, the first `awake` of them looking all the time."""
        look = self._poll.poll
        end = time.perf_counter() + awake
        while time.perf_counter() < end:
            if look(0):
                return True
            os.sched_yield()
        return bool(look(None if timeout is None else 1e3 * max(timeout, 0.0)))
