"""Safety-Gymnasium's velocity tasks with gymnasium's interface, and states to go back to.

In: a robot and a version. Out: a `gymnasium.Env` with the five-value step, the cost in
`info["cost"]`, and the task's own numbers.
"""

import importlib
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from algd.environments.safety_package import load, mujoco_warnings_logged

STATE_FORMAT = 1
# Two tasks measure their way from where bodies were in the last substep, which no state of MuJoCo
# says.
_PLACES = ("xpos", "xipos")


class VelocityEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.floating[Any]]]):
    """A velocity task with the five-value step of gymnasium, `info["cost"]` and its time limit."""

    def __init__(
        self,
        agent: str,
        version: str,
        max_episode_steps: int,
        render_mode: str | None,
        *,
        fast: bool,
        **kwargs: Any,
    ) -> None:
        self._arguments = (agent, version, max_episode_steps, render_mode, fast, kwargs)
        with mujoco_warnings_logged():
            task_class = _task_class(agent, version, fast=fast)
            self._inner = task_class(render_mode=render_mode, **kwargs)
        self._max_episode_steps = max_episode_steps
        self._steps = 0
        self.action_space = self._inner.action_space
        self.observation_space = self._inner.observation_space
        self.metadata = self._inner.metadata
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start the episode of `seed`."""
        self._steps = 0
        return self._inner.reset(seed=seed, options=options)

    def step(
        self, action: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply `action`, in the task's own units."""
        observation, reward, cost, terminated, truncated, info = self._inner.step(action)
        self._steps += 1
        info["cost"] = cost
        truncated = truncated or self._steps >= self._max_episode_steps
        return observation, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the state between two steps: JSON-able values, numpy arrays and dicts of them.

        Raises:
            RuntimeError: the environment was never reset.
        """
        if not self._started:
            raise RuntimeError("reset the environment before saving its state")
        mujoco, signature = _mujoco_and_signature()
        model, data = self._inner.model, self._inner.data
        physics = np.empty(mujoco.mj_stateSize(model, signature))
        mujoco.mj_getState(model, data, physics, signature)
        return {
            "format": STATE_FORMAT,
            "agent": self._arguments[0],
            "physics": physics,
            **{name: getattr(data, name).copy() for name in _PLACES},
            "stream": self._inner.np_random.bit_generator.state,
            "steps": self._steps,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` of the same task returned, to the last bit.

        Raises:
            ValueError: the state is of another robot or format.
        """
        for key, ours in (("format", STATE_FORMAT), ("agent", self._arguments[0])):
            if state.get(key) != ours:
                raise ValueError(f"the state has {key} {state.get(key)!r}, must be {ours!r}")
        mujoco, signature = _mujoco_and_signature()
        model, data = self._inner.model, self._inner.data
        mujoco.mj_setState(model, data, state["physics"], signature)
        mujoco.mj_forward(model, data)  # for who looks at it; it moves the solver's warm start
        mujoco.mj_setState(model, data, state["physics"], signature)
        for name in _PLACES:
            getattr(data, name)[:] = state[name]
        self._inner.np_random.bit_generator.state = state["stream"]
        self._steps = state["steps"]

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_velocity, self._arguments, self.get_state() if self._started else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.set_state(state)

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB frame; the camera follows the robot."""
        frame: Any = self._inner.render()
        return frame

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._inner.close()

    @property
    def _started(self) -> bool:
        return self._inner._np_random is not None


def _task_class(agent: str, version: str, *, fast: bool) -> Any:
    untouched = load().velocity[agent, version]  # the first thing that says what is not installed
    if not fast:
        return untouched
    from algd.environments.fast.velocity import fast_velocity_class

    return fast_velocity_class(agent, version)


def _mujoco_and_signature() -> tuple[Any, int]:
    mujoco: Any = importlib.import_module("mujoco")  # its functions have no types
    return mujoco, int(mujoco.mjtState.mjSTATE_INTEGRATION)


def _make_velocity(
    agent: str,
    version: str,
    steps: int,
    render_mode: str | None,
    fast: bool,
    kwargs: dict[str, Any],
) -> VelocityEnv:
    return VelocityEnv(agent, version, steps, render_mode, fast=fast, **kwargs)
