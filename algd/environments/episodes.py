"""One environment that lives on: seeds its episodes, restarts ended ones, records and replays.

In: actions. Out: transitions whose successor is the true one, and the record of each ended
episode. The vector environments run one `EpisodeRunner` per environment, in this process or in a
worker, and therefore produce the same numbers.
"""

from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from algd.environments.gymnasium import CostEnv
from algd.errors import EnvironmentFault

Float32Array = NDArray[np.float32]


def episode_seed(seed: int, env_index: int, episode_index: int) -> int:
    """Return the seed of one episode, in [0, 2^32).

    It is the first 32-bit word of `numpy.random.SeedSequence([seed, env_index, episode_index])`:
    a function of these three alone, so that any episode of a run can be repeated.
    """
    return int(np.random.SeedSequence([seed, env_index, episode_index]).generate_state(1)[0])


class EpisodeRecord(NamedTuple):
    """An ended episode; `return_` and `cost` are sums over its steps, in float64."""

    env_index: int
    episode_index: int
    seed: int
    return_: float
    cost: float
    length: int
    terminated: bool


class Transition(NamedTuple):
    """One step of one environment.

    `next_obs` is the successor that the action led to; `obs` is what to act on next, which differs
    where the episode ended: there it is the first observation of the next one.
    """

    next_obs: Float32Array
    obs: Float32Array
    reward: float
    cost: float
    terminated: bool
    truncated: bool
    episode: EpisodeRecord | None


class EpisodeSnapshot(TypedDict):
    """The running episode: JSON-able numbers and two arrays, (T, A) and (O,)."""

    episode_index: int
    seed: int
    actions: Float32Array
    obs: Float32Array
    return_: float
    cost: float


def lost_episode(episode_index: int, *, obs_dim: int, action_dim: int) -> EpisodeSnapshot:
    """Return what makes `EpisodeRunner.restore` start the episode after this one."""
    return {
        "episode_index": episode_index,
        "seed": -1,  # of no episode
        "actions": np.zeros((0, action_dim), np.float32),
        "obs": np.zeros(obs_dim, np.float32),
        "return_": 0.0,
        "cost": 0.0,
    }


class EpisodeRunner:
    """Runs the episodes of one environment, each from its own seed (see `episode_seed`).

    `episode_index` is that of the running episode; the first `reset` starts the one after it.
    """

    def __init__(self, env: CostEnv, *, seed: int, env_index: int, episode_index: int = -1) -> None:
        self.env = env
        self._seed = seed
        self.env_index = env_index
        self.episode_index = episode_index
        self._started = False
        self._actions = np.zeros((env.max_episode_steps, env.action_dim), np.float32)
        self._length = 0
        self._return = 0.0
        self._cost = 0.0
        self._obs = np.zeros(env.obs_dim, np.float32)

    def reset(self) -> Float32Array:
        """Start the next episode and return its first observation; the first one has index 0."""
        return self._start(self.episode_index + 1)

    def step(self, action: Float32Array) -> Transition:
        """Take one step; where it ends the episode, start the next one."""
        if not self._started:
            raise RuntimeError("reset the environment before its first step")
        self._actions[self._length] = action
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        self._length += 1
        self._return += reward
        self._cost += info["cost"]
        self._obs = next_obs
        episode = None
        if terminated or truncated:
            episode = self._record(terminated)
            self._start(self.episode_index + 1)
        return Transition(next_obs, self._obs, reward, info["cost"], terminated, truncated, episode)

    def snapshot(self) -> EpisodeSnapshot:
        """Return what `restore` needs to bring the running episode back."""
        if not self._started:
            raise RuntimeError("reset the environment before taking a snapshot")
        return {
            "episode_index": self.episode_index,
            "seed": self._episode_seed(),
            "actions": self._actions[: self._length].copy(),
            "obs": self._obs.copy(),
            "return_": self._return,
            "cost": self._cost,
        }

    def restore(self, snapshot: EpisodeSnapshot) -> tuple[Float32Array, bool]:
        """Replay the episode of `snapshot`; return the observation and whether that succeeded.

        Success means that the last observation, the return and the cost agree bit for bit.
        Otherwise (another machine, another version of the simulator) the episode is dropped and
        the next one started.
        """
        try:
            replayed = self._replay(snapshot)
        except EnvironmentFault:
            replayed = False
        if replayed:
            return self._obs, True
        return self._start(snapshot["episode_index"] + 1), False

    def _replay(self, snapshot: EpisodeSnapshot) -> bool:
        actions, index = snapshot["actions"], snapshot["episode_index"]
        if snapshot["seed"] != episode_seed(self._seed, self.env_index, index):
            return False
        if len(actions) >= len(self._actions):
            return False
        self._start(index)
        for action in actions:
            if self.step(action).episode is not None:
                return False
        return (
            self._obs.tobytes() == snapshot["obs"].tobytes()
            and self._return == snapshot["return_"]
            and self._cost == snapshot["cost"]
        )

    def _episode_seed(self) -> int:
        return episode_seed(self._seed, self.env_index, self.episode_index)

    def _start(self, episode_index: int) -> Float32Array:
        self.episode_index, self._started = episode_index, True
        self._length, self._return, self._cost = 0, 0.0, 0.0
        self._obs, _ = self.env.reset(seed=self._episode_seed())
        return self._obs

    def _record(self, terminated: bool) -> EpisodeRecord:
        return EpisodeRecord(
            env_index=self.env_index,
            episode_index=self.episode_index,
            seed=self._episode_seed(),
            return_=self._return,
            cost=self._cost,
            length=self._length,
            terminated=terminated,
        )
