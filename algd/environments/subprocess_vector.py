"""The vector environment whose environments live in worker processes, one block of them per core.

In and out as `algd.environments.vector`; the workers' side is `subprocess_worker`. Between the
processes travel raw bytes of numpy arrays: actions one way, records of `transition_dtype` the
other. Workers end with their parent, however it ended. One that dies or does not answer in time is
replaced, up to `env.max_restarts` times; its running episodes are dropped, and said to be.

As "parallel" there is one worker less, and this process steps the last block while the others step
theirs. Of its own block it survives exceptions alone: no signal and no hang.

Workers start by "spawn", so a script that makes such an environment needs the usual
`if __name__ == "__main__":` around its main part.
"""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from algd.environments.block import EnvBlock, Rows, transition_dtype
from algd.environments.episodes import EpisodeSnapshot
from algd.environments.make import EnvConfig
from algd.environments.subprocess_worker import Command, pack_episodes, unpack_episodes
from algd.environments.vector import (
    Float32Array,
    StepResult,
    check_actions,
    pack_lost,
    pack_snapshot,
    step_result,
    unpack_snapshot,
)
from algd.environments.worker_process import JOIN_SECONDS, WorkerProcess, interrupts_held
from algd.errors import EnvironmentCrash, EnvironmentFault, UserError

_log = logging.getLogger("algd")
Part = TypeVar("Part")


