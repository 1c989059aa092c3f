"""The velocity tasks without what their steps compute for nobody.

In and out: as the package's environments, bit for bit. `step` stays the package's own; what it
calls is replaced: observations without copies of copies, health judged once and on plain numbers,
a body looked up once by name, contact forces only where they are observed.
"""

import functools
import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.safety_package import load

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

# Coordinates of the position that are left out of the observation, unless asked for.
_HIDDEN = {"HalfCheetah": 1, "Hopper": 1, "Walker2d": 1, "Swimmer": 2, "Ant": 2, "Humanoid": 2}
_FASTEST_SEEN = {"Hopper": 10.0, "Walker2d": 10.0}
_OBSERVED_BODIES = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext")


@functools.cache
def fast_velocity_class(agent: str, version: str) -> type[Any]:
    """Build the subclass of the package's task, such as ("Hopper", "v1")."""
    task_class: Any = load().velocity[agent, version]
    hidden, fastest = _HIDDEN[agent], _FASTEST_SEEN.get(agent)

    class FastVelocity(task_class):
        """Steps one velocity task."""

        @functools.cached_property
        def dt(self) -> float:
            return self.model.opt.timestep * self.frame_skip

        @functools.cached_property
        def _parts(self) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
            """What an observation is made of, as views: all but the velocity, and that."""
            data = self.data
            first = hidden if self._exclude_current_positions_from_observation else 0
            names = _OBSERVED_BODIES if agent == "Humanoid" else ()
            return [data.qpos[first:], *(getattr(data, name).ravel() for name in names)], data.qvel

        @functools.cached_property
        def _observes_forces(self) -> bool:
            return agent == "Humanoid" or getattr(self, "_use_contact_forces", False)

        @functools.cached_property
        def _bodies(self) -> dict[str, NDArray[np.float64]]:
            return {}

        def get_body_com(self, body_name: str) -> NDArray[np.float64]:
            if body_name not in self._bodies:
                self._bodies[body_name] = super().get_body_com(body_name)
            return self._bodies[body_name]

        def _step_mujoco_simulation(self, ctrl: NDArray[Any], n_frames: int) -> None:
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, n_frames)
            if self._observes_forces:
                mujoco.mj_rnePostConstraint(self.model, self.data)

        def _get_obs(self) -> NDArray[np.float64]:
            (position, *others), velocity = self._parts
            if fastest is not None:
                velocity = np.minimum(np.maximum(velocity, -fastest), fastest)
            if agent == "Ant" and self._use_contact_forces:
                others = [self.contact_forces.ravel()]
            return np.concatenate((position, velocity, *others))

        def control_cost(self, action: NDArray[Any]) -> Any:
            if agent == "Humanoid":
                action = self.data.ctrl
            return self._ctrl_cost_weight * np.add.reduce(np.square(action))

    if agent in ("HalfCheetah", "Swimmer"):
        return FastVelocity

    class FastFalling(FastVelocity):
        """A task whose robot may fall."""

        @property
        def healthy_reward(self) -> float:
            if self._terminate_when_unhealthy:
                return self._healthy_reward * 1.0
            return super().healthy_reward

        @property
        def is_healthy(self) -> bool:
            return _HEALTHY[agent](self) if agent in _HEALTHY else super().is_healthy

    return FastFalling


def _hopper_is_healthy(task: Any) -> bool:
    _, z, *rest = task.data.qpos.tolist()
    least, most = task._healthy_state_range
    if not all(least < value < most for value in (*rest, *task.data.qvel.tolist())):
        return False
    return _within(z, task._healthy_z_range) and _within(rest[0], task._healthy_angle_range)


def _walker_is_healthy(task: Any) -> bool:
    _, z, angle, *_ = task.data.qpos.tolist()
    return _within(z, task._healthy_z_range) and _within(angle, task._healthy_angle_range)


def _ant_is_healthy(task: Any) -> bool:
    qpos = task.data.qpos
    finite = np.isfinite(qpos).tobytes() + np.isfinite(task.data.qvel).tobytes()
    least, most = task._healthy_z_range
    return b"\0" not in finite and least <= float(qpos[2]) <= most


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] < value < limits[1]


_HEALTHY = {"Hopper": _hopper_is_healthy, "Walker2d": _walker_is_healthy, "Ant": _ant_is_healthy}
