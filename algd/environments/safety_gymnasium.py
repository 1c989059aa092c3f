"""Safety-Gymnasium 1.0.0 on gymnasium >= 1.2, mujoco 3 and numpy 2.

In: the id of a Safety-Gymnasium task. Out: a `gymnasium.Env` with the five-value step, the cost in
`info["cost"]`, and the task's own numbers.

The package's `__init__` registers some 400 specifications, many of which today's gymnasium cannot
make, and imports modules that need gymnasium < 1 and gymnasium-robotics. So `load` imports the
modules that hold the tasks, without running that `__init__`, under a package object of our own
which leaves `sys.modules` again: another library that imports safety_gymnasium meets it untouched.
The few functions of those modules that fail today are replaced in our copy; each says why.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from algd.environments.rendering import require_gl_backend
from algd.errors import EnvironmentFault

VERSION = "1.0.0"
INSTALL = (
    "install it with: pip install 'gymnasium>=1.2,<2' 'mujoco>=3.3,<4' 'numpy>=2,<3' xmltodict "
    f"pyyaml imageio packaging && pip install --no-deps safety-gymnasium=={VERSION}"
)
AGENTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
RENDER_SIZE = 480

_PACKAGE = "safety_gymnasium"
_NAVIGATION_STEPS = {"Goal": 1000, "Button": 1000, "Push": 1000, "Circle": 500, "Run": 500}
_VELOCITY_MODULES = {
    "HalfCheetah": "half_cheetah",
    "Hopper": "hopper",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
    "Ant": "ant",
    "Humanoid": "humanoid",
}
_VELOCITY_STEPS = 1000
# The tracking camera stands two metres behind and above the agent; it never leaves it.
_CAMERA = "track"
_MAX_LAYOUT_ATTEMPTS = 100

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class SafetyTask:
    """One task: which robot, how long an episode lasts, and for velocity tasks which module."""

    id: str
    agent: str
    max_episode_steps: int
    velocity_module: str | None = None


def _navigation_tasks() -> Iterator[SafetyTask]:
    for agent in AGENTS:
        for family, steps in _NAVIGATION_STEPS.items():
            for level in (0,) if family == "Run" else (0, 1, 2):
                yield SafetyTask(f"Safety{agent}{family}{level}-v0", agent, steps)


def _velocity_tasks() -> Iterator[SafetyTask]:
    for agent, stem in _VELOCITY_MODULES.items():
        for version in ("v0", "v1"):
            module = f"{_PACKAGE}.tasks.safe_velocity.safety_{stem}_velocity_{version}"
            task_id = f"Safety{agent}Velocity-{version}"
            yield SafetyTask(task_id, agent, _VELOCITY_STEPS, module)


_TASKS = {task.id: task for task in (*_navigation_tasks(), *_velocity_tasks())}


def safety_task_ids() -> tuple[str, ...]:
    """Return the id of every supported task; needs no installed package."""
    return tuple(_TASKS)


@dataclass(frozen=True)
class SafetyPackage:
    """The parts of Safety-Gymnasium that tasks are made of, adapted to today's libraries."""

    builder: ModuleType
    world: ModuleType
    underlying: ModuleType
    base_agent: ModuleType
    velocity: dict[str, type[gymnasium.Env[Any, Any]]]


@functools.cache
def load() -> SafetyPackage:
    """Import Safety-Gymnasium's task modules and adapt them; the result is shared.

    Raises:
        EnvironmentFault: the package or something it needs is missing, or its version is another.
    """
    for name in ("mujoco", _PACKAGE):
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFault(f"{name} is not installed; {INSTALL}")
    installed = importlib.metadata.version("safety-gymnasium")
    if installed != VERSION:
        raise EnvironmentFault(f"safety-gymnasium {installed} is installed; {INSTALL}")
    try:
        with _private_package():
            package = _import_task_modules()
    except ImportError as error:
        raise EnvironmentFault(
            f"safety-gymnasium cannot be imported ({error}); {INSTALL}"
        ) from error
    _adapt(package)
    return package


