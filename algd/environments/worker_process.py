"""The parent's side of one worker of a `SubprocessVectorEnv`: its process and its line.

In: commands, and the seconds that an answer may take. Out: the bytes of the answers; what the
worker reports, or its death, is raised.
"""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

import numpy as np
from numpy.typing import NDArray

from algd.environments.line import Line
from algd.environments.make import EnvConfig
from algd.environments.subprocess_worker import Command, Reply, serve
from algd.errors import ConfigError, EnvironmentCrash, EnvironmentFault

JOIN_SECONDS = 2.0


class WorkerProcess:
    """A worker of the environments `indices`, consecutive ones, started on construction."""

    def __init__(
        self, config: EnvConfig, seed: int, indices: list[int], episodes: NDArray[np.int64]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.indices = indices
        self.num_envs = len(indices)
        self.rows = slice(indices[0], indices[-1] + 1)
        self._timeout = config.worker_timeout
        ours, theirs = context.Pipe()
        self._line, self._awake = Line(ours), config.vector == "parallel"
        self._process: BaseProcess = context.Process(
            target=serve, args=(theirs, config, seed, indices, episodes.tolist()), daemon=True
        )
        self._process.start()
        theirs.close()
        self._allowed = self._timeout
        self._deadline = time.monotonic() + self._allowed

    def send(self, command: Command, payload: bytes = b"", *, calls: int = 1) -> None:
        """Give an order; its answer may take `env.worker_timeout` for each of so many calls.

        Raises:
            EnvironmentCrash: the worker has ended.
        """
        self._allowed = calls * self._timeout
        self._deadline = time.monotonic() + self._allowed
        try:
            self._line.send(command + payload)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> bytes:
        """Return the answer to the last order.

        Raises:
            EnvironmentCrash: the worker has ended, or does not answer in time.
            ConfigError, EnvironmentFault, RuntimeError: its answer is one.
        """
        try:
            # Awake only where this process has a core of its own.
            if not self._line.wait_until(self._deadline, awake=self._awake):
                raise EnvironmentCrash(
                    f"{self._name()} did not answer within {self._allowed:g} s (env.worker_timeout)"
                )
            message = self._line.receive()
        except (EOFError, OSError) as error:
            raise self._death() from error
        reply, payload = message[:1], message[1:]
        if reply == Reply.DONE:
            return payload
        kinds = {Reply.CONFIG_ERROR: ConfigError, Reply.FAULT: EnvironmentFault}
        raise kinds.get(Reply(reply), RuntimeError)(payload.decode())

    def ask_to_end(self) -> None:
        """Order the worker to close its environments and end."""
        with suppress(OSError):  # it may have ended already
            self._line.send(Command.CLOSE)

    def end(self, deadline: float) -> None:
        """Wait for its end until `time.monotonic()` is `deadline`, then kill it."""
        self._process.join(max(deadline - time.monotonic(), 0.0))
        self.kill()

    def kill(self) -> None:
        """End the process at once, if it lives."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._line.close()

    def _death(self) -> EnvironmentCrash:
        self._process.join(JOIN_SECONDS)
        return EnvironmentCrash(
            f"{self._name()} ended with exit code {self._process.exitcode} "
            "(a negative one is the signal that killed it)"
        )

    def _name(self) -> str:
        return f"the worker of environments {self.rows.start} to {self.rows.stop - 1}"


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit the mask, so none dies half imported."""
    resource_tracker.ensure_running()  # started later, by the first worker, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
