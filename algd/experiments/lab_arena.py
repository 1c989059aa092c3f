"""The arena of a navigation task: where things are, and what the robot would see elsewhere.

In: an environment of Safety-Gymnasium's navigation family. Out: the objects of its current layout,
and observations of the robot put at chosen positions. Any other environment has no arena.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.gymnasium import CostEnv

Floats = NDArray[np.float64]

_FREE_JOINT, _SLIDE_JOINT, _HINGE_JOINT = 0, 2, 3  # mujoco's mjtJoint
_DRAWN = ("hazards", "pillars", "vases", "gremlins", "buttons", "goal", "push_box", "circle")
_WALLS = "sigwalls"


@dataclass(frozen=True)
class ArenaObject:
    """A thing on the floor. centre: (x, y), radius: both in metres. name: its kind, plural."""

    name: str
    centre: tuple[float, float]
    radius: float
    costs: bool


@dataclass(frozen=True)
class Arena:
    """A layout in metres: its things, walls as (axis, coordinate), half the side of the floor."""

    objects: tuple[ArenaObject, ...]
    walls: tuple[tuple[str, float], ...]
    half_side: float


def arena_position(env: CostEnv) -> tuple[float, float]:
    """Return (x, y) of the robot in metres; NaN where there is no arena."""
    task = _navigation_task(env)
    if task is None:
        return float("nan"), float("nan")
    position = task.agent.pos
    return float(position[0]), float(position[1])


def read_arena(env: CostEnv) -> Arena | None:
    """Return the current layout; None where the environment has no arena."""
    task = _navigation_task(env)
    if task is None:
        return None
    objects, walls = [], []
    for obstacle in task._obstacles:
        costs = bool(obstacle.is_constrained)
        if obstacle.name == _WALLS:
            # Two walls bound x; where there are four, the others bound y.
            places = obstacle.locations[: obstacle.num]
            walls += [("x", float(x)) if x else ("y", float(y)) for x, y in places]
        elif obstacle.name in _DRAWN:
            size = float(getattr(obstacle, "radius", None) or getattr(obstacle, "size", 0.1))
            objects += [
                ArenaObject(obstacle.name, (float(place[0]), float(place[1])), size, costs)
                for place in _places(obstacle)
            ]
    extents = np.abs(np.asarray(task.placements_conf.extents, dtype=np.float64)).max()
    return Arena(tuple(objects), tuple(walls), half_side=float(extents) + 0.5)


def arena_observations(
    env: CostEnv, places: Floats, headings: Floats
) -> NDArray[np.float32] | None:
    """Return what the robot at rest would observe at (x, y) and each heading, (P, H, O).

    The robot alone is moved, everything else stays; its state is put back. Headings turn robots
    that rotate about a hinge or a free joint. None where the robot's root joint is of another kind.

    Args:
        env: after a reset.
        places: (P, 2) metres.
        headings: (H,) radians, added to the present one.
    """
    task = _navigation_task(env)
    joint = None if task is None else _root_joint(task)
    if task is None or joint is None:
        return None
    qpos, qvel = task.data.qpos.copy(), task.data.qvel.copy()
    kind, address = joint
    rows = []
    try:
        for place in places:
            for heading in headings:
                task.data.qpos[:], task.data.qvel[:] = qpos, 0.0
                _put(task, kind, address, place, float(heading))
                rows.append(np.asarray(task.obs(), dtype=np.float32))
    finally:
        task.data.qpos[:], task.data.qvel[:] = qpos, qvel
        task.obs()  # its forward pass brings every derived quantity back, too
    return np.stack(rows).reshape(len(places), len(headings), -1)


def _navigation_task(env: CostEnv) -> Any:
    builder = getattr(env._env, "_builder", None)
    return None if builder is None else builder.task


def _places(obstacle: Any) -> Floats:
    """Positions of an obstacle as rows; the package gives one, or a list of them."""
    return np.atleast_2d(np.asarray(obstacle.pos, dtype=np.float64))


def _root_joint(task: Any) -> tuple[int, int] | None:
    body = task.model.body("agent")
    first = int(body.jntadr[0])
    kind, address = int(task.model.jnt_type[first]), int(task.model.jnt_qposadr[first])
    return (kind, address) if kind in (_FREE_JOINT, _SLIDE_JOINT) else None


def _put(task: Any, kind: int, address: int, place: Floats, heading: float) -> None:
    mujoco: Any = import_module("mujoco")  # its stubs leave out functions
    qpos = task.data.qpos
    if kind == _FREE_JOINT:
        qpos[address : address + 2] = place
        turn = np.array([np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2)])
        turned = np.empty(4)
        mujoco.mju_mulQuat(turned, turn, qpos[address + 3 : address + 7].copy())
        qpos[address + 3 : address + 7] = turned
        return
    # Slides run along the axes of a body that was itself turned and shifted when it was placed:
    # solve for the two coordinates from where three trial values put it.
    qpos[address + 2] += heading
    corners = []
    for trial in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        qpos[address : address + 2] = trial
        mujoco.mj_kinematics(task.model, task.data)
        corners.append(task.agent.pos[:2].copy())
    axes = np.stack([corners[1] - corners[0], corners[2] - corners[0]], axis=1)
    qpos[address : address + 2] = np.linalg.solve(axes, place - corners[0])