@contextmanager
def _private_package() -> Iterator[None]:
    """Let `import safety_gymnasium.x` find the files without running the package's `__init__`."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]

    outside = {name: sys.modules.pop(name) for name in ours()}
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(outside)


class _HashableArray(np.ndarray):
    """Lets a colour be the default of a dataclass field, which must be hashable since Python 3.11."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


def _import_task_modules() -> SafetyPackage:
    # Twelve asset dataclasses take their default colour from this table while they are defined.
    colors = importlib.import_module(f"{_PACKAGE}.assets.color").COLOR
    for name, color in colors.items():
        colors[name] = color.view(_HashableArray)
    velocity: dict[str, type[gymnasium.Env[Any, Any]]] = {}
    for task in _velocity_tasks():
        module = importlib.import_module(str(task.velocity_module))
        velocity[task.id] = getattr(module, f"Safety{task.agent}VelocityEnv")
    return SafetyPackage(
        builder=importlib.import_module(f"{_PACKAGE}.builder"),
        world=importlib.import_module(f"{_PACKAGE}.world"),
        underlying=importlib.import_module(f"{_PACKAGE}.bases.underlying"),
        base_agent=importlib.import_module(f"{_PACKAGE}.bases.base_agent"),
        velocity=velocity,
    )


class _IndexTolerantModel:
    """A MuJoCo model whose `jnt` takes the one-element array that the sensor views hand out."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def jnt(self, index: NDArray[np.int32]) -> Any:
        return self._model.jnt(int(index[0]))


def _adapt(package: SafetyPackage) -> None:
    """Replace what fails on today's libraries, in our copy of the package alone."""
    agent_class = package.base_agent.BaseAgent
    engine_class = package.world.Engine
    find_joint_sensors = agent_class._init_jnt_sensors
    read_sensor = agent_class.get_sensor

    def init_joint_sensors(agent: Any) -> None:
        """Find the joint sensors; mujoco no longer takes an array as an index."""
        engine = agent.engine
        agent.engine = engine_class(_IndexTolerantModel(engine.model), engine.data)
        find_joint_sensors(agent)
        agent.engine = engine

    def get_sensor(agent: Any, name: str) -> NDArray[np.float64]:
        """Read a sensor; an angle as a scalar, since numpy >= 2.4 refuses float() of shape (1,)."""
        value = read_sensor(agent, name)
        angle = agent.sensor_conf.sensors_angle_components and (
            name in agent.sensor_info.hinge_pos_names
        )
        return value.reshape(()) if angle else value

    def build_action_space(agent: Any) -> gymnasium.spaces.Box:
        """Build the box of bounds in float64; float32 bounds overflow in today's cast check."""
        bounds = agent.engine.model.actuator_ctrlrange.astype(np.float32).astype(np.float64)
        return gymnasium.spaces.Box(low=bounds[:, 0], high=bounds[:, 1], dtype=np.float64)

    def offscreen_viewer(model: Any, data: Any) -> Any:
        """Open an offscreen viewer; gymnasium >= 1 wants its size said."""
        from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

        size = model.vis.global_
        return OffScreenViewer(model, data, width=size.offwidth, height=size.offheight)

    def log(*parts: object) -> None:
        """Take the place of print: a reward outside its range is a remark, not output."""
        _LOGGER.info(" ".join(str(part) for part in parts))

    agent_class._init_jnt_sensors = init_joint_sensors
    agent_class.get_sensor = get_sensor
    agent_class._build_action_space = build_action_space
    package.underlying.OffScreenViewer = offscreen_viewer
    for module in (package.builder, package.underlying):
        module.print = log  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def _mujoco_warnings_logged() -> Iterator[None]:
    """Log what MuJoCo would print and write into MUJOCO_LOG.TXT: its XML deprecations."""
    import mujoco

    outside = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: _LOGGER.info("mujoco: %s", message))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(outside)


