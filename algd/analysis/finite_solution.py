"""Optima of the finite constrained decision process: linear programmes in occupancy measures.

In: a ``FiniteTask``, the discount of the critics, a grid of actions. Out: value, policy and
multipliers of

- the expected constraint, sum_t gamma^t E[cost] <= threshold: one multiplier;
- the state-wise constraint on the immediate cost, E[cost | s] <= limit: one multiplier per state;

without a temperature: linear programmes in occupancy measures (HiGHS). For the Boltzmann policies
that agents at a temperature run see ``algd.analysis.finite_soft_solution``. A state-wise
constraint on a discounted cost is not linear in the occupancy, and is not offered.

Normalisation of the duals. The programme's variables are x(s, a) = sum_t gamma^t P(s_t, a_t), not
normalised. The state-wise rows read sum_a x(s, a) (cost(s, a) - limit) <= 0, so the Lagrangian is
sum x (reward - lambda(s) (cost - limit)) and each dual is lambda(s) itself, in reward per unit of
cost, whatever the law of the first state; no division by x(s) is due.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from algd.environments.analytic_finite import FiniteTask

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FiniteSolution:
    """An optimum on a grid of actions.

    actions: (G,) the grid.
    policy: (S, G) probabilities, rows sum to 1.
    value: (S,) discounted reward from each state (with discounted entropy where so asked).
    multiplier: (S,) state-wise, or the one multiplier repeated.
    """

    actions: Floats
    policy: Floats
    value: Floats
    multiplier: Floats

    @property
    def mean_action(self) -> Floats:
        """E[a | s], (S,)."""
        return self.policy @ self.actions


def action_grid(points: int = 401) -> Floats:
    """Return midpoints of ``points`` equal cells of [-1, 1]: each stands for its cell's mass."""
    return (np.arange(points, dtype=np.float64) + 0.5) * (2.0 / points) - 1.0


def solve_statewise(
    task: FiniteTask, *, discount: float, limit: float | None = None, points: int = 401
) -> FiniteSolution:
    """Maximise the discounted reward under E[cost | s] <= limit in every state (linear programme).

    Args:
        task: the decision process.
        discount: gamma in [0, 1).
        limit: per step; by default ``task.step_limit``.
        points: actions of the grid; the multiplier's error is of order 1 / points.
    """
    limit = task.step_limit if limit is None else limit
    actions = action_grid(points)
    excess = task.cost(actions) - limit
    rows = np.zeros((len(excess), excess.size))
    for state, row in enumerate(rows):
        row[state * points : (state + 1) * points] = excess[state]
    return _solve_programme(task, actions, discount, rows, np.zeros(len(excess)))


def solve_expected(
    task: FiniteTask, *, discount: float, threshold: float, points: int = 401
) -> FiniteSolution:
    """Maximise the discounted reward under a discounted cost <= threshold from the start law.

    Args:
        task: the decision process.
        discount: gamma in [0, 1), of reward and cost.
        threshold: limit on sum_t gamma^t cost_t.
        points: actions of the grid.
    """
    actions = action_grid(points)
    rows = task.cost(actions).reshape(1, -1)
    return _solve_programme(task, actions, discount, rows, np.array([threshold]))


def _solve_programme(
    task: FiniteTask, actions: Floats, discount: float, rows: Floats, bounds: Floats
) -> FiniteSolution:
    from scipy.optimize import linprog

    check_discount(discount)
    reward, transition = task.reward(actions), task.transition(actions)
    num_states, points = reward.shape
    leaving = np.repeat(np.eye(num_states), points, axis=0)
    flow = (leaving - discount * transition.reshape(-1, num_states)).T
    found = linprog(
        -reward.ravel(), A_ub=rows, b_ub=bounds, A_eq=flow, b_eq=task.start, method="highs"
    )
    if found.status != 0:
        raise ArithmeticError(f"the linear programme has no solution: {found.message}")
    occupancy = np.maximum(found.x.reshape(num_states, points), 0.0)
    policy = occupancy / occupancy.sum(axis=1, keepdims=True)
    # linprog minimises -reward, so its marginals are the negated prices.
    prices = -np.asarray(found.ineqlin.marginals)
    return FiniteSolution(
        actions=actions,
        policy=policy,
        value=evaluate_policy(policy, transition, (policy * reward).sum(axis=1), discount=discount),
        multiplier=np.broadcast_to(prices, num_states).copy(),
    )


def expected_cost(
    task: FiniteTask,
    policy: Floats,
    actions: Floats,
    *,
    criterion: Literal["discounted", "episode"],
    discount: float,
) -> float:
    """Cost of a policy (S, G) by the named criterion, by linear algebra."""
    step_cost = (policy * task.cost(actions)).sum(axis=1)
    transition = task.transition(actions)
    if criterion == "discounted":
        return float(task.start @ evaluate_policy(policy, transition, step_cost, discount=discount))
    chain = np.einsum("sg,sgt->st", policy, transition)
    total, law = 0.0, task.start
    for _ in range(task.horizon):
        total, law = total + float(law @ step_cost), law @ chain
    return total


def evaluate_policy(
    policy: Floats, transition: Floats, step_value: Floats, *, discount: float
) -> Floats:
    """Solve value = step_value + discount * P value, (S,), for a policy (S, G) and P (S, G, S)."""
    chain = np.einsum("sg,sgt->st", policy, transition)
    return np.linalg.solve(np.eye(len(chain)) - discount * chain, step_value)


def check_discount(discount: float) -> None:
    """Refuse a discount for which the infinite sum does not converge."""
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must be in [0, 1), got {discount}")
