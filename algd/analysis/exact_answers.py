"""The exact law and multiplier that an agent should reach on an analytic task, state by state.

In: the id of an analytic task, and a temperature, penalty and hinge as the agent has them. Out:
multipliers and Boltzmann laws on a grid of actions, by quadrature. One form serves the bandit and
the islands in one or two action dimensions and the finite decision process under a state-wise
constraint; tests hold it against the task's own solver.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from algd.analysis.density import Grid, box_grid, grid_points, trapezoid_weights
from algd.analysis.roots import nonnegative_root
from algd.environments.analytic_bandit import BanditTask
from algd.environments.analytic_finite import NUM_STATES, FiniteTask
from algd.environments.analytic_islands import IslandsTask

Floats = NDArray[np.float64]

_POINTS = {1: 401, 2: 121}  # quadrature nodes per axis
_NUM_STATES = 20
_MAX_SWEEPS = 2_000
_VALUE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class ExactTables:
    """Reward and violation of a task on a grid of actions.

    obs: (S, O) raw observations. grid: axes of the actions, G nodes in all. reward: (S, G) of one
    step. excess: (S, G), cost minus the limit of one step. transition: (S, G, S), or None for
    tasks of a single step. start: (S,) law of the first state. horizon: steps of an episode.
    """

    obs: NDArray[np.float32]
    grid: Grid
    reward: Floats
    excess: Floats
    start: Floats
    transition: Floats | None = None
    horizon: int = 1

    @property
    def actions(self) -> Floats:
        """Nodes of the grid as rows, (G, A)."""
        return grid_points(self.grid)

    @property
    def weights(self) -> Floats:
        """Integration weights of the nodes, (G,)."""
        return trapezoid_weights(self.grid).ravel()

    def visits(self, mass: Floats) -> Floats:
        """Return the share of an episode's steps spent in each state, (S,).

        Args:
            mass: probabilities (S, G) of the actions.
        """
        if self.transition is None:
            return self.start
        step = np.einsum("sg,sgt->st", mass, self.transition)
        law, total = self.start, np.zeros_like(self.start)
        for _ in range(self.horizon):
            total, law = total + law, law @ step
        return total / self.horizon


@dataclass(frozen=True)
class ExactAnswer:
    """multiplier: (S,), reward per unit of cost. density: (S, G), integrates to 1 over the box."""

    multiplier: Floats
    density: Floats


def exact_tables(
    env_id: str,
    *,
    step_limit: float,
    cost_discount: float,
    task_limit: float | None = None,
    episode_length: int | None = None,
) -> ExactTables | None:
    """Return the tables of an analytic task; None where the answer is not of this form.

    Args:
        env_id: id of the environment.
        step_limit: on the cost of a step, as the agent has it.
        cost_discount: of the agent's critic; the finite task needs 0.
        task_limit: the limit that the environment was made with, which shapes the bandit's cost;
            None for its default.
        episode_length: of the finite task, in steps; None for its default.
    """
    options = {} if task_limit is None else {"cost_limit": task_limit}
    name = env_id.removesuffix("-v0")
    if name in ("AnalyticBandit1", "AnalyticBandit2"):
        bandit = BanditTask(action_dim=int(name[-1]), **options)
        return _one_step(bandit, np.linspace(-0.95, 0.95, _NUM_STATES), step_limit)
    if name in ("AnalyticIslands1", "AnalyticIslands2"):
        islands = IslandsTask(action_dim=int(name[-1]), **options)
        side = np.linspace(0.3, 0.95, _NUM_STATES // 2)
        return _one_step(islands, np.concatenate([-side[::-1], side]), step_limit)
    if name == "AnalyticFinite" and cost_discount == 0.0:
        finite = FiniteTask() if episode_length is None else FiniteTask(horizon=episode_length)
        grid = box_grid(1, _POINTS[1])
        return ExactTables(
            obs=np.eye(NUM_STATES, dtype=np.float32),
            grid=grid,
            reward=finite.reward(grid[0]),
            excess=finite.cost(grid[0]) - step_limit,
            start=finite.start,
            transition=finite.transition(grid[0]),
            horizon=finite.horizon,
        )
    return None


def solve_exact(
    tables: ExactTables,
    *,
    temperature: float,
    penalty_coef: float | None,
    hinge_coef: float | None,
    shared: bool = False,
    discount: float = 0.0,
    entropy_weight: float = 0.0,
) -> ExactAnswer:
    """Solve for the multiplier of the Boltzmann law, and return both.

    Args:
        tables: the task.
        temperature: of the law, in reward, > 0.
        penalty_coef: rho of the energy's augmentation, in reward per squared cost; None for the
            plain Lagrangian.
        hinge_coef: rho of a dual target hinged per action: then lambda = E[(lambda + rho g)_+].
            None solves E[g] <= 0 with complementary slackness.
        shared: one multiplier for all states, which weigh as often as the law visits them.
        discount: of the reward, for tasks with a transition.
        entropy_weight: temperature of the entropy that the reward's value contains (SAC: the
            temperature itself; ALGD: 0).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    value = np.zeros(len(tables.reward))
    for _ in range(_MAX_SWEEPS):
        q_reward = tables.reward
        if tables.transition is not None:
            q_reward = q_reward + discount * tables.transition @ value
        multiplier, mass = _solve_step(
            tables, q_reward, temperature, penalty_coef, hinge_coef, shared
        )
        if tables.transition is None:
            break
        log_density = np.log(mass / tables.weights, out=np.zeros_like(mass), where=mass > 0.0)
        after = (mass * (q_reward - entropy_weight * log_density)).sum(axis=1)
        change, value = np.abs(after - value).max(), after
        if change < _VALUE_TOLERANCE:
            break
    else:
        raise ArithmeticError("value iteration does not settle; is the discount below 1?")
    return ExactAnswer(multiplier=multiplier, density=mass / tables.weights)