class SubprocessVectorEnv:
    """Steps the environments in parallel, each process a contiguous block of them."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        self.num_envs = config.num_envs
        self._config = config
        self._seed = seed
        processes = min(config.num_envs, len(os.sched_getaffinity(0)))
        blocks = [block.tolist() for block in np.array_split(np.arange(config.num_envs), processes)]
        ours = blocks.pop() if config.vector == "parallel" else []
        self._own_rows = slice(config.num_envs - len(ours), config.num_envs)
        self._own: EnvBlock | None = None
        self._workers: list[WorkerProcess] = []
        self._lost: set[WorkerProcess] = set()  # between two steps; the next one says so
        self._crashes = 0
        self._running = np.full(config.num_envs, -1)  # of each environment the running episode
        try:
            with interrupts_held():
                for block in blocks:
                    self._workers.append(WorkerProcess(config, seed, block, self._running[block]))
            if ours:  # made while the workers make theirs
                last = [-1 for _ in ours]
                self._own = EnvBlock(config, seed, ours, last, survives=config.max_restarts > 0)
            sizes = self._collect(lambda worker: np.frombuffer(worker.receive(), np.int64), _sizes)
        except BaseException:
            self.close()
            raise
        self.obs_dim, self.action_dim, self.max_episode_steps = (int(n) for n in sizes[0])
        records = np.zeros(self.num_envs, transition_dtype(self.obs_dim))
        self._rows, self._rows_of_own = Rows(records), Rows(records[self._own_rows])
        self._bytes = records.view(np.uint8).reshape(self.num_envs, -1)

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        for worker in self._workers:
            worker.send(Command.RESET)
        observations = self._collect(self._observations_of, EnvBlock.reset)
        for worker in self._lost:
            self._running[worker.rows] += 1
        self._lost.clear()
        self._running += 1
        return np.concatenate(observations)

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        self.start(actions)
        return self.finish()

    def start(self, actions: Float32Array) -> None:
        """Let the workers begin a step; the caller may do something else meanwhile."""
        check_actions(actions, self.num_envs, self.action_dim)
        self._actions = actions = np.ascontiguousarray(actions, np.float32)
        for worker in self._workers:
            if worker not in self._lost:
                with suppress(EnvironmentCrash):  # found again where its reply is missing
                    worker.send(Command.STEP, actions[worker.rows].tobytes())

    def finish(self) -> StepResult:
        """Step the own block, if there is one, and return what all environments did."""
        self._collect(self._take_rows, lambda block: self._step_own(block, self._actions))
        self._lost.clear()
        result = step_result(self._rows)
        self._running[[e.env_index for e in result.episodes]] += 1
        self._running[list(result.dropped)] += 1
        return result

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes (see `VectorCostEnv.snapshot`)."""
        for worker in self._workers:
            with suppress(EnvironmentCrash):
                worker.send(Command.SNAPSHOT)
        parts = self._collect(self._snapshots_of, EnvBlock.snapshot)
        return pack_snapshot(self._config, self._seed, [one for part in parts for one in part])

    def lost_snapshot(self) -> dict[str, Any]:
        """Return a snapshot that gives them up (see `VectorCostEnv.lost_snapshot`)."""
        return pack_lost(self._config, self._seed, self._running.tolist(), self)

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back (see `VectorCostEnv.restore`)."""
        saved = unpack_snapshot(self._config, self._seed, snapshot)
        for worker in self._workers:
            mine = saved[worker.rows]
            taken = sum(len(episode["actions"]) for episode in mine)  # steps to repeat
            worker.send(Command.RESTORE, pack_episodes(mine), calls=taken + len(mine))
        parts = self._collect(self._restored_by, lambda block: block.restore(saved[self._own_rows]))
        restored = [one for part in parts for one in part]
        dropped = [index for index, (_, exact) in enumerate(restored) if not exact]
        self._running = np.array([episode["episode_index"] for episode in saved])
        self._running[dropped] += 1
        self._lost.clear()
        return np.stack([obs for obs, _ in restored]), dropped

    def close(self) -> None:
        """End every worker and close every environment; a second call does nothing."""
        for worker in self._workers:
            worker.ask_to_end()
        deadline = time.monotonic() + JOIN_SECONDS
        for worker in self._workers:
            worker.end(deadline)
        self._workers.clear()
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _collect(
        self, take: Callable[[WorkerProcess], Part], own: Callable[[EnvBlock], Part]
    ) -> list[Part]:
        """Do this process's share, then take something of each worker.

        Raises the first fault after all have answered.
        """
        ours: list[Part] = []
        own_faults: list[Exception] = []
        if self._own is not None:
            try:
                ours.append(own(self._own))
            except Exception as fault:
                own_faults.append(fault)
        parts: list[Part] = []
        faults: list[Exception] = []
        for worker in list(self._workers):
            try:
                parts.append(take(worker))
            except (UserError, RuntimeError) as fault:
                faults.append(fault)
        for fault in (*faults, *own_faults):
            raise fault
        return parts + ours

    def _observations_of(self, worker: WorkerProcess) -> Float32Array:
        return np.frombuffer(worker.receive(), np.float32).reshape(worker.num_envs, -1)

    def _step_own(self, block: EnvBlock, actions: Float32Array) -> None:
        crashes = block.step(actions[self._own_rows], self._rows_of_own)
        if crashes:
            self._count("; ".join(crashes))

    def _take_rows(self, worker: WorkerProcess) -> None:
        """Take over a worker's rows of this step; where it was lost, they say so already."""
        if worker in self._lost:
            return
        try:
            payload = worker.receive()
        except EnvironmentCrash as crash:
            self._replace(worker, crash)
            return
        bytes_of_rows = self._bytes[worker.rows]
        if len(payload) > bytes_of_rows.size:
            self._count(payload[bytes_of_rows.size :].decode())
        received = np.frombuffer(payload, np.uint8, bytes_of_rows.size)
        bytes_of_rows[...] = received.reshape(bytes_of_rows.shape)

    def _snapshots_of(self, worker: WorkerProcess) -> list[EpisodeSnapshot]:
        try:
            answer = worker.receive()
        except EnvironmentCrash as crash:
            new = self._replace(worker, crash)
            self._lost.add(new)
            new.send(Command.SNAPSHOT)
            answer = new.receive()
        return unpack_episodes(answer, self.action_dim)

    def _restored_by(self, worker: WorkerProcess) -> list[tuple[Float32Array, bool]]:
        answer = worker.receive()
        obs, exact = answer[: -worker.num_envs], answer[-worker.num_envs :]
        rows = np.frombuffer(obs, np.float32).reshape(worker.num_envs, -1)
        return list(zip(rows, map(bool, exact), strict=True))

    def _replace(self, worker: WorkerProcess, crash: EnvironmentCrash) -> WorkerProcess:
        """Put a new worker in the place of a lost one; its rows of this step say so."""
        worker.kill()
        self._count(str(crash))
        with interrupts_held():
            new = WorkerProcess(
                self._config, self._seed, worker.indices, self._running[worker.rows]
            )
        self._workers[self._workers.index(worker)] = new
        new.receive()
        new.send(Command.RESET)
        self._rows.drop(worker.rows, self._observations_of(new))
        return new

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


def _sizes(block: EnvBlock) -> NDArray[np.int64]:
    return np.array(block.sizes, np.int64)
