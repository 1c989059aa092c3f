"""Environments with one defect each, and cost functions; importing registers them in gymnasium.

`environments.faulty_envs:Counting-v0` is whole: its observation counts the steps of the episode.
"""

import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from algd.environments.episodes import episode_seed

HORIZON = 5


class CountingEnv(gymnasium.Env):
    """Reward 1, cost 0.5; the first observation entry is the step, the second comes of the seed.

    `bad` names the quantity that becomes `value` at step `at`; `ends_at` terminates.
    """

    def __init__(
        self,
        render_mode: str | None = None,
        bad: str = "",
        value: float = float("nan"),
        at: int = 3,
        ends_at: int | None = None,
    ) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)
        self.render_mode = render_mode
        self.bad, self.value, self.at, self.ends_at = bad, value, at, ends_at
        self.steps = 0
        self.mark = 0.0
        self.last_action: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self.mark = float(self.np_random.random())
        if self.bad == "reset":
            raise OSError("no such scene")
        return np.array([0.0, self.mark]), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.last_action = action
        values = {"reward": 1.0, "cost": 0.5, "observation": self.mark}
        if self.bad and self.steps == self.at:
            if self.bad == "step":
                raise IndexError("out of\nrange")
            values[self.bad] = self.value
        observation = np.array([float(self.steps), values["observation"]])
        info = {} if self.bad == "no cost" else {"cost": values["cost"]}
        return observation, values["reward"], self.steps == self.ends_at, False, info


class _SpacesEnv(CountingEnv):
    """Announces other spaces than it has."""

    def __init__(
        self, observation_space: Any = None, action_space: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space


class UnseededEnv(CountingEnv):
    """Draws from entropy at each reset, whatever the seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=None)


class UnluckyEnv(CountingEnv):
    """NaN reward at step 2 of the first episode of environment 1 in a run with `seed`."""

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.unlucky_seed = episode_seed(seed, 1, 0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.bad, self.at = ("reward", 2) if seed == self.unlucky_seed else ("", 0)
        return super().reset(seed=seed)


class OutOfBoundsEnv(CountingEnv):
    """Announces observations in [-1, 1] and counts beyond."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observation_space = Box(-1.0, 1.0, (2,), np.float64)


class WarningEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        warnings.warn("something is\ndeprecated", stacklevel=2)
        return super().step(action)


class InPlaceEnv(CountingEnv):
    """Returns one array that it goes on writing to, and writes to the action it is given."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.state, info = super().reset(seed=seed)
        return self.state, info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action.copy())
        action += 100.0
        self.state[:] = observation
        return self.state, *rest


class MalformedEnv(CountingEnv):
    """Returns `value` in place of `bad`: observation, reward, terminated, truncated, info."""

    def step(self, action: Any) -> Any:
        told = dict(
            zip(
                ("observation", "reward", "terminated", "truncated", "info"),
                super().step(action),
                strict=True,
            )
        )
        return tuple((told | {self.malformed: self.instead}).values())

    def __init__(self, malformed: str = "reward", instead: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.malformed, self.instead = malformed, instead


def distance_and_force(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    """Pay for the way from one observation to the next, and for the action."""
    return float(np.abs(next_obs - obs).sum() + np.abs(action).sum())


def pendulum_cost(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    """Pay for torque above 1, measured in the environment's own units."""
    return float(abs(action[0]) > 1.0)


def twice_and_one(obs: Any, action: Any, next_obs: Any, info: Any) -> float:
    """Change the environment's own cost."""
    return 2.0 * info["cost"] + 1.0


NOT_A_FUNCTION = 3

_HERE = "environments.faulty_envs"
_FLAT = Box(-1.0, 1.0, (2,), np.float32)
for name, kwargs in {
    "DictObservation-v0": {"observation_space": Dict({"speed": _FLAT, "pose": _FLAT})},
    "ImageObservation-v0": {"observation_space": Box(0, 255, (8, 8, 3), np.uint8)},
    "DiscreteAction-v0": {"action_space": Discrete(3)},
    "IntegerAction-v0": {"action_space": Box(-2, 2, (2,), np.int64)},
    "InfiniteAction-v0": {"action_space": Box(-np.inf, np.inf, (2,), np.float32)},
}.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, f"{_HERE}:_SpacesEnv", max_episode_steps=HORIZON, kwargs=kwargs)
for name, entry, steps in (
    ("Counting-v0", "CountingEnv", HORIZON),
    ("Unseeded-v0", "UnseededEnv", HORIZON),
    ("Unlucky-v0", "UnluckyEnv", HORIZON),
    ("OutOfBounds-v0", "OutOfBoundsEnv", HORIZON),
    ("Warning-v0", "WarningEnv", HORIZON),
    ("InPlace-v0", "InPlaceEnv", HORIZON),
    ("Malformed-v0", "MalformedEnv", HORIZON),
    ("Endless-v0", "CountingEnv", None),
):
    if name not in gymnasium.registry:
        gymnasium.register(name, f"{_HERE}:{entry}", max_episode_steps=steps)


class _RenderedEnv(CountingEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def rendered(render_mode: str | None = None) -> gymnasium.Env:
    """Make an environment as an entry point that is a function does, without metadata."""
    return _RenderedEnv(render_mode)


def unbounded(render_mode: str | None = None) -> gymnasium.Env:
    """Make one whose observations have the bounds of float64."""
    env = CountingEnv(render_mode)
    largest = np.finfo(np.float64).max
    env.observation_space = Box(-largest, largest, (2,), np.float64)
    return env


def blind() -> gymnasium.Env:
    """Make one whose entry point takes no render_mode."""
    return CountingEnv()


def flat(render_mode: str | None = None) -> gymnasium.Env:
    """Make one whose second action cannot be chosen."""
    env = CountingEnv(render_mode)
    env.action_space = Box(np.array([-1.0, 2.0]), np.array([1.0, 2.0]), dtype=np.float64)
    return env


for name, make in (
    ("Rendered-v0", rendered),
    ("Unbounded-v0", unbounded),
    ("Blind-v0", blind),
    ("Flat-v0", flat),
):
    if name not in gymnasium.registry:
        gymnasium.register(name, make, max_episode_steps=HORIZON)
