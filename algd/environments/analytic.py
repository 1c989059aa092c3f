"""Registration of the tasks whose answers are known: nothing in, Gymnasium ids out.

AnalyticBandit1-v0 .. AnalyticBandit8-v0
    optimum and multiplier in closed form; solver ``algd.analysis.bandit_solution``
    AnalyticIslands1-v0, AnalyticIslands2-v0
        density and island masses in closed form; solver ``algd.analysis.islands_solution``
    AnalyticFinite-v0
        five states; multipliers by linear programme; solver ``algd.analysis.finite_solution``
    AnalyticCorridor-v0
        steering around an obstacle; solver ``algd.analysis.corridor_solution``
"""

from dataclasses import dataclass, field
from typing import Any

MAX_BANDIT_DIM = 8


@dataclass(frozen=True)
class AnalyticTask:
    """How one id is registered; ``horizon`` is the episode length in steps."""

    env_id: str
    entry_point: str
    horizon: int
    kwargs: dict[str, Any] = field(default_factory=dict)


ANALYTIC_TASKS: tuple[AnalyticTask, ...] = (
    *(
        AnalyticTask(
            env_id=f"AnalyticBandit{action_dim}-v0",
            entry_point="algd.environments.analytic_bandit:BanditEnv",
            horizon=1,
            kwargs={"action_dim": action_dim},
        )
        for action_dim in range(1, MAX_BANDIT_DIM + 1)
    ),
    *(
        AnalyticTask(
            env_id=f"AnalyticIslands{action_dim}-v0",
            entry_point="algd.environments.analytic_islands:IslandsEnv",
            horizon=1,
            kwargs={"action_dim": action_dim},
        )
        for action_dim in (1, 2)
    ),
    AnalyticTask(
        env_id="AnalyticFinite-v0",
        entry_point="algd.environments.analytic_finite:FiniteEnv",
        horizon=50,
    ),
    AnalyticTask(
        env_id="AnalyticCorridor-v0",
        entry_point="algd.environments.analytic_corridor:CorridorEnv",
        horizon=40,
    ),
)


def register_analytic_tasks() -> tuple[str, ...]:
    """Register every analytic id with Gymnasium, once; return the ids.

    Where an episode ends by itself on its last step, Gymnasium's time limit reports ``truncated``
    on that same step: ``terminated`` and ``truncated`` are then both true.
    """
    import gymnasium

    for task in ANALYTIC_TASKS:
        if task.env_id not in gymnasium.registry:
            gymnasium.register(
                id=task.env_id,
                entry_point=task.entry_point,
                max_episode_steps=task.horizon,
                kwargs=dict(task.kwargs),
                disable_env_checker=True,
                order_enforce=False,
            )
    return tuple(task.env_id for task in ANALYTIC_TASKS)
