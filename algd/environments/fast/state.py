"""Save a fast navigation task between two steps, and bring it back to the last bit.

In: the builder. Out: a dict of JSON-able values, numpy arrays and dicts of them; no live objects.
Saved is what a step reads: the layout's poses and the goal's present place (the model), MuJoCo's
integration state (the data), the random stream, and what task and builder remember. Everything else
is derived from these: evaluating the same state twice gives the same bits.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.fast.world import Poses

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

FORMAT = 2

_SIGNATURE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
# What the package's tasks remember from one step to the next, where they have it.
_REMEMBERED = ("last_dist_goal", "last_dist_box", "last_box_goal", "old_potential")


def save(builder: Any) -> dict[str, Any]:
    """Return the state of a builder that was reset."""
    if builder.engine is None:
        raise RuntimeError("reset the environment before saving its state")
    task = builder.task
    poses = task.world.placement.poses
    physics = np.empty(mujoco.mj_stateSize(task.model, _SIGNATURE))
    mujoco.mj_getState(task.model, task.data, physics, _SIGNATURE)
    stream = task.random_generator.random_generator.get_state(legacy=False)
    buttons = getattr(task, "buttons", None)
    return {
        "format": FORMAT,
        "task_id": builder.task_id,
        "bodies": poses.bodies.copy(),
        "mocaps": poses.mocaps.copy(),
        "agent_rotation": poses.agent_rotation,
        "goal": _goal_position(task).copy(),
        "physics": physics,
        "stream_key": stream["state"]["key"].copy(),
        "stream_pos": int(stream["state"]["pos"]),
        "stream_has_gauss": int(stream["has_gauss"]),
        "stream_gauss": float(stream["gauss"]),
        "layout": _copied(task.world_info.layout),
        "reset_layout": _copied(task.world_info.reset_layout),
        "remembered": {
            name: float(getattr(task, name))
            for name in _REMEMBERED
            if getattr(task, name, None) is not None
        },
        "buttons": None if buttons is None else [int(buttons.timer), int(buttons.goal_button)],
        "steps": int(builder.steps),
        "terminated": bool(builder.terminated),
        "truncated": bool(builder.truncated),
        "cost": dict(builder.cost),
    }


def restore(builder: Any, state: dict[str, Any]) -> None:
    """Bring a builder of the same task to a saved state; it need not have been reset.

    Raises:
        ValueError: the state is of another task or format.
    """
    for key, ours in (("format", FORMAT), ("task_id", builder.task_id)):
        if state.get(key) != ours:
            raise ValueError(f"the state has {key} {state.get(key)!r}, must be {ours!r}")
    task = builder.task
    if builder.engine is None:
        builder.build_world()
    engine = builder.bind()
    poses = Poses(state["bodies"].copy(), state["mocaps"].copy(), state["agent_rotation"])
    task.world.placement.place(poses)
    _goal_position(task)[:] = state["goal"]
    mujoco.mj_setState(task.model, task.data, state["physics"], _SIGNATURE)
    mujoco.mj_forward(task.model, task.data)
    task.random_generator.random_generator.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": state["stream_key"], "pos": state["stream_pos"]},
            "has_gauss": state["stream_has_gauss"],
            "gauss": state["stream_gauss"],
        }
    )
    # The generator's layout is the task's own object: a new goal is written into both.
    task.world_info.layout = task.random_generator.layout = _copied(state["layout"])
    task.world_info.reset_layout = _copied(state["reset_layout"])
    for name, value in state["remembered"].items():
        setattr(task, name, value)
    if state["buttons"] is not None:
        task.buttons.timer, task.buttons.goal_button = state["buttons"]
    builder.steps = state["steps"]
    builder.terminated, builder.truncated = state["terminated"], state["truncated"]
    builder.cost = dict(state["cost"])
    engine.scene.settle()
    engine.read()


def _goal_position(task: Any) -> NDArray[np.float64]:
    """Return the model's row for the goal, which a new goal moves; empty where there is none."""
    body = mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_BODY, "goal")
    return task.model.body_pos[body] if body >= 0 else np.empty(0)


def _copied(layout: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(xy) for name, xy in layout.items()}
