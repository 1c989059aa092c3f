"""One end of a pipe between two processes that take turns: whole messages, awaited awake at first.

In and out: bytes. One system call sends or takes a message, where `multiprocessing` needs two or
three and several Python calls; at 100 us a step that counts.

To be woken by the kernel takes some 50 us, as long as half a step of a small task; who expects an
answer soon does better to keep looking. How long, is learned: twice as long after each answer that
a wait of the longest kind would have met awake, half as long after each that it would not. Beside a
learner that computes between two steps a wait is soon almost all asleep.
"""

import os
import select
import time
from multiprocessing.connection import Connection

LEAST_AWAKE, MOST_AWAKE = 50e-6, 2e-3
"""Seconds of a wait spent looking."""

_HEADER = 8  # bytes before a message that say its length
_CHUNK = 1 << 16


class Line:
    """An end of a pipe. Each end sends one message and then receives one, or the other way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection  # owns the descriptor
        self._descriptor = connection.fileno()
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self.awake = LEAST_AWAKE

    def send(self, message: bytes) -> None:
        """Send a message; it may be empty.

        Raises:
            OSError: the other end is closed.
        """
        data = len(message).to_bytes(_HEADER, "little") + message
        written = os.write(self._descriptor, data)
        while written < len(data):
            written += os.write(self._descriptor, data[written:])

    def receive(self) -> bytes:
        """Take a message.

        Raises:
            EOFError, OSError: the other end is closed.
        """
        data = self._read(_CHUNK)
        while len(data) < _HEADER:
            data += self._read(_CHUNK)
        missing = _HEADER + int.from_bytes(data[:_HEADER], "little") - len(data)
        if missing == 0:
            return data[_HEADER:]
        parts = [data[_HEADER:]]
        while missing > 0:
            parts.append(self._read(missing))
            missing -= len(parts[-1])
        return b"".join(parts)

    def wait(self) -> None:
        """Wait until there is something to read or the other end is closed, awake at first."""
        start = time.perf_counter()
        if not self._look(start):
            self._poll.poll()
        self._learn(start)

    def wait_until(self, deadline: float, *, awake: bool) -> bool:
        """Wait until `time.monotonic()` is `deadline`; say whether there is something to read."""
        start = time.perf_counter()
        found = awake and self._look(start)
        if not found:
            found = bool(self._poll.poll(1e3 * max(deadline - time.monotonic(), 0.0)))
        self._learn(start)
        return found

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        self._connection.close()

    def _look(self, start: float) -> bool:
        look, end = self._poll.poll, start + self.awake
        while time.perf_counter() < end:
            if look(0):
                return True
        return False

    def _learn(self, start: float) -> None:
        # By the whole wait: who learned from what came while awake would, once asleep, stay so.
        if time.perf_counter() - start < MOST_AWAKE:
            self.awake = min(2 * self.awake, MOST_AWAKE)
        else:
            self.awake = max(self.awake / 2, LEAST_AWAKE)

    def _read(self, most: int) -> bytes:
        data = os.read(self._descriptor, most)
        if not data:
            raise EOFError("the other end of the line is closed")
        return data
