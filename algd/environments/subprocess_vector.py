"""The vector environment whose environments live in worker processes, one worker per core.

In and out as `algd.environments.vector`; the workers' side is `subprocess_worker`. Between the
processes travel raw bytes of numpy arrays: actions one way, records of `transition_dtype` the
other. Workers end with their parent, however it ended.

Workers start by "spawn", so a script that makes such an environment needs the usual
`if __name__ == "__main__":` around its main part.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np

from algd.environments.episodes import EpisodeRecord
from algd.environments.make import EnvConfig
from algd.environments.subprocess_worker import Command, Reply, serve, transition_dtype
from algd.environments.vector import (
    Float32Array,
    StepResult,
    check_actions,
    pack_snapshot,
    unpack_snapshot,
)
from algd.errors import ConfigError, EnvironmentFault, UserError

_JOIN_SECONDS = 5.0


class SubprocessVectorEnv:
    """Steps the environments in parallel, each worker a contiguous block of them."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        self.num_envs = config.num_envs
        self._config = config
        self._seed = seed
        workers = min(config.num_envs, len(os.sched_getaffinity(0)))
        blocks = np.array_split(np.arange(config.num_envs), workers)
        self._workers: list[_Worker] = []
        try:
            with _interrupts_held():
                for block in blocks:
                    self._workers.append(_Worker(config, seed, block.tolist()))
            sizes = [np.frombuffer(reply, np.int64) for reply in self._receive()]
        except BaseException:
            self.close()
            raise
        self.obs_dim, self.action_dim, self.max_episode_steps = (int(n) for n in sizes[0])
        self._dtype = transition_dtype(self.obs_dim)

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        for worker in self._workers:
            worker.send(Command.RESET)
        return (
            np.frombuffer(b"".join(self._receive()), np.float32).reshape(self.num_envs, -1).copy()
        )

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        check_actions(actions, self.num_envs, self.action_dim)
        actions = np.ascontiguousarray(actions, np.float32)
        for worker in self._workers:
            worker.send(Command.STEP, actions[worker.rows].tobytes())
        rows = np.frombuffer(b"".join(self._receive()), self._dtype)
        return StepResult(
            next_obs=np.ascontiguousarray(rows["next_obs"]),
            obs=np.ascontiguousarray(rows["obs"]),
            reward=rows["reward"].astype(np.float32),
            cost=rows["cost"].astype(np.float32),
            terminated=rows["terminated"].copy(),
            truncated=rows["truncated"].copy(),
            episodes=[
                _episode_record(rows[index], int(index)) for index in np.flatnonzero(rows["ended"])
            ],
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes (see `VectorCostEnv.snapshot`)."""
        for worker in self._workers:
            worker.send(Command.SNAPSHOT)
        self._receive()
        episodes = [one for worker in self._workers for one in worker.connection.recv()]
        return pack_snapshot(self._config, self._seed, episodes)

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back (see `VectorCostEnv.restore`)."""
        saved = unpack_snapshot(self._config, self._seed, snapshot)
        for worker in self._workers:
            worker.send(Command.RESTORE)
            worker.connection.send(saved[worker.rows])
        self._receive()
        restored = [one for worker in self._workers for one in worker.connection.recv()]
        dropped = [index for index, (_, exact) in enumerate(restored) if not exact]
        return np.stack([obs for obs, _ in restored]), dropped

    def close(self) -> None:
        """End every worker; a second call does nothing."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self) -> list[bytes]:
        """Take one reply of each worker; raise the first fault after all have answered."""
        replies: list[bytes] = []
        faults: list[Exception] = []
        for worker in self._workers:
            try:
                replies.append(worker.receive())
            except (UserError, RuntimeError) as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
        return replies


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, config: EnvConfig, seed: int, indices: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.rows = slice(indices[0], indices[-1] + 1)
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=serve, args=(theirs, config, seed, indices), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, command: Command, payload: bytes = b"") -> None:
        try:
            self.connection.send_bytes(command + payload)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> bytes:
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death() from error
        reply, payload = Reply(message[:1]), message[1:]
        if reply is Reply.DONE:
            return payload
        kinds = {Reply.CONFIG_ERROR: ConfigError, Reply.FAULT: EnvironmentFault}
        raise kinds.get(reply, RuntimeError)(payload.decode())

    def close(self) -> None:
        with suppress(OSError):  # it may have ended already
            self.connection.send_bytes(Command.CLOSE)
        self._process.join(_JOIN_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _death(self) -> EnvironmentFault:
        self._process.join(_JOIN_SECONDS)
        first, last = self.rows.start, self.rows.stop - 1
        return EnvironmentFault(
            f"the worker of environments {first} to {last} ended with exit code "
            f"{self._process.exitcode} (a negative one is the signal that killed it)"
        )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit the mask, so none dies half imported."""
    resource_tracker.ensure_running()  # started later, by the first worker, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _episode_record(row: Any, env_index: int) -> EpisodeRecord:
    return EpisodeRecord(
        env_index=env_index,
        episode_index=int(row["episode_index"]),
        seed=int(row["seed"]),
        return_=float(row["episode_return"]),
        cost=float(row["episode_cost"]),
        length=int(row["length"]),
        terminated=bool(row["terminated"]),
    )
