"""Safety-Gymnasium 1.0.0 imported onto gymnasium >= 1.2, mujoco 3 and numpy 2.

In: the installed package. Out: `SafetyPackage`, the modules and classes that tasks are made of.

The package's `__init__` registers some 400 specifications, many of which today's gymnasium cannot
make, and imports modules that need gymnasium < 1 and gymnasium-robotics. So `load` imports the
modules that hold the tasks, without running that `__init__`, under a package object of our own
which leaves `sys.modules` again: another library that imports safety_gymnasium meets it untouched.
(Hence the objects of our copy cannot be pickled; nothing here does.)
The few functions of those modules that fail today are replaced in our copy; each says why.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from algd.errors import EnvironmentFault

VERSION = "1.0.0"
INSTALL = (
    "install it with: pip install 'gymnasium>=1.2,<2' 'mujoco>=3.3,<4' 'numpy>=2,<3' xmltodict "
    f"pyyaml imageio packaging && pip install --no-deps safety-gymnasium=={VERSION}"
)

_PACKAGE = "safety_gymnasium"
_VELOCITY_MODULES = {
    "HalfCheetah": "half_cheetah",
    "Hopper": "hopper",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
    "Ant": "ant",
    "Humanoid": "humanoid",
}
VELOCITY_AGENTS = tuple(_VELOCITY_MODULES)
VELOCITY_VERSIONS = ("v0", "v1")

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class SafetyPackage:
    """The parts of Safety-Gymnasium that tasks are made of, adapted to today's libraries."""

    builder: Any
    world: Any
    underlying: Any
    base_agent: Any
    random_generator: Any
    velocity: dict[tuple[str, str], Callable[..., gymnasium.Env[Any, Any]]]
    """Constructors by robot and version, such as ("Hopper", "v1")."""


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
    """A colour that can be a dataclass default: those must be hashable since Python 3.11."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


def _import_task_modules() -> SafetyPackage:
    # Twelve asset dataclasses take their default colour from this table while they are defined.
    colors = importlib.import_module(f"{_PACKAGE}.assets.color").COLOR
    for name, color in colors.items():
        colors[name] = color.view(_HashableArray)
    velocity: dict[tuple[str, str], Callable[..., gymnasium.Env[Any, Any]]] = {}
    for agent, stem in _VELOCITY_MODULES.items():
        for version in VELOCITY_VERSIONS:
            name = f"{_PACKAGE}.tasks.safe_velocity.safety_{stem}_velocity_{version}"
            module = importlib.import_module(name)
            velocity[agent, version] = getattr(module, f"Safety{agent}VelocityEnv")
    return SafetyPackage(
        builder=importlib.import_module(f"{_PACKAGE}.builder"),
        world=importlib.import_module(f"{_PACKAGE}.world"),
        underlying=importlib.import_module(f"{_PACKAGE}.bases.underlying"),
        base_agent=importlib.import_module(f"{_PACKAGE}.bases.base_agent"),
        random_generator=importlib.import_module(f"{_PACKAGE}.utils.random_generator"),
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
        module.print = log


@contextmanager
def mujoco_warnings_logged() -> Iterator[None]:
    """Log what MuJoCo would print and write into MUJOCO_LOG.TXT: its XML deprecations."""
    mujoco: Any = importlib.import_module("mujoco")
    outside = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: _LOGGER.info("mujoco: %s", message))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(outside)


@functools.cache
def untextured_world_class() -> type[Any]:
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