@functools.cache
def _untextured_world_class() -> type[Any]:
    """Build the World that compiles its model without skybox.

    The six images of the skybox take most of a reset and of the memory, and touch no physics.
    """
    world_class = load().world.World
    opening, closing = '<texture type="skybox"', "</texture>"

    class UntexturedWorld(world_class):
        """A world nobody looks at."""

        @property
        def xml_string(self) -> str | None:
            return self._xml_string

        @xml_string.setter
        def xml_string(self, text: str | None) -> None:
            if text is not None:
                before, _, rest = text.partition(opening)
                _, found, after = rest.partition(closing)
                assert found, "the world has no skybox to leave out"
                text = before + after
            self._xml_string = text

    return UntexturedWorld


class NavigationEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """A navigation task with the five-value step of gymnasium and `info["cost"]`.

    Deviation: where the package fails to place a new goal it reports `terminated`; nothing ended in
    the task itself, so it is `truncated` here, with `info["goal_placement_failed"]`.
    Deviation: a layout that starts in violation, or cannot be placed, ends the program in the
    package; here the next seed derived from the same one is tried.
    """

    def __init__(
        self, task: SafetyTask, max_episode_steps: int, render_mode: str | None, **kwargs: Any
    ) -> None:
        self._builder = load().builder.Builder(
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
        world_class = load().world.World if render_mode else _untextured_world_class()
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
        for attempt in range(_MAX_LAYOUT_ATTEMPTS):
            derived = np.random.SeedSequence([seed, attempt]).generate_state(1)[0]
            try:
                return self._builder.reset(seed=int(derived) if attempt else seed)
            except AssertionError as error:
                _LOGGER.info("layout of seed %d, attempt %d: %s", seed, attempt, error)
        raise EnvironmentFault(
            f"no valid layout found for seed {seed} in {_MAX_LAYOUT_ATTEMPTS} attempts"
        )

    def step(
        self, action: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply `action`, in the task's own units."""
        observation, reward, cost, terminated, truncated, info = self._builder.step(action)
        if terminated and self._builder.task.agent.is_alive():
            terminated, truncated = False, True
            info["goal_placement_failed"] = True
        info["cost"] = cost
        return observation, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB frame seen from behind the agent."""
        return self._builder.render()

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for viewer in self._builder.task._viewers.values():
            viewer.close()
        self._builder.task._viewers.clear()


class VelocityEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float64]]):
    """A velocity task with the five-value step of gymnasium, `info["cost"]` and its time limit."""

    def __init__(
        self, task: SafetyTask, max_episode_steps: int, render_mode: str | None, **kwargs: Any
    ) -> None:
        with _mujoco_warnings_logged():
            self._inner = load().velocity[task.id](render_mode=render_mode, **kwargs)
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
        self, action: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Apply `action`, in the task's own units."""
        values: Any = self._inner.step(action)
        observation, reward, cost, terminated, truncated, info = values
        self._steps += 1
        info["cost"] = cost
        truncated = truncated or self._steps >= self._max_episode_steps
        return observation, reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB frame; the camera follows the robot."""
        frame: Any = self._inner.render()
        return frame

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._inner.close()


def make_safety_env(
    env_id: str,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    kwargs: dict[str, Any] | None = None,
) -> tuple[NavigationEnv | VelocityEnv, int]:
    """Make a supported task; return it with the steps of an episode.

    `kwargs` go to the velocity task's constructor, or into the navigation task's configuration
    (such as `{"lidar_conf.num_bins": 32}`). `max_episode_steps` replaces the task's own limit.

    Raises:
        EnvironmentFault: the package is missing, `kwargs` do not fit, or nothing here can render.
    """
    task = _TASKS[env_id]
    steps = max_episode_steps or task.max_episode_steps
    if render_mode is not None:
        require_gl_backend()
    make = NavigationEnv if task.velocity_module is None else VelocityEnv
    try:
        return make(task, steps, render_mode, **(kwargs or {})), steps
    except (TypeError, AssertionError) as error:
        raise EnvironmentFault(f"{env_id} does not accept env.kwargs {kwargs}: {error}") from error