def _solve_step(
    tables: ExactTables,
    q_reward: Floats,
    temperature: float,
    penalty_coef: float | None,
    hinge_coef: float | None,
    shared: bool,
) -> tuple[Floats, Floats]:
    excess, weights = tables.excess, tables.weights

    def law(trial: Floats) -> Floats:
        price = trial[:, None]
        if penalty_coef is None:
            penalty = price * excess
        else:
            hinge = np.maximum(price + penalty_coef * excess, 0.0)
            penalty = (np.square(hinge) - np.square(price)) / (2.0 * penalty_coef)
        log_mass = (q_reward - penalty) / temperature
        mass = np.exp(log_mass - log_mass.max(axis=1, keepdims=True)) * weights
        return mass / mass.sum(axis=1, keepdims=True)

    def residual(trial: Floats) -> Floats:
        every = np.broadcast_to(trial, len(excess))
        mass = law(every)
        if hinge_coef is None:
            gap = (mass * excess).sum(axis=1)
        else:
            target = np.maximum(every[:, None] + hinge_coef * excess, 0.0)
            gap = (mass * target).sum(axis=1) - every
        return tables.visits(mass)[None] @ gap if shared else gap

    size = 1 if shared else len(excess)
    multiplier = np.broadcast_to(nonnegative_root(residual, size, tolerance=1e-7), len(excess))
    return multiplier.copy(), law(multiplier)


def _one_step(task: BanditTask | IslandsTask, states: Floats, step_limit: float) -> ExactTables:
    grid = box_grid(task.action_dim, _POINTS[task.action_dim])
    actions = grid_points(grid)
    # The reward belongs to the state as observed, after rounding to float32.
    obs = states.astype(np.float32)[:, None]
    rounded = obs[:, 0].astype(np.float64)
    reward = np.stack([task.reward(state, actions) for state in rounded])
    cost = np.stack([task.cost(state, actions) for state in rounded])
    start = np.full(len(obs), 1.0 / len(obs))
    return ExactTables(obs=obs, grid=grid, reward=reward, excess=cost - step_limit, start=start)
