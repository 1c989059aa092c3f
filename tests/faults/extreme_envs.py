"""Environments at the edge of what numbers can do; importing registers them in gymnasium."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class ExtremeEnv(gymnasium.Env):
    """The observation is ``obs`` whatever happens; reward and cost are constants.

    Args:
        horizon is the registration's; ``bound`` is that of the two actions, ``length`` the step
        that terminates an episode.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        reward: float = 0.0,
        cost: float = 1.0,
        obs: float = 0.0,
        bound: float = 1.0,
        length: int = 10**9,
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = Box(-bound, bound, (2,), np.float64)
        self.reward, self.cost, self.obs, self.length = reward, cost, obs, length
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.full(3, self.obs), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.steps += 1
        ended = self.steps == self.length
        return np.full(3, self.obs), self.reward, ended, False, {"cost": self.cost}


if "Extreme-v0" not in gymnasium.registry:
    gymnasium.register("Extreme-v0", "faults.extreme_envs:ExtremeEnv", max_episode_steps=10)
