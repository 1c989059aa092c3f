"""What agents at a temperature should reach on the finite decision process.

In: a ``FiniteTask``, the critics' discount, a temperature. Out: the Boltzmann policy, its value and
its multipliers, for the state-wise constraint on the immediate cost and for the expected one. As
the temperature falls they tend to the linear programmes of ``algd.analysis.finite_solution``.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from algd.analysis.finite_solution import (
    FiniteSolution,
    action_grid,
    check_discount,
    evaluate_policy,
    expected_cost,
)
from algd.analysis.roots import nonnegative_root
from algd.environments.analytic_finite import FiniteTask

Floats = NDArray[np.float64]

_VALUE_TOLERANCE = 1e-11
_MAX_SWEEPS = 20_000


def solve_statewise_soft(
    task: FiniteTask,
    *,
    discount: float,
    temperature: float,
    limit: float | None = None,
    penalty_coef: float | None = None,
    per_sample: bool = False,
    entropy_in_value: bool = True,
    points: int = 401,
) -> FiniteSolution:
    """State-wise constraint for Boltzmann policies pi(a|s) ~ exp((Q - penalty) / temperature).

    The penalty is lambda(s) g with g = cost - limit, or the augmented one of arXiv 2602.02924,
    ([lambda + rho g]_+^2 - lambda^2) / (2 rho). Q is the critic of the reward alone; the expected
    constraint makes the expected plain penalty zero, so nothing of it is missing from Q.

    Args:
        task: the decision process.
        discount: gamma in [0, 1).
        temperature: > 0.
        limit: per step; by default ``task.step_limit``.
        penalty_coef: rho of the augmented penalty, or None for the plain one.
        per_sample: False: lambda(s) >= 0 is the root of E[cost | s] = limit, 0 where slack. True:
            the fixed point lambda = E[(lambda + rho g)_+ | s] of a hinge on each action (needs
            rho).
        entropy_in_value: True for agents whose reward target carries the entropy (SAC): V = E[Q] +
            temperature * differential entropy. False where it does not (ALGD): V = E[Q].
        points: cells of the action grid.
    """
    _check_soft(discount, temperature)
    if penalty_coef is not None and not penalty_coef > 0:
        raise ValueError(f"penalty_coef must be positive or None, got {penalty_coef}")
    if per_sample and penalty_coef is None:
        raise ValueError("per_sample needs penalty_coef, got None")
    actions = action_grid(points)
    excess = task.cost(actions) - (task.step_limit if limit is None else limit)
    reward, transition = task.reward(actions), task.transition(actions)

    def constrained(q_reward: Floats) -> tuple[Floats, Floats]:
        def law(trial: Floats) -> Floats:
            return _boltzmann(q_reward - _penalty(trial, excess, penalty_coef), temperature)

        def residual(trial: Floats) -> Floats:
            if per_sample and penalty_coef is not None:
                target = np.maximum(trial[:, None] + penalty_coef * excess, 0.0)
                return (law(trial) * target).sum(axis=1) - trial
            return (law(trial) * excess).sum(axis=1)

        multiplier = nonnegative_root(residual, len(excess), tolerance=1e-12)
        return multiplier, law(multiplier)

    value, change = np.zeros(len(excess)), np.inf
    for _ in range(_MAX_SWEEPS):
        q_reward = reward + discount * transition @ value
        multiplier, policy = constrained(q_reward)
        after = _state_value(policy, q_reward, actions, temperature if entropy_in_value else 0.0)
        change, value = np.abs(after - value).max(), after
        if change < _VALUE_TOLERANCE:
            return FiniteSolution(actions, policy, value, multiplier)
    raise ArithmeticError(f"value iteration still changes by {change:.1e} per sweep")


def solve_expected_soft(
    task: FiniteTask,
    *,
    discount: float,
    temperature: float,
    threshold: float,
    criterion: Literal["discounted", "episode"] = "discounted",
    entropy_in_value: bool = True,
    points: int = 401,
) -> FiniteSolution:
    """Expected constraint for Boltzmann policies pi(a|s) ~ exp((Q - lambda Q_cost) / T).

    Args:
        task: the decision process.
        discount: gamma in [0, 1), of reward and cost.
        temperature: T > 0.
        threshold: limit on the cost that ``criterion`` names.
        criterion: "discounted", sum_t gamma^t cost_t from the start law, as ``solve_expected``;
            "episode", the undiscounted cost of an episode of ``task.horizon`` steps, which is what
            a multiplier driven by episode costs sees.
        entropy_in_value: as in ``solve_statewise_soft``.
        points: cells of the action grid.
    """
    _check_soft(discount, temperature)
    actions = action_grid(points)
    entropy_weight = temperature if entropy_in_value else 0.0

    def residual(trial: Floats) -> Floats:
        policy, _ = _soft_policy(task, actions, discount, temperature, trial[0], entropy_weight)
        return np.array(
            [
                expected_cost(task, policy, actions, criterion=criterion, discount=discount)
                - threshold
            ]
        )

    multiplier = float(nonnegative_root(residual, 1, tolerance=1e-9)[0])
    policy, value = _soft_policy(task, actions, discount, temperature, multiplier, entropy_weight)
    return FiniteSolution(actions, policy, value, np.full(len(value), multiplier))


def _soft_policy(
    task: FiniteTask,
    actions: Floats,
    discount: float,
    temperature: float,
    multiplier: float,
    entropy_weight: float,
) -> tuple[Floats, Floats]:
    """Fixed point of the Boltzmann policy and its reward value, at a given multiplier.

    One recursion for reward - multiplier * cost gives the policy; the value returned is of the
    reward (and entropy) alone.
    """
    reward, cost = task.reward(actions), task.cost(actions)
    transition = task.transition(actions)
    value, change = np.zeros(len(reward)), np.inf
    for _ in range(_MAX_SWEEPS):
        energy = reward - multiplier * cost + discount * transition @ value
        policy = _boltzmann(energy, temperature)
        after = _state_value(policy, energy, actions, entropy_weight)
        change, value = np.abs(after - value).max(), after
        if change < _VALUE_TOLERANCE:
            break
    else:
        raise ArithmeticError(f"value iteration still changes by {change:.1e} per sweep")
    step_value = _state_value(policy, reward, actions, entropy_weight)
    return policy, evaluate_policy(policy, transition, step_value, discount=discount)


def _penalty(multiplier: Floats, excess: Floats, penalty_coef: float | None) -> Floats:
    price = multiplier[:, None]
    if penalty_coef is None:
        return price * excess
    hinge = np.maximum(price + penalty_coef * excess, 0.0)
    return (np.square(hinge) - np.square(price)) / (2.0 * penalty_coef)


def _boltzmann(log_weight: Floats, temperature: float) -> Floats:
    scaled = (log_weight - log_weight.max(axis=1, keepdims=True)) / temperature
    weight = np.exp(scaled)
    return weight / weight.sum(axis=1, keepdims=True)


def _state_value(
    policy: Floats, q_values: Floats, actions: Floats, entropy_weight: float
) -> Floats:
    value = (policy * q_values).sum(axis=1)
    if entropy_weight == 0.0:
        return value
    # Differential entropy of the piecewise constant density over the cells of the grid.
    density = policy / (2.0 / len(actions))
    log_density = np.log(density, out=np.zeros_like(density), where=density > 0.0)
    return value - entropy_weight * (policy * log_density).sum(axis=1)


def _check_soft(discount: float, temperature: float) -> None:
    check_discount(discount)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
