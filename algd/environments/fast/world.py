"""A world that is compiled once and then moved: each reset places its bodies anew.

In: the world configuration that the package draws for an episode. Out: a model and data with the
bits that compiling that configuration would give. A layout enters the compiled model only through
the poses set here and through what `mj_setConst`, the compiler's own last step, derives from them.

A world that nobody looks at is compiled without the bodies that nothing touches and nothing moves,
its hazards, circles and boundaries: MuJoCo would work out their poses in every substep. The
package's object for hazards is then told where they are, instead of asking MuJoCo.
"""

import functools
import importlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.safety_package import load, untextured_world_class

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

_CAMERA_DISTANCE = 2.0
_FREE_JOINT_SIZE = 7
# Where the compiler keeps the relative quaternion of a weld; zeros ask `mj_setConst` to derive it.
_WELD_QUATERNION = slice(6, 10)


@functools.cache
def moved_world_class(*, textured: bool) -> type[Any]:
    """Build the World whose `rebuild` compiles the first time and moves bodies afterwards."""
    world_class: type[Any] = load().world.World if textured else untextured_world_class()

    class MovedWorld(world_class):
        """A world of one layout structure: the number and kinds of its objects never change."""

        placement: "Placement | None" = None

        def rebuild(self, config: dict[str, Any] | None = None, state: bool = True) -> None:
            """Bring the world to `config`; the state is always that of a new episode."""
            assert config is not None
            if self.placement is None:
                super().rebuild(config if textured else tangible(config), state)
                hazards = [item for item in self._obstacles if item.name == "hazards"]
                for item in hazards:
                    item.__class__ = _told_class(type(item))
                self.placement = Placement(
                    self.model, self.data, self._agent.z_height, config, hazards
                )
            self.placement.place(Poses.of(config, self._agent.z_height))

    return MovedWorld


def tangible(config: dict[str, Any]) -> dict[str, Any]:
    """Return a world configuration without the fixed bodies that collide with nothing."""
    kept = {
        name: geom
        for name, geom in config["geoms"].items()
        if name == "goal" or geom.get("contype", 1) or geom.get("conaffinity", 1)
    }
    return {**config, "geoms": kept}


@functools.cache
def _told_class(hazards_class: type[Any]) -> type[Any]:
    """Build the package's hazards with positions of their own."""

    class ToldHazards(hazards_class):
        places: NDArray[np.float64]
        """(N, 3), in metres."""

        @property
        def pos(self) -> list[NDArray[np.float64]]:
            return list(self.places.copy())

    return ToldHazards


class Poses:
    """The poses of one layout, each (N, 7): position and quaternion of agent, bodies and mocaps."""

    def __init__(
        self, bodies: NDArray[np.float64], mocaps: NDArray[np.float64], agent_rotation: float
    ) -> None:
        self.bodies = bodies
        self.mocaps = mocaps
        self.agent_rotation = agent_rotation

    @classmethod
    def of(cls, config: Any, z_height: float) -> "Poses":
        """Read them from a world configuration of the package, the agent first."""
        rotation = float(config["agent_rot"])
        rows = [[*config["agent_xy"], z_height, *_quaternion(rotation)]]
        for name in ("free_geoms", "geoms"):
            rows += [[*item["pos"], *_quaternion(item["rot"])] for item in config[name].values()]
        mocaps = [[*item["pos"], *_quaternion(item["rot"])] for item in config["mocaps"].values()]
        return cls(np.array(rows), np.array(mocaps).reshape(-1, _FREE_JOINT_SIZE), rotation)


