"""Drives many masses down the corridor at once, and holds a policy against the safe optimum.

In: a ``CorridorTask``, a policy of observations and starts. Out: returns, collisions and the share
of the optimum of ``algd.analysis.corridor_solution``. The dynamics are those of ``CorridorEnv``,
vectorised over starts; a test holds both together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from algd.analysis.corridor_solution import CorridorSolution
from algd.environments.analytic_corridor import (
    SLIDE_LIMIT,
    START_HALF_WIDTH,
    STEP_SECONDS,
    CorridorTask,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Act = Callable[[NDArray[np.float32]], NDArray[np.floating]]
"""Observations (N, 3), raw, -> actions (N, 1) in [-1, 1]."""


@dataclass(frozen=True)
class CorridorEpisodes:
    """One episode per start.

    starts: (N,) lateral positions, metres. returns: (N,) reward per episode. collisions: (N,)
    steps that cost. above: (N,) whether the obstacle was passed on the side of larger y.
    """

    starts: Floats
    returns: Floats
    collisions: Floats
    above: Bools

    def violation_rate(self, limit: float = 0.0) -> float:
        """Share of episodes with more collisions than the limit."""
        return float((self.collisions > limit).mean())

    def share_of_optimum(self, solution: CorridorSolution) -> float:
        """Mean return over the mean return of the safe optimum from the same starts."""
        return float(self.returns.mean() / solution.value(0, self.starts, 0.0).mean())


def even_starts(count: int) -> Floats:
    """Return starts spread evenly over those of the task."""
    return np.linspace(-START_HALF_WIDTH, START_HALF_WIDTH, count)


def drive(task: CorridorTask, act: Act, starts: Floats) -> CorridorEpisodes:
    """Run one episode from rest at each start (metres)."""

    def choose(step: int, lateral: Floats, velocity: Floats) -> Floats:
        pairs = zip(lateral, velocity, strict=True)
        obs = np.stack([task.observation(step, *pair) for pair in pairs])
        return np.asarray(act(obs), dtype=np.float64)[:, 0]

    return _drive(task, choose, starts)


def drive_safe_optimum(solution: CorridorSolution, starts: Floats) -> CorridorEpisodes:
    """Run the controller of the safe optimum from rest at each start (metres)."""

    def choose(step: int, lateral: Floats, velocity: Floats) -> Floats:
        pairs = zip(lateral, velocity, strict=True)
        return np.array([solution.act(step, *pair) for pair in pairs])

    return _drive(solution.task, choose, starts)


def _drive(
    task: CorridorTask, choose: Callable[[int, Floats, Floats], Floats], starts: Floats
) -> CorridorEpisodes:
    lateral = np.array(starts, dtype=np.float64)
    velocity, returns, collisions = (np.zeros_like(lateral) for _ in range(3))
    above = np.zeros(len(lateral), dtype=np.bool_)
    for step in range(task.num_steps):
        action = np.clip(choose(step, lateral, velocity), -1.0, 1.0)
        limit = task.max_velocity
        velocity = np.clip(velocity + STEP_SECONDS * action, -limit, limit)
        lateral = lateral + STEP_SECONDS * velocity
        velocity = np.where(np.abs(lateral) > SLIDE_LIMIT, 0.0, velocity)
        lateral = np.clip(lateral, -SLIDE_LIMIT, SLIDE_LIMIT)
        returns += task.reward(lateral, action)
        collisions += task.unsafe(step + 1, lateral)
        if step + 1 == sum(task.obstacle_steps) // 2:
            above = lateral > sum(task.obstacle_span) / 2.0
    return CorridorEpisodes(np.asarray(starts, dtype=np.float64), returns, collisions, above)
