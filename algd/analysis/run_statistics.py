"""What one training run amounts to: safety and return at its end, and on the way there.

In: arrays of evaluations and training episodes of one run. Out: numbers, NaN where undefined.
Cost is the undiscounted sum over an episode; a policy is safe if its mean cost is <= the limit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class RunSummary:
    """One run in numbers; the order of fields is that of tables.

    final_return, final_cost: mean over the episodes of the last evaluation.
    normalised_cost: final_cost over the limit. safe: final_cost is within the limit.
    episodes_within_limit: share of the last evaluation's episodes.
    training_violations: share of training episodes over the limit. excess_cost: their cost over it,
        added up.
    first_safe_step: of the first evaluation of a trained policy that is safe, infinite if none is.
    return_area: area under the curve of evaluated returns, over its width in steps.
    """

    final_step: int
    final_return: float
    final_cost: float
    cost_limit: float
    normalised_cost: float
    safe: bool
    episodes_within_limit: float
    training_violations: float
    excess_cost: float
    first_safe_step: float
    return_area: float


class Evaluations(NamedTuple):
    """Evaluations of one run, (N,) each: step, mean return, mean cost, share over the limit."""

    steps: np.ndarray
    returns: np.ndarray
    costs: np.ndarray
    violation_rates: np.ndarray


def summarise(
    evaluations: Evaluations,
    episode_costs: np.ndarray,
    *,
    cost_limit: float,
    learning_starts: int = 0,
) -> RunSummary:
    """Return the summary of a run.

    Args:
        evaluations: at least one, in the order of steps.
        episode_costs: (M,) cost of each training episode.
        cost_limit: budget per episode.
        learning_starts: evaluations up to this step are of the untrained policy.
    """
    steps, returns, costs, violation_rates = evaluations
    if len(steps) == 0:
        raise ValueError("evaluations must hold at least one, got none")
    rate, excess = training_violations(episode_costs, cost_limit=cost_limit)
    return RunSummary(
        final_step=int(steps[-1]),
        final_return=float(returns[-1]),
        final_cost=float(costs[-1]),
        cost_limit=cost_limit,
        normalised_cost=normalised_cost(float(costs[-1]), cost_limit=cost_limit),
        safe=bool(costs[-1] <= cost_limit),
        episodes_within_limit=1.0 - float(violation_rates[-1]),
        training_violations=rate,
        excess_cost=excess,
        first_safe_step=first_safe_step(steps, costs, cost_limit=cost_limit, after=learning_starts),
        return_area=area_under_curve(steps, returns),
    )


def normalised_cost(cost: float, *, cost_limit: float) -> float:
    """Return cost in units of the limit: 1 is on the limit; NaN for a limit of 0."""
    return cost / cost_limit if cost_limit > 0 else np.nan


def training_violations(costs: np.ndarray, *, cost_limit: float) -> tuple[float, float]:
    """Return the share of episodes over the limit, and their cost over it, added up.

    The share is NaN without an episode.
    """
    if len(costs) == 0:
        return np.nan, 0.0
    return float(np.mean(costs > cost_limit)), float(np.maximum(costs - cost_limit, 0.0).sum())


def first_safe_step(
    steps: np.ndarray, costs: np.ndarray, *, cost_limit: float, after: float = 0
) -> float:
    """Return the step of the first evaluation later than ``after`` with cost <= limit, or inf.

    The untrained policy is often safe because it does nothing: ``after`` leaves it out.
    """
    safe = (costs <= cost_limit) & (steps > after)
    return float(steps[np.argmax(safe)]) if safe.any() else np.inf


def area_under_curve(steps: np.ndarray, values: np.ndarray) -> float:
    """Return the trapezoidal area over the width: the mean height, in the unit of ``values``."""
    width = float(steps[-1] - steps[0])
    if width == 0:
        return float(values[-1])
    return float(np.trapezoid(values, steps) / width)


def safety_first_order(
    returns: np.ndarray, costs: np.ndarray, cost_limits: np.ndarray
) -> np.ndarray:
    """Return (N,) scores of which only the order matters, high is good, equal for equal runs.

    A safe run is above every unsafe one; safe runs are ordered by return, unsafe ones by how little
    they exceed their limit.

    Raises:
        ValueError: a return or a cost is NaN, which has no place in an order.
    """
    if np.isnan(returns).any() or np.isnan(costs).any():
        raise ValueError("returns and costs must not be NaN")
    safe = costs <= cost_limits
    merit = np.where(safe, returns, cost_limits - costs)
    _, order = np.unique(np.stack([safe, merit]), axis=1, return_inverse=True)
    return order.reshape(-1).astype(float)
