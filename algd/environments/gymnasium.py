"""The contract every environment is brought to: flat observations, actions in [-1, 1], a cost.

In: a `gymnasium.Env` with the five-value step, whose `info["cost"]`, or a given function, is the
cost. Out: `CostEnv`, which rescales actions to the environment's box and checks each number.
"""

import atexit
import copy
import math
import traceback
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from algd.errors import EnvironmentCrash, EnvironmentFault

CostFunction = Callable[[Any, NDArray[Any], Any, Mapping[str, Any]], float]
"""Called as `cost_fn(obs, action, next_obs, info)`, all in the environment's own units."""

HOW_TO_GIVE_COST = (
    'put a number >= 0 into info["cost"] at every step, or set env.cost_fn to "module:function", '
    "called as cost_fn(obs, action, next_obs, info)"
)


_LARGEST = float(np.finfo(np.float32).max)  # what a replay row holds


class CostEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An environment with a cost, on float32 observations and on actions in [-1, 1].

    `step` returns gymnasium's five values and `info["cost"]` is always a finite float >= 0.
    `reset` needs a seed. `original_action_space` is the box that [-1, 1] is mapped onto, linearly;
    an action outside [-1, 1] is clipped. Attributes: `id`; `max_episode_steps`, the length of an
    episode that nothing ends earlier.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        env_id: str,
        max_episode_steps: int,
        cost_fn: CostFunction | None = None,
    ) -> None:
        self.id = env_id
        self.max_episode_steps = max_episode_steps
        self.render_mode = env.render_mode
        self.metadata = env.metadata
        space = _flat_observation_space(env_id, env.observation_space)
        self.original_action_space = _bounded_action_space(env_id, env.action_space)
        with np.errstate(over="ignore"):  # bounds beyond float32 are none
            obs_low, obs_high = space.low.astype(np.float32), space.high.astype(np.float32)
        self.observation_space = Box(obs_low, obs_high, dtype=np.float32)
        shape = cast("tuple[int, ...]", self.original_action_space.shape)
        self.action_space = Box(-1.0, 1.0, shape, np.float32)
        low = self.original_action_space.low.astype(np.float64)
        high = self.original_action_space.high.astype(np.float64)
        # Centre and half range map +-1 to the bounds; in the box [-1, 1] there is nothing to map.
        self._center, self._half_range = (low + high) / 2, (high - low) / 2
        self._rescales = bool((low != -1.0).any() or (high != 1.0).any())
        self._low, self._high = low, high
        self._env = env
        self._cost_fn = cost_fn
        self._raw_observation: Any = None
        self._seed = 0
        self._steps = 0
        self._closes_at_exit = False

    @property
    def obs_dim(self) -> int:
        """Number of observation entries."""
        return cast("tuple[int, ...]", self.observation_space.shape)[0]

    @property
    def action_dim(self) -> int:
        """Number of action entries."""
        return cast("tuple[int, ...]", self.action_space.shape)[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the episode of `seed`, an integer in [0, 2^32).

        Raises:
            ValueError: no seed; an unseeded episode could not be repeated.
            EnvironmentCrash: the environment raised.
            EnvironmentFault: its observation cannot be used.
        """
        if seed is None:
            raise ValueError(f"{self.id}: reset needs a seed, an integer in [0, 2^32), got None")
        self._seed, self._steps = seed, 0
        try:
            observation, info = self._env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._failure("reset", error) from error
        self._remember(observation)
        return self._checked_observation(observation), info

    def step(
        self, action: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step with `action` in [-1, 1]^A.

        Raises:
            EnvironmentCrash: the environment raised.
            EnvironmentFault: one of the numbers is NaN or infinite, the cost is negative or
                missing; names the environment, the step and the quantity.
        """
        self._steps += 1
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self._center.shape:
            raise ValueError(
                f"{self.id}: an action has shape {self._center.shape}, got {action.shape}"
            )
        if not math.isfinite(sum(action.tolist())) and not _all_finite(action):
            raise self._fault(f"the agent's action is {action.tolist()}")
        scaled = self._center + self._half_range * action if self._rescales else action
        scaled = np.minimum(np.maximum(scaled, self._low), self._high)  # half of clip's time
        scaled = scaled.astype(self.original_action_space.dtype, copy=False)
        taken = scaled if self._cost_fn is None else scaled.copy()  # an environment may write to it
        try:
            raw, reward, terminated, truncated, info = self._env.step(taken)
        except Exception as error:
            raise self._failure("step", error) from error
        observation = self._checked_observation(raw)
        reward = self._checked_scalar("reward", reward)
        cost = self._checked_scalar("cost", self._cost(scaled, raw, info))
        if cost < 0.0:
            raise self._fault(f"the cost is {cost}", "a cost is a number >= 0")
        info = {**info, "cost": cost}
        self._remember(raw)
        ended = self._checked_flag("terminated", terminated)
        cut = self._checked_flag("truncated", truncated)
        return observation, reward, ended, cut, info

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB frame (height, width, 3); needs `render_mode="rgb_array"`.

        Raises:
            EnvironmentFault: the environment failed to draw one, or returned something else.
        """
        try:
            frame: Any = self._env.render()
        except Exception as error:
            raise self._failure("render", error) from error
        if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3):
            raise self._fault(
                f"render returned {_shown(frame)}", "a frame is height x width x 3 of uint8"
            )
        if frame.shape[2] != 3 or min(frame.shape) < 2:
            raise self._fault(
                f"render returned a frame of shape {frame.shape}", "height x width x 3 is needed"
            )
        if not self._closes_at_exit:
            # Registered after the OpenGL modules registered theirs, so it runs before them: a
            # context freed after its display is gone prints a traceback.
            atexit.register(_close_if_alive, weakref.ref(self))
            self._closes_at_exit = True
        return frame

    def close(self) -> None:
        """Close the environment; a second call does nothing more."""
        self._env.close()

    def _remember(self, raw: Any) -> None:
        """Keep an observation for ``env.cost_fn``; the environment may go on writing to its own."""
        if self._cost_fn is not None:
            self._raw_observation = copy.deepcopy(raw)

    def _cost(self, action: NDArray[Any], next_raw: Any, info: Any) -> Any:
        if not isinstance(info, Mapping):
            raise self._fault(f"info is {_shown(info)}", "it must be a mapping")
        if self._cost_fn is None:
            if "cost" not in info:
                raise self._fault("there is no cost", HOW_TO_GIVE_COST)
            return info["cost"]
        try:
            return self._cost_fn(self._raw_observation, action, next_raw, info)
        except Exception as error:
            raise self._failure("env.cost_fn", error) from error

    def _checked_observation(self, raw: Any) -> NDArray[np.float32]:
        try:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which is reported below
                observation = np.array(raw, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise self._fault(f"the observation is {_shown(raw)}", "it must be numbers") from error
        if observation.shape != self.observation_space.shape:
            raise self._fault(
                f"the observation has shape {observation.shape}, "
                f"announced was {self.observation_space.shape}"
            )
        if not _all_finite(observation):
            index = int(np.argmin(np.isfinite(observation)))
            raise self._fault(f"the observation is {observation[index]} at index {index}")
        return observation

    def _checked_scalar(self, quantity: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise self._fault(
                f"the {quantity} is {_shown(value)}", "it must be one number"
            ) from error
        if not abs(number) <= _LARGEST:
            beyond = "which float32 does not hold" if math.isfinite(number) else ""
            raise self._fault(f"the {quantity} is {number}", beyond)
        return number

    def _checked_flag(self, name: str, value: Any) -> bool:
        try:
            return bool(value)
        except (TypeError, ValueError) as error:
            raise self._fault(f"{name} is {_shown(value)}", "it must be true or false") from error

    def _fault(self, what: str, remedy: str = "") -> EnvironmentFault:
        where = f"at step {self._steps} of the episode with seed {self._seed}"
        return EnvironmentFault(f"{self.id}: {what} {where}{remedy and '; ' + remedy}")

    def _failure(self, call: str, error: Exception) -> EnvironmentFault:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        text = " ".join(str(error).split())
        fault = self._fault(f"{call} raised {type(error).__name__}: {text}{where}")
        return EnvironmentCrash(str(fault)) if call in ("reset", "step") else fault


def _shown(value: object) -> str:
    return " ".join(repr(value).split())[:80]


def _all_finite(values: NDArray[Any]) -> bool:
    return b"\0" not in np.isfinite(values).tobytes()  # half the time of `all`


def _close_if_alive(reference: "weakref.ref[CostEnv]") -> None:
    env = reference()
    if env is not None:
        env.close()


def _flat_observation_space(env_id: str, space: gymnasium.Space[Any]) -> Box:
    if isinstance(space, Box) and len(space.shape) == 1:
        return space
    if isinstance(space, gymnasium.spaces.Dict):
        got = f"a Dict with the keys {sorted(space.spaces)}"
    elif isinstance(space, Box) and len(space.shape) == 3:
        got = f"an image of shape {space.shape}"
    else:
        got = str(space)
    raise EnvironmentFault(
        f"{env_id}: observations must be a flat vector, a Box of shape (n,), got {got}; "
        "register a function that returns it wrapped, for instance in "
        "gymnasium.wrappers.FlattenObservation"
    )


def _bounded_action_space(env_id: str, space: gymnasium.Space[Any]) -> Box:
    if not (isinstance(space, Box) and len(space.shape) == 1):
        raise EnvironmentFault(
            f"{env_id}: actions must be continuous, a Box of shape (n,), got {space}"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise EnvironmentFault(
            f"{env_id}: action bounds must be finite, since the policy acts in [-1, 1], "
            f"got {space}; give its Box finite bounds"
        )
    if not np.issubdtype(space.dtype, np.floating):
        raise EnvironmentFault(
            f"{env_id}: actions must be real numbers, a Box of floats, got {space}, whose integers "
            "would be real actions cut off"
        )
    return space
