"""Safety-Gymnasium's tasks with gymnasium's interface.

In: the id of a task. Out: a `gymnasium.Env` with the five-value step, the cost in `info["cost"]`,
and the task's own numbers. What makes the package run today is in `safety_package`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from algd.environments.rendering import require_gl_backend
from algd.environments.safety_package import (
    VELOCITY_AGENTS,
    VELOCITY_VERSIONS,
    load,
    untextured_world_class,
)
from algd.environments.velocity import VelocityEnv
from algd.errors import EnvironmentFault

AGENTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
RENDER_SIZE = 480
"""Width and height of a frame, in pixels."""

_PREFIX = "Safety"
_NAVIGATION_STEPS = {"Goal": 1000, "Button": 1000, "Push": 1000, "Circle": 500, "Run": 500}
_VELOCITY_STEPS = 1000
# The tracking camera stands two metres behind and above the agent, and moves with it.
_CAMERA = "track"
_MAX_LAYOUT_ATTEMPTS = 100
# Ids that the package has, or that people look for, and why they are not here.
_UNSUPPORTED = {
    "Vision": "image observations are not supported",
    "Debug": "Debug tasks are steered by keyboard",
    "Gymnasium": "the plain id already has gymnasium's interface",
    "Race": "the textures of the Race tasks are missing from the published package",
    "Fading": "objects fade in images only, which are not supported; as vectors these are the "
    "Goal tasks",
}

# Arguments of the package that change what an observation is; the fast path knows flat ones.
_SLOW_ARGUMENTS = frozenset({"observe_vision", "observation_flatten", "debug"})

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class SafetyTask:
    """One task: its robot, the steps of an episode, and for a velocity task its version."""

    id: str
    agent: str
    max_episode_steps: int
    velocity_version: str | None = None


def _navigation_tasks() -> Iterator[SafetyTask]:
    for agent in AGENTS:
        for family, steps in _NAVIGATION_STEPS.items():
            for level in (0,) if family == "Run" else (0, 1, 2):
                yield SafetyTask(f"{_PREFIX}{agent}{family}{level}-v0", agent, steps)


def _velocity_tasks() -> Iterator[SafetyTask]:
    for agent in VELOCITY_AGENTS:
        for version in VELOCITY_VERSIONS:
            task_id = f"{_PREFIX}{agent}Velocity-{version}"
            yield SafetyTask(task_id, agent, _VELOCITY_STEPS, version)


_TASKS = {task.id: task for task in (*_navigation_tasks(), *_velocity_tasks())}


def safety_task_ids() -> tuple[str, ...]:
    """Return the id of every supported task; needs no installed package."""
    return tuple(_TASKS)


def why_unsupported(env_id: str) -> str | None:
    """Return why an id of Safety-Gymnasium is not supported; None for any other id."""
    if not env_id.startswith(_PREFIX):
        return None
    return next((reason for mark, reason in _UNSUPPORTED.items() if mark in env_id), None)


def _builder_class(fast: bool) -> type[Any]:
    builder: Any = load().builder  # the first thing that says what is not installed
    if not fast:
        return builder.Builder
    from algd.environments.fast.builder import fast_builder_class

    return fast_builder_class()


def _world_class(fast: bool, *, textured: bool) -> type[Any]:
    if not fast:
        return load().world.World if textured else untextured_world_class()
    from algd.environments.fast.world import moved_world_class

    return moved_world_class(textured=textured)


class NavigationEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.floating[Any]]]):
    """A navigation task with the five-value step of gymnasium and `info["cost"]`.

    Deviation: where the package fails to place a new goal it reports `terminated`; nothing ended in
    the task itself, so it is `truncated` here, with `info["goal_placement_failed"]`.
    Deviation: a layout that starts in violation, or cannot be placed, ends the program in the
    package; here the next seed derived from the same one is tried.
    """

    def __init__(
        self,
        task: SafetyTask,
        max_episode_steps: int,
        render_mode: str | None,
        *,
        fast: bool,
        **kwargs: Any,
    ) -> None:
        self._arguments = (task, max_episode_steps, render_mode, fast, kwargs)
        self._builder = _builder_class(fast)(
            task_id=task.id,
            config={"agent_name": task.agent, **kwargs},
            render_mode=render_mode,
            width=RENDER_SIZE,
            height=RENDER_SIZE,
            camera_name=_CAMERA,
        )
        inner = self._builder.task
        inner.num_steps = max_episode_steps
        # With a world present each reset takes the package's path for later resets, so that an
        # episode never depends on whether it is the first of its process.
        world_class = _world_class(fast, textured=render_mode is not None)
        inner.world = world_class(inner.agent, inner._obstacles)
        self.action_space = self._builder.action_space
        self.observation_space = self._builder.observation_space
        self.metadata = self._builder.metadata
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start the episode of `seed`, an integer in [0, 2^32); it is required."""
        assert seed is not None, "the package would seed itself from numpy's global generator"
        reason = ""
        for attempt in range(_MAX_LAYOUT_ATTEMPTS):
            derived = np.random.SeedSequence([seed, attempt]).generate_state(1)[0]
            try:
                return self._builder.reset(seed=int(derived) if attempt else seed, options=options)
            except AssertionError as error:
                reason = str(error)
                _LOGGER.info("layout of seed %d, attempt %d: %s", seed, attempt, reason)
        raise EnvironmentFault(f"no valid layout in {_MAX_LAYOUT_ATTEMPTS} attempts: {reason}")

    def step(
        self, action: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply `action`, in the task's own units."""
        observation, reward, cost, terminated, truncated, info = self._builder.step(action)
        if terminated and self._builder.task.agent.is_alive():
            terminated, truncated = False, True
            info["goal_placement_failed"] = True
        info["cost"] = cost
        return observation, reward, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the state of a fast task: JSON-able values, numpy arrays and dicts of them.

        Raises:
            TypeError: the task is the untouched package, which holds its state in many places.
        """
        self._require_fast()
        from algd.environments.fast.state import save

        return save(self._builder)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` of the same task returned, to the last bit.

        Raises:
            TypeError: as `get_state`.
            ValueError: the state is of another task.
        """
        self._require_fast()
        from algd.environments.fast.state import restore

        restore(self._builder, state)

    def __reduce__(self) -> tuple[Any, ...]:
        self._require_fast()
        started = self._builder.engine is not None
        return _make_navigation, self._arguments, self.get_state() if started else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.set_state(state)

    def _require_fast(self) -> None:
        if not self._arguments[3]:
            raise TypeError("only a task made with fast=True can be saved and pickled")

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB frame seen from behind the agent."""
        return self._builder.render()

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for viewer in self._builder.task._viewers.values():
            viewer.close()
        self._builder.task._viewers.clear()


def _make_navigation(
    task: SafetyTask, steps: int, render_mode: str | None, fast: bool, kwargs: dict[str, Any]
) -> NavigationEnv:
    return NavigationEnv(task, steps, render_mode, fast=fast, **kwargs)


def make_safety_env(
    env_id: str,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    kwargs: dict[str, Any] | None = None,
    fast: bool = True,
) -> tuple[NavigationEnv | VelocityEnv, int]:
    """Make a supported task; return it with the steps of an episode.

    `kwargs` go to the velocity task's constructor (`{"ctrl_cost_weight": 0.0}`), or into what the
    package lets one configure of a navigation task (`{"sim_conf.frameskip_binom_n": 5}`, the
    physics steps per step; also placements_conf, render_conf, floor_conf).
    `max_episode_steps` replaces the task's own limit. `fast` steps a task through
    `algd.environments.fast`, which gives the package's numbers; otherwise through the package.
    Arguments that change what a navigation task's observation is (observe_vision,
    observation_flatten, debug) always take the package.

    Raises:
        EnvironmentFault: the package is missing, `kwargs` do not fit, or nothing here can render.
    """
    task = _TASKS[env_id]
    steps = max_episode_steps or task.max_episode_steps
    if render_mode is not None:
        require_gl_backend()
    kwargs = kwargs or {}
    try:
        if task.velocity_version is not None:
            agent, version = task.agent, task.velocity_version
            return VelocityEnv(agent, version, steps, render_mode, fast=fast, **kwargs), steps
        fast = fast and not _SLOW_ARGUMENTS.intersection(kwargs)
        return NavigationEnv(task, steps, render_mode, fast=fast, **kwargs), steps
    except (TypeError, AssertionError) as error:
        raise EnvironmentFault(f"{env_id} does not accept env.kwargs {kwargs}: {error}") from error
