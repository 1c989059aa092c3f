"""The vector environment whose environments live in worker processes, one worker per core.

In and out as `algd.environments.vector`; the workers' side is `subprocess_worker`. Between the
processes travel raw bytes of numpy arrays: actions one way, records of `transition_dtype` the
other. Workers end with their parent, however it ended. One that dies or does not answer in time is
replaced, up to `env.max_restarts` times; its running episodes are dropped, and said to be.

Workers start by "spawn", so a script that makes such an environment needs the usual
`if __name__ == "__main__":` around its main part.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from algd.environments.episodes import EpisodeRecord, EpisodeSnapshot
from algd.environments.make import EnvConfig
from algd.environments.subprocess_worker import Command, Reply, serve, transition_dtype
from algd.environments.vector import (
    Float32Array,
    StepResult,
    check_actions,
    pack_snapshot,
    unpack_snapshot,
)
from algd.errors import ConfigError, EnvironmentCrash, EnvironmentFault, UserError

_JOIN_SECONDS = 5.0
_log = logging.getLogger("algd")
Part = TypeVar("Part")


class SubprocessVectorEnv:
    """Steps the environments in parallel, each worker a contiguous block of them."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        self.num_envs = config.num_envs
        self._config = config
        self._seed = seed
        workers = min(config.num_envs, len(os.sched_getaffinity(0)))
        blocks = np.array_split(np.arange(config.num_envs), workers)
        self._workers: list[_Worker] = []
        self._crashes = 0
        # Of each environment: the running episode, and the row of one lost between two steps.
        self._running = np.full(config.num_envs, -1)
        self._lost: dict[_Worker, NDArray[np.void]] = {}
        try:
            with _interrupts_held():
                for block in blocks:
                    self._workers.append(
                        _Worker(config, seed, block.tolist(), self._running[block])
                    )
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
        observations = np.frombuffer(b"".join(self._receive()), np.float32)
        self._running += 1
        return observations.reshape(self.num_envs, -1).copy()

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        check_actions(actions, self.num_envs, self.action_dim)
        actions = np.ascontiguousarray(actions, np.float32)
        for worker in self._workers:
            if worker not in self._lost:
                with suppress(EnvironmentCrash):  # found again where its reply is missing
                    worker.send(Command.STEP, actions[worker.rows].tobytes())
        rows = np.concatenate(self._collect(self._step_rows))
        self._running = rows["running"].copy()
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
            dropped=tuple(np.flatnonzero(rows["dropped"]).tolist()),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes (see `VectorCostEnv.snapshot`)."""
        for worker in self._workers:
            with suppress(EnvironmentCrash):
                worker.send(Command.SNAPSHOT)
        parts = self._collect(self._snapshots_of)
        return pack_snapshot(self._config, self._seed, [one for part in parts for one in part])

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back (see `VectorCostEnv.restore`)."""
        saved = unpack_snapshot(self._config, self._seed, snapshot)
        for worker in self._workers:
            worker.send(Command.RESTORE)
            worker.connection.send(saved[worker.rows])
        self._receive()
        restored = [one for worker in self._workers for one in worker.connection.recv()]
        dropped = [index for index, (_, exact) in enumerate(restored) if not exact]
        self._running = np.array([episode["episode_index"] for episode in saved])
        self._running[dropped] += 1
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
        """Take one reply of each worker."""
        return self._collect(lambda worker: worker.receive())

    def _collect(self, take: "Callable[[_Worker], Part]") -> list[Part]:
        """Take something of each worker; raise the first fault after all have answered."""
        parts: list[Part] = []
        faults: list[Exception] = []
        for worker in list(self._workers):
            try:
                parts.append(take(worker))
            except (UserError, RuntimeError) as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
        return parts

    def _step_rows(self, worker: "_Worker") -> NDArray[np.void]:
        """Return a worker's rows of this step; where it was lost, those of a dropped episode."""
        if worker in self._lost:
            return self._lost.pop(worker)
        try:
            payload = worker.receive()
        except EnvironmentCrash as crash:
            return self._replace(worker, crash)[1]
        size = worker.num_envs * self._dtype.itemsize
        if len(payload) > size:
            self._count(payload[size:].decode())
        return np.frombuffer(payload[:size], self._dtype)

    def _snapshots_of(self, worker: "_Worker") -> list[EpisodeSnapshot]:
        try:
            worker.receive()
        except EnvironmentCrash as crash:
            new, rows = self._replace(worker, crash)
            self._lost[new] = rows
            new.send(Command.SNAPSHOT)
            new.receive()
            worker = new
        return worker.connection.recv()

    def _replace(
        self, worker: "_Worker", crash: EnvironmentCrash
    ) -> "tuple[_Worker, NDArray[np.void]]":
        """Put a new worker in the place of a lost one; return it and the rows that say so."""
        worker.kill()
        self._count(str(crash))
        with _interrupts_held():
            new = _Worker(self._config, self._seed, worker.indices, self._running[worker.rows])
        self._workers[self._workers.index(worker)] = new
        new.receive()
        new.send(Command.RESET)
        rows = np.zeros(new.num_envs, self._dtype)
        rows["obs"] = np.frombuffer(new.receive(), np.float32).reshape(new.num_envs, -1)
        rows["running"] = self._running[worker.rows] + 1
        rows["dropped"] = True
        return new, rows

    def _count(self, crash: str) -> None:
        """Say what was lost; raise EnvironmentFault when that has happened too often."""
        self._crashes += 1
        allowed = self._config.max_restarts
        if self._crashes > allowed:
            raise EnvironmentFault(f"{crash}; crash {self._crashes}, env.max_restarts is {allowed}")
        _log.warning(
            "%s; restarted (%d of at most %d), the running episodes there are dropped",
            *(crash, self._crashes, allowed),
        )


class _Worker:
    """The parent's side of one worker."""

    def __init__(
        self, config: EnvConfig, seed: int, indices: list[int], episodes: NDArray[np.int64]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.indices = indices
        self.num_envs = len(indices)
        self.rows = slice(indices[0], indices[-1] + 1)
        self._timeout = config.worker_timeout
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=serve, args=(theirs, config, seed, indices, episodes.tolist()), daemon=True
        )
        self._process.start()
        theirs.close()
        self._deadline = time.monotonic() + self._timeout

    def send(self, command: Command, payload: bytes = b"") -> None:
        self._deadline = time.monotonic() + self._timeout
        try:
            self.connection.send_bytes(command + payload)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> bytes:
        try:
            if not self.connection.poll(max(self._deadline - time.monotonic(), 0.0)):
                raise EnvironmentCrash(
                    f"{self._name()} did not answer within {self._timeout:g} s (env.worker_timeout)"
                )
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
        self.kill()

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _death(self) -> EnvironmentCrash:
        self._process.join(_JOIN_SECONDS)
        return EnvironmentCrash(
            f"{self._name()} ended with exit code {self._process.exitcode} "
            "(a negative one is the signal that killed it)"
        )

    def _name(self) -> str:
        return f"the worker of environments {self.rows.start} to {self.rows.stop - 1}"


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
