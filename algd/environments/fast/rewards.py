"""The rewards of the navigation tasks, by the package's formulas.

In: the scene after a step, and the task, which remembers the distances of the step before. Out: the
unclipped reward, and whether the goal is reached. `specific_reset` and `update_world` of the
package set what is remembered at resets and new goals.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from algd.environments.fast.costs import Contacts
from algd.environments.fast.sensing import Scene

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

Reward = Callable[[], tuple[float, bool]]


def reward_of(task: Any, scene: Scene, contacts: Contacts) -> Reward:
    """Return the reward of a task of the package, by the family that its class is named after."""
    families = {"Goal": _goal, "Button": _button, "Push": _push, "Circle": _circle, "Run": _run}
    return families[type(task).__name__.partition("Level")[0]](task, scene, contacts)


def _goal(task: Any, scene: Scene, _: Contacts) -> Reward:
    goal, row = task.goal, scene.slices["goal"].start

    def reward() -> tuple[float, bool]:
        distance = _planar(scene.points[row], scene.agent)
        value = (task.last_dist_goal - distance) * goal.reward_distance
        task.last_dist_goal = distance
        reached = distance <= goal.size
        return (value + goal.reward_goal if reached else value), reached

    return reward


def _button(task: Any, scene: Scene, contacts: Contacts) -> Reward:
    buttons, row = task.buttons, scene.slices["goal"].start

    def reward() -> tuple[float, bool]:
        distance = _planar(scene.points[row], scene.agent)
        value = (task.last_dist_goal - distance) * buttons.reward_distance
        task.last_dist_goal = distance
        reached = contacts.touches_goal_button
        return (value + buttons.reward_goal if reached else value), reached

    return reward


def _push(task: Any, scene: Scene, _: Contacts) -> Reward:
    goal, box = task.goal, task.push_box
    goal_row, box_row = scene.slices["goal"].start, scene.slices["push_box"].start

    def reward() -> tuple[float, bool]:
        box_place = scene.points[box_row]
        to_box = _spatial(box_place, scene.agent)
        to_goal = _spatial(box_place, scene.points[goal_row])
        outside = task.last_dist_box > box.null_dist * box.size
        value = (task.last_dist_box - to_box) * box.reward_box_dist * outside
        value += (task.last_box_goal - to_goal) * box.reward_box_goal
        task.last_dist_box, task.last_box_goal = to_box, to_goal
        reached = to_goal <= goal.size
        return (value + goal.reward_goal if reached else value), reached

    return reward


def _circle(task: Any, scene: Scene, _: Contacts) -> Reward:
    model, data = task.model, task.data
    body, velocities = model.body("agent").id, data.qvel
    jacobian = np.zeros((3, model.nv))
    circle_radius, factor = task.circle.radius, task.reward_factor

    def reward() -> tuple[float, bool]:
        x, y, _ = scene.agent
        mujoco.mj_jacBody(model, data, jacobian, None, body)
        u, v, _ = jacobian.dot(velocities).tolist()
        radius = math.sqrt(x * x + y * y)
        value = ((-u * y + v * x) / radius) / (1 + abs(radius - circle_radius))
        return value * factor, False

    return reward


def _run(task: Any, scene: Scene, _: Contacts) -> Reward:
    goal_x, goal_y = task.goal_pos[0]
    way = np.empty(2)

    def reward() -> tuple[float, bool]:
        # Of a thousand metres the last digit counts: numpy's own norm is this product's root.
        way[0], way[1] = scene.agent[0] - goal_x, scene.agent[1] - goal_y
        potential = -math.sqrt(way.dot(way)) * task.reward_factor
        value = potential - float(task.old_potential)
        task.old_potential = potential
        return value, False

    return reward


def _planar(first: list[float], second: list[float]) -> float:
    dx, dy = first[0] - second[0], first[1] - second[1]
    return math.sqrt(dx * dx + dy * dy)


def _spatial(first: list[float], second: list[float]) -> float:
    dx, dy, dz = first[0] - second[0], first[1] - second[1], first[2] - second[2]
    return math.sqrt(dx * dx + dy * dy + dz * dz)
