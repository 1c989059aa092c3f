"""The costs of a step, each 0 or 1, by the package's names.

In: the scene and the contacts after a step. Out: `cost_*` and their indicator `cost_sum`, in the
package's order. Contacts are read once, as pairs of geom ids, and each geom is one bit of a mask:
what touches the agent is then an `or` over the pairs.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from algd.environments.fast.sensing import Scene

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

_AGENT = 1
_KINDS = {"vases": 2, "pillars": 4, "gremlins": 8, "buttons": 16}


class Contacts:
    """Which geoms touch the agent."""

    def __init__(self, task: Any) -> None:
        self._data = task.data
        model = task.model
        names = [model.geom(index).name for index in range(model.ngeom)]
        agent = set(task.agent.body_info.geom_names)
        self._masks = [_AGENT * (name in agent) for name in names]
        for kind, bit in _KINDS.items():
            for index, name in enumerate(names):
                if name.startswith(kind[:-1]):
                    self._masks[index] |= bit
        self._buttons = getattr(task, "buttons", None)
        self._geoms = {name: index for index, name in enumerate(names)}
        self._matter = self._buttons is not None or any(
            item.name in _KINDS and item.is_constrained for item in task._obstacles
        )
        self.touched = 0
        """The bits of `_KINDS` that touch the agent; the goal button counts as no button."""
        self.touches_goal_button = False

    def read(self) -> None:
        """Go through the contacts, if they matter to the task."""
        if not self._matter:
            return
        goal = -1
        if self._buttons is not None:
            goal = self._geoms[f"button{self._buttons.goal_button}"]
        self.touched, self.touches_goal_button = 0, False
        if not self._data.ncon:
            return
        masks = self._masks
        for first, second in self._data.contact.geom.tolist():
            mask = masks[first] | masks[second]
            if mask & _AGENT:
                if goal in (first, second):
                    self.touches_goal_button = True
                    mask &= ~_KINDS["buttons"]
                self.touched |= mask


class Costs:
    """The cost terms of one task."""

    def __init__(self, task: Any, scene: Scene, contacts: Contacts) -> None:
        self._scene, self._contacts = scene, contacts
        self._terms: list[Callable[[dict[str, float]], None]] = []
        for item in task._obstacles:
            term = self._term(item, task)
            if item.is_constrained and term is not None:
                self._terms.append(term)

    def judge(self) -> dict[str, float]:
        """Return each cost of the state that scene and contacts hold, `cost_sum` last."""
        costs: dict[str, float] = {}
        for term in self._terms:
            term(costs)
        costs["cost_sum"] = 1.0 if 1.0 in costs.values() else 0.0
        return costs

    def _term(self, item: Any, task: Any) -> Callable[[dict[str, float]], None] | None:
        contacts = self._contacts
        name = item.name
        if name == "hazards":
            return self._hazards(item)
        if name == "sigwalls":
            return self._boundary(item)
        if name == "vases":
            return self._vases(item, task)
        if name not in _KINDS:
            return None
        bit, key = _KINDS[name], f"cost_{name}"

        def touching(costs: dict[str, float]) -> None:
            costs[key] = 1.0 if contacts.touched & bit else 0.0

        def pressing(costs: dict[str, float]) -> None:
            if item.timer == 0:
                touching(costs)

        return pressing if name == "buttons" else touching

    def _hazards(self, item: Any) -> Callable[[dict[str, float]], None]:
        scene, size = self._scene, item.size

        def inside(costs: dict[str, float]) -> None:
            agent_x, agent_y, _ = scene.agent
            cost = 0.0
            for x, y, _ in scene.fixed["hazards"]:
                x -= agent_x
                y -= agent_y
                if math.sqrt(x * x + y * y) < size:
                    cost = 1.0
                    break
            costs["cost_hazards"] = cost

        return inside

    def _boundary(self, item: Any) -> Callable[[dict[str, float]], None]:
        scene, limit, walls = self._scene, item.locate_factor, item.num

        def outside(costs: dict[str, float]) -> None:
            x, y, _ = scene.agent
            out = abs(x) > limit or (walls == 4 and abs(y) > limit)
            costs["cost_out_of_boundary"] = 1.0 if out else 0.0

        return outside

    def _vases(self, item: Any, task: Any) -> Callable[[dict[str, float]], None]:
        contacts, bit = self._contacts, _KINDS["vases"]
        model, velocities = task.model, task.data.qvel
        joints = [model.joint(f"vase{index}") for index in range(item.num)]
        assert all(joint.type[0] == mujoco.mjtJoint.mjJNT_FREE for joint in joints)
        # A free joint's first three velocities are those of its body's origin.
        rows = np.array([joint.dofadr[0] + np.arange(3) for joint in joints]).ravel()
        threshold = item.velocity_threshold

        def moving(costs: dict[str, float]) -> None:
            costs["cost_vases_contact"] = 1.0 if contacts.touched & bit else 0.0
            speeds = velocities.take(rows).reshape(-1, 3)
            fastest = np.einsum("ij,ij->i", speeds, speeds).max() ** 0.5
            costs["cost_vases_velocity"] = 1.0 if fastest >= threshold else 0.0

        return moving