class Placement:
    """Where the layout enters a compiled model: the ids of what is moved."""

    def __init__(
        self, model: Any, data: Any, z_height: float, config: Any, hazards: list[Any]
    ) -> None:
        self._model, self._data = model, data
        self._hazards = hazards
        self.poses = Poses.of(config, z_height)
        names = ["agent", *config["free_geoms"], *config["geoms"]]
        ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name) for name in names]
        self._hazard_rows = [row for row, name in enumerate(names) if name.startswith("hazard")]
        # The rows of a layout's poses whose bodies were compiled.
        self._rows = np.array([row for row, body in enumerate(ids) if body >= 0])
        self._bodies = np.array(ids)[self._rows]
        mocaps = list(config["mocaps"])
        self._mocap_bodies = np.array([model.body(name).id for name in mocaps], int)
        self._mocap_geoms = np.array([model.geom(name).id for name in mocaps], int)
        self._welds = np.array([model.equality(name).id for name in mocaps], int)
        joints = model.body_jntadr[self._bodies]
        free = (joints >= 0) & (model.jnt_type[joints] == mujoco.mjtJoint.mjJNT_FREE)
        self._free_rows = np.flatnonzero(free)
        self._free_addresses = model.jnt_qposadr[joints[free]][:, None] + np.arange(
            _FREE_JOINT_SIZE
        )
        # The compiler gives a body without mass its own pose, over again, as inertial frame.
        self._massless_rows = np.flatnonzero(model.body_mass[self._bodies] == 0)
        self._massless = self._bodies[self._massless_rows]
        self._camera = model.camera("track").id

    def place(self, poses: Poses) -> None:
        """Move the bodies to `poses`, and the data to the start of an episode there."""
        self.poses = poses
        model, data = self._model, self._data
        for item in self._hazards:
            item.places = poses.bodies[self._hazard_rows, :3]
        bodies = poses.bodies[self._rows]
        model.body_pos[self._bodies] = bodies[:, :3]
        model.body_quat[self._bodies] = bodies[:, 3:]
        model.body_ipos[self._massless] = bodies[self._massless_rows, :3]
        model.body_iquat[self._massless] = bodies[self._massless_rows, 3:]
        for values in (model.qpos0, model.qpos_spring):
            values[self._free_addresses] = bodies[self._free_rows]
        # The geom of a mocap body carries the pose, and alone makes the body's inertial frame.
        model.geom_pos[self._mocap_geoms] = model.body_ipos[self._mocap_bodies] = poses.mocaps[
            :, :3
        ]
        model.geom_quat[self._mocap_geoms] = model.body_iquat[self._mocap_bodies] = poses.mocaps[
            :, 3:
        ]
        model.eq_data[self._welds, _WELD_QUATERNION] = 0.0
        self._turn_camera(poses.agent_rotation)
        mujoco.mj_setConst(model, data)
        # The statistics of a model are the compiler's alone. This one scales the solver's
        # tolerance, and is summed in the compiler's order; the others, extent, centre and mean
        # size, are read by the renderer's clipping planes only and stay those of the first layout.
        model.stat.meaninertia = np.cumsum(model.dof_M0)[-1] / model.nv
        mujoco.mj_resetData(model, data)
        mujoco.mj_forward(model, data)

    def _turn_camera(self, agent_rotation: float) -> None:
        """Put the tracking camera behind the agent, as the package's `World.build` does."""
        theta = agent_rotation + np.pi
        cos, sin = math.cos(theta), math.sin(theta)
        self._model.cam_pos[self._camera] = (
            -_CAMERA_DISTANCE * sin,
            -_CAMERA_DISTANCE * cos,
            _CAMERA_DISTANCE,
        )
        x_axis = np.array([cos, -sin, 0.0])
        y_axis = np.array([sin, cos, 1.0]) / math.sqrt(2.0)
        axes = np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], axis=1)
        mujoco.mju_mat2Quat(self._model.cam_quat[self._camera], axes.ravel())


def _quaternion(rotation: float) -> tuple[float, float, float, float]:
    # numpy's functions, since the package's are, and another library's last bit may differ.
    return float(np.cos(rotation / 2)), 0.0, 0.0, float(np.sin(rotation / 2))
