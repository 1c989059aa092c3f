"""What the agent sees: its sensors and, for each kind of object, a lidar of 16 bins.

In: the simulation's data after a step. Out: the package's flat observation, float64. Ids and sensor
addresses are looked up once. The lidar works on plain Python numbers: for the 1 to 21 objects of a
task this is faster than a dozen numpy calls on arrays of that length.
"""

import importlib
from math import atan2, hypot, pi, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

_TURN = 2 * pi


class Scene:
    """Where things are: the agent's pose, and the position of each lidar-observed object.

    `points` are (x, y, z) of the objects that may move, in the order of the task's; `slices` says
    which of them a name has. `fixed` has those of the objects that stay where the layout put them.
    """

    def __init__(self, task: Any) -> None:
        model, data = task.model, task.data
        self._positions, self._matrices = data.xpos, data.xmat
        self._agent = model.body("agent").id
        ids: list[int] = []
        self.slices: dict[str, slice] = {}
        self.fixed: dict[str, list[list[float]]] = {}
        self._hazards: Any = None
        for item in task._obstacles:
            if item.name == "circle":
                self.fixed[item.name] = [[0.0, 0.0, 0.0]]
            elif item.name == "hazards":
                self._hazards = item
            elif item.is_lidar_observed:
                names = body_names(item)
                self.slices[item.name] = slice(len(ids), len(ids) + len(names))
                ids += [model.body(name).id for name in names]
        self._ids = np.array(ids, int)
        self.agent: list[float] = []
        self.matrix: list[float] = []
        self.points: list[list[float]] = []

    def settle(self) -> None:
        """Take, at the start of an episode, what stays where its layout put it."""
        if self._hazards is not None:
            self.fixed["hazards"] = [place.tolist() for place in self._hazards.pos]

    def read(self) -> None:
        """Take from the data what moves."""
        self.agent = self._positions[self._agent].tolist()
        self.matrix = self._matrices[self._agent].tolist()
        self.points = self._positions.take(self._ids, 0).tolist()

    def of(self, name: str) -> list[list[float]]:
        """Return the positions of the objects called `name` in the task."""
        if name in self.fixed:
            return self.fixed[name]
        return self.points[self.slices[name]]


def body_names(item: Any) -> list[str]:
    """Return the names of the bodies whose positions are those of an object of a task."""
    if not hasattr(item, "num"):
        return [item.name]
    suffix = "obj" if item.type == "mocaps" else ""
    return [f"{item.name[:-1]}{index}{suffix}" for index in range(item.num)]


class Observer:
    """Writes the flat observation of one task."""

    def __init__(self, task: Any, scene: Scene) -> None:
        self._scene = scene
        self._sensors = SensorReader(task)
        self._size = task.observation_space.shape[0]
        self._bins = task.lidar_conf.num_bins
        self._reach = float(task.lidar_conf.max_dist)
        self._lidars = [item.name for item in task._obstacles if item.is_lidar_observed]
        self._buttons: Any = getattr(task, "buttons", None)

    def observe(self) -> NDArray[np.float64]:
        """Return a new observation of the state that data and scene hold."""
        observation = np.empty(self._size)
        self._sensors.write(observation)
        scene = self._scene
        bins: list[float] = []
        for name in self._lidars:
            if name == "buttons" and self._buttons.timer != 0:
                bins += [0.0] * self._bins  # right after a press the buttons are not seen
            else:
                bins += lidar(scene.of(name), scene.agent, scene.matrix, self._bins, self._reach)
        observation[self._sensors.size :] = bins
        return observation


def lidar(
    points: list[list[float]], agent: list[float], matrix: list[float], bins: int, reach: float
) -> list[float]:
    """Return the closeness of the nearest object in each of `bins` directions, in [0, 1].

    `matrix` is the agent's rotation, row by row; an object counts as lying on the floor. A bin is
    1 at the agent and 0 from `reach` metres on; an object's two neighbour bins read a share.
    """
    result = [0.0] * bins
    agent_x, agent_y, agent_z = agent
    m00, m01, _, m10, m11, _, m20, m21, _ = matrix
    below_x, below_y = -agent_z * m20, -agent_z * m21
    width = _TURN / bins
    for x, y, _ in points:
        x -= agent_x
        y -= agent_y
        ahead = x * m00 + y * m10 + below_x
        left = x * m01 + y * m11 + below_y
        distance = hypot(ahead, left)
        if distance >= reach:
            continue
        closeness = (reach - distance) / reach
        turned = atan2(left, ahead) % _TURN / width
        index = int(turned)
        share = (turned - index) * closeness
        if index == bins:  # a tiny negative angle is rounded to a full turn
            index = 0
        if closeness > result[index]:
            result[index] = closeness
        after = index + 1 if index + 1 < bins else 0
        if share > result[after]:
            result[after] = share
        share = closeness - share
        if share > result[index - 1]:
            result[index - 1] = share
    return result


class SensorReader:
    """Copies the agent's sensors in the order of the observation.

    Angles become their sine and cosine, quaternions rotation matrices; of the free joint's position
    the height alone is seen.
    """

    def __init__(self, task: Any) -> None:
        model, agent = task.model, task.agent
        info = agent.sensor_info
        self._values = task.data.sensordata
        angles, quaternions = set(info.hinge_pos_names), set(info.ballquat_names)
        copies: list[tuple[int, int]] = []
        hinges: list[tuple[int, int]] = []
        self._quaternions: list[tuple[int, int]] = []
        start = 0
        for name, space in task.obs_info.obs_space_dict.spaces.items():
            if name.endswith("_lidar"):
                continue
            sensor = model.sensor(name)
            address, size = int(sensor.adr[0]), int(sensor.dim[0])
            if name in angles:
                hinges.append((start, address))
            elif name in quaternions:
                self._quaternions.append((start, address))
            else:
                skipped = 2 if name == info.freejoint_pos_name else 0
                copies += [(start + i, address + skipped + i) for i in range(size - skipped)]
            start += prod(space.shape)
        self.size = start
        self._to, self._from = (np.array(ends, int) for ends in zip(*copies, strict=True))
        self._copies_prefix = bool((self._to == np.arange(len(self._to))).all())
        hinge_ends = np.array(hinges, int).reshape(-1, 2)
        self._sines, self._angles = hinge_ends[:, 0], hinge_ends[:, 1]

    def write(self, observation: NDArray[np.float64]) -> None:
        """Fill the first `size` entries of `observation`."""
        values = self._values
        if self._copies_prefix:
            values.take(self._from, out=observation[: len(self._from)], mode="clip")
        else:
            observation[self._to] = values[self._from]
        if len(self._sines):
            angles = values[self._angles]
            observation[self._sines] = np.sin(angles)
            observation[self._sines + 1] = np.cos(angles)
        for start, address in self._quaternions:
            mujoco.mju_quat2Mat(observation[start : start + 9], values[address : address + 4])
