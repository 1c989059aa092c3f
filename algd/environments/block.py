"""Consecutive environments of a vector, stepped one after another in one process.

In: their rows of the actions. Out: one record per environment, of `transition_dtype`. Every kind of
vector environment is made of such blocks: one in this process, or one in each worker.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from algd.environments.episodes import EpisodeRecord, EpisodeRunner, EpisodeSnapshot, Transition
from algd.environments.make import EnvConfig, make_env
from algd.errors import EnvironmentCrash, EnvironmentFault

Float32Array = NDArray[np.float32]


def transition_dtype(obs_dim: int) -> np.dtype[np.void]:
    """Return the record of one transition.

    Where `dropped` is set, the environment crashed in this step and only `obs` counts; the last
    five fields count where the episode ended.
    """
    return np.dtype(
        [
            ("next_obs", np.float32, (obs_dim,)),
            ("obs", np.float32, (obs_dim,)),
            ("reward", np.float32),
            ("cost", np.float32),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("dropped", np.bool_),
            ("episode_index", np.int64),
            ("seed", np.int64),
            ("length", np.int64),
            ("episode_return", np.float64),
            ("episode_cost", np.float64),
        ]
    )


class Rows:
    """Records of `transition_dtype`, (N,), with a view of each field that every step writes."""

    def __init__(self, records: NDArray[np.void]) -> None:
        self.records = records
        self.next_obs, self.obs = records["next_obs"], records["obs"]
        self.reward, self.cost = records["reward"], records["cost"]
        self.terminated, self.truncated = records["terminated"], records["truncated"]
        self.dropped = records["dropped"]

    def write(self, index: int, transition: Transition) -> None:
        """Fill one record."""
        next_obs, obs, reward, cost, terminated, truncated, episode = transition
        self.next_obs[index], self.obs[index] = next_obs, obs
        self.reward[index], self.cost[index] = reward, cost
        self.terminated[index], self.truncated[index] = terminated, truncated
        self.dropped[index] = False
        if episode is not None:
            record = self.records[index]
            record["episode_index"], record["seed"] = episode.episode_index, episode.seed
            record["length"] = episode.length
            record["episode_return"], record["episode_cost"] = episode.return_, episode.cost

    def drop(self, rows: slice, obs: Float32Array) -> None:
        """Say of `rows` that their episodes were lost, and what to act on next."""
        self.records[rows] = np.zeros((), self.records.dtype)
        self.obs[rows] = obs
        self.dropped[rows] = True

    def ended(self) -> list[int]:
        """Return the rows whose episode ended in this step."""
        # Lists of plain values, since on a few of them numpy's reductions take ten times as long.
        ends = zip(self.terminated.tolist(), self.truncated.tolist(), strict=True)
        return [index for index, end in enumerate(ends) if True in end]

    def lost(self) -> tuple[int, ...]:
        """Return the rows whose episode was lost in this step."""
        return tuple(index for index, dropped in enumerate(self.dropped.tolist()) if dropped)

    def episodes(self) -> list[EpisodeRecord]:
        """Return the episodes that ended, by environment; the first row is environment 0's."""
        return [
            EpisodeRecord(
                env_index=index,
                episode_index=int(self.records[index]["episode_index"]),
                seed=int(self.records[index]["seed"]),
                return_=float(self.records[index]["episode_return"]),
                cost=float(self.records[index]["episode_cost"]),
                length=int(self.records[index]["length"]),
                terminated=bool(self.terminated[index]),
            )
            for index in self.ended()
        ]


class EnvBlock:
    """The environments `indices` of a vector.

    `episode_indices` has for each the last episode before its next one, -1 at the start. Where
    `survives` is set, an environment that raises in a step is made anew and starts its next
    episode.

    All methods raise EnvironmentFault with the index of the environment that failed.
    """

    def __init__(
        self,
        config: EnvConfig,
        seed: int,
        indices: Sequence[int],
        episode_indices: Sequence[int],
        *,
        survives: bool,
    ) -> None:
        self._config = config
        self._survives = survives
        self._runners: list[EpisodeRunner] = []
        try:
            for index, episode in zip(indices, episode_indices, strict=True):
                env = make_env(config)
                self._runners.append(
                    EpisodeRunner(env, seed=seed, env_index=index, episode_index=episode)
                )
        except BaseException:
            self.close()
            raise
        env = self._runners[0].env
        self.sizes = (env.obs_dim, env.action_dim, env.max_episode_steps)

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        observations: list[Float32Array] = []
        for runner in self._runners:
            try:
                observations.append(runner.reset())
            except EnvironmentFault as fault:
                raise EnvironmentFault(self._located(runner, fault)) from fault
        return np.stack(observations)

    def step(self, actions: Float32Array, rows: Rows) -> list[str]:
        """Step each environment; fill its row and return what crashed, in words."""
        crashes: list[str] = []
        for index, (runner, action) in enumerate(zip(self._runners, actions, strict=True)):
            try:
                rows.write(index, runner.step(action))
            except EnvironmentFault as fault:
                where = self._located(runner, fault)
                if not (self._survives and isinstance(fault, EnvironmentCrash)):
                    raise EnvironmentFault(where) from fault
                crashes.append(where)
                rows.drop(slice(index, index + 1), self._remade(runner))
        return crashes

    @property
    def episode_indices(self) -> list[int]:
        """Return which episodes are running."""
        return [runner.episode_index for runner in self._runners]

    def snapshot(self) -> list[EpisodeSnapshot]:
        """Return the running episodes."""
        return [runner.snapshot() for runner in self._runners]

    def restore(self, saved: Sequence[EpisodeSnapshot]) -> list[tuple[Float32Array, bool]]:
        """Replay `saved`; return for each the observation and whether that succeeded."""
        restored: list[tuple[Float32Array, bool]] = []
        for runner, one in zip(self._runners, saved, strict=True):
            try:
                restored.append(runner.restore(one))
            except EnvironmentFault as fault:
                raise EnvironmentFault(self._located(runner, fault)) from fault
        return restored

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        for runner in self._runners:
            runner.env.close()

    def _remade(self, runner: EpisodeRunner) -> Float32Array:
        with suppress(Exception):  # it has crashed already
            runner.env.close()
        runner.env = make_env(self._config)
        return runner.reset()

    def _located(self, runner: EpisodeRunner, fault: EnvironmentFault) -> str:
        return f"environment {runner.env_index} of {self._config.num_envs}: {fault}"
