"""The vector environment whose environments share this process, stepped by one thread per core.

In and out as `algd.environments.vector`, and the same bits. Worth it where a step spends its time
outside Python: MuJoCo releases the interpreter's lock while it simulates, and the fast navigation
tasks leave little else to do. Nothing travels between processes: each thread writes its rows into
the arrays that `step` returns.

The environments of one block are stepped by the same thread; one made of a user's own code must not
share unguarded state with its siblings.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from algd.environments.episodes import EpisodeRecord
from algd.environments.make import EnvConfig
from algd.environments.vector import (
    Float32Array,
    StepResult,
    SyncVectorEnv,
    check_actions,
    locating,
)

Job = Callable[[range], None]


class ThreadVectorEnv(SyncVectorEnv):
    """Steps the environments in parallel, each thread a contiguous block of them."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        threads = min(config.num_envs, len(os.sched_getaffinity(0)))
        blocks = np.array_split(np.arange(config.num_envs), threads)
        ranges = [range(int(block[0]), int(block[-1]) + 1) for block in blocks]
        # The calling thread steps the first block itself instead of waiting for the others.
        self._own_block = ranges[0]
        self._workers = [_Worker(block) for block in ranges[1:]]

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        observations = np.empty((self.num_envs, self.obs_dim), np.float32)

        def reset_block(block: range) -> None:
            for index in block:
                with locating(index, self.num_envs):
                    observations[index] = self._runners[index].reset()

        self._run(reset_block)
        return observations

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        check_actions(actions, self.num_envs, self.action_dim)
        count = self.num_envs
        next_obs = np.empty((count, self.obs_dim), np.float32)
        obs = np.empty_like(next_obs)
        reward, cost = np.empty(count, np.float32), np.empty(count, np.float32)
        terminated, truncated = np.empty(count, np.bool_), np.empty(count, np.bool_)
        episodes: list[EpisodeRecord | None] = [None] * count

        def step_block(block: range) -> None:
            for index in block:
                with locating(index, count):
                    one = self._runners[index].step(actions[index])
                next_obs[index], obs[index] = one.next_obs, one.obs
                reward[index], cost[index] = one.reward, one.cost
                terminated[index], truncated[index] = one.terminated, one.truncated
                episodes[index] = one.episode

        self._run(step_block)
        ended = [episode for episode in episodes if episode is not None]
        return StepResult(next_obs, obs, reward, cost, terminated, truncated, ended)

    def close(self) -> None:
        """End the threads and close every environment; a second call does nothing."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        super().close()

    def _run(self, job: Job) -> None:
        """Run `job` on every block; raise what the first failing block raised."""
        outcomes: queue.SimpleQueue[tuple[int, Exception | None]] = queue.SimpleQueue()
        for worker in self._workers:
            worker.start(job, outcomes)
        first = _outcome(job, self._own_block)
        ended = [first, *(outcomes.get() for _ in self._workers)]
        failures = {start: error for start, error in ended if error is not None}
        if failures:
            raise failures[min(failures)]


class _Worker:
    """A thread that runs jobs on one block of environments."""

    def __init__(self, block: range) -> None:
        self._block = block
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A daemon, so that an unclosed environment does not keep the program from ending.
        self._thread = threading.Thread(
            target=_serve, args=(block, self._jobs), name=f"envs-{block.start}", daemon=True
        )
        self._thread.start()

    def start(self, job: Job, outcomes: "queue.SimpleQueue[Any]") -> None:
        """Begin `job`; its outcome goes to `outcomes`."""
        self._jobs.put((job, outcomes))

    def end(self) -> None:
        """End the thread once its job is done."""
        self._jobs.put(None)
        self._thread.join()


def _serve(block: range, jobs: "queue.SimpleQueue[Any]") -> None:
    while (order := jobs.get()) is not None:
        job, outcomes = order
        outcomes.put(_outcome(job, block))


def _outcome(job: Job, block: range) -> tuple[int, Exception | None]:
    try:
        job(block)
    except Exception as error:
        return block.start, error
    return block.start, None
