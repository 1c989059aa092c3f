"""An environment that dies in one chosen episode; importing registers it in gymnasium."""

import ctypes
import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from algd.environments.episodes import episode_seed

HORIZON = 5


class CrashingEnv(gymnasium.Env):
    """Reward and cost 1 per step; the observation is the step and a number of the episode's seed.

    In step 3 of the episodes whose seeds are those of ``episodes`` of environment ``index`` it does
    ``how``: segfault, killed, exception, or hang; ``reset`` raises where such an episode starts.
    ``always`` does it in every episode. A step takes ``seconds``.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(
        self,
        render_mode: str | None = None,
        how: str = "",
        index: int = 1,
        episode: int = 1,
        always: bool = False,
        seconds: float = 0.0,
    ) -> None:
        self.render_mode = render_mode
        self.how, self.always, self.seconds = how, always, seconds
        self.doomed_seed = episode_seed(0, index, episode)
        self.steps, self.doomed, self.mark = 0, False, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self.doomed = self.always or seed == self.doomed_seed
        if self.doomed and self.how == "reset":
            raise ZeroDivisionError("no layout")
        self.mark = float(self.np_random.random())
        return np.array([0.0, self.mark], np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        time.sleep(self.seconds)
        if self.doomed and self.steps == 3:
            if self.how == "segfault":
                ctypes.string_at(0)
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "hang":
                time.sleep(3600)
            raise ZeroDivisionError("the physics blew up")
        observation = np.array([self.steps, self.mark], np.float32)
        return observation, 1.0, False, False, {"cost": 1.0}


if "Crashing-v0" not in gymnasium.registry:
    gymnasium.register("Crashing-v0", "faults.crashing_envs:CrashingEnv", max_episode_steps=HORIZON)
