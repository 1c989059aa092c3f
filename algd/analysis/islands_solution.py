"""Exact laws, island masses and multipliers of the two-islands task.

In: an ``IslandsTask``, a state and a temperature. Out: the energy (plain, augmented or with the
infeasible set forbidden) for ``boltzmann_density``, the multiplier that a policy at that
temperature needs, and closed forms at the task's own ``reward_temperature``.
"""

from collections.abc import Callable
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from algd.analysis.density import Grid, boltzmann_density, box_grid, grid_points, trapezoid_weights
from algd.analysis.roots import nonnegative_root
from algd.environments.analytic_islands import IslandsTask

Floats = NDArray[np.float64]

# Nodes per axis of the default quadrature: 40 per mode width in one dimension, 10 in two.
_DEFAULT_POINTS = {1: 801, 2: 201}


def islands_energy(
    task: IslandsTask, state: float, *, multiplier: float = 0.0, penalty_coef: float | None = None
) -> Callable[[Floats], Floats]:
    """Return the energy of actions (P, A): -reward + multiplier * g, g = cost - d.

    With ``penalty_coef`` rho the augmented energy of arXiv 2602.02924 instead:
    -reward + ([multiplier + rho g]_+^2 - multiplier^2) / (2 rho).
    """
    if penalty_coef is not None and not penalty_coef > 0:
        raise ValueError(f"penalty_coef must be positive or None, got {penalty_coef}")

    def energy(actions: Floats) -> Floats:
        excess = task.cost(state, actions) - task.cost_limit
        if penalty_coef is None:
            return multiplier * excess - task.reward(state, actions)
        hinge = np.maximum(multiplier + penalty_coef * excess, 0.0)
        penalty = (np.square(hinge) - multiplier**2) / (2.0 * penalty_coef)
        return penalty - task.reward(state, actions)

    return energy


def feasible_energy(task: IslandsTask, state: float) -> Callable[[Floats], Floats]:
    """Return -reward on the feasible set and +inf elsewhere: the hard, per-action constraint."""

    def energy(actions: Floats) -> Floats:
        return np.where(task.feasible(state, actions), -task.reward(state, actions), np.inf)

    return energy


def islands_multiplier(
    task: IslandsTask,
    state: float,
    *,
    temperature: float,
    penalty_coef: float | None = None,
    per_sample: bool = False,
    grid: Grid | None = None,
) -> float:
    """Return lambda >= 0 of the law at a temperature, by quadrature.

    Args:
        task: the task.
        state: one state.
        temperature: of the Boltzmann law.
        penalty_coef: rho of the augmented law, or None for the plain one.
        per_sample: False solves E[cost] <= d with complementary slackness; True the fixed point
            lambda = E[(lambda + rho g)_+] of a hinge that acts on each action (needs rho).
        grid: quadrature nodes; by default 801 in one dimension and 201 x 201 in two.
    """
    if per_sample and penalty_coef is None:
        raise ValueError("per_sample needs penalty_coef, got None")
    grid = grid or box_grid(task.action_dim, _DEFAULT_POINTS[task.action_dim])
    actions, weights = grid_points(grid), trapezoid_weights(grid).ravel()
    excess = task.cost(state, actions) - task.cost_limit

    def residual(trial: Floats) -> Floats:
        multiplier = float(trial[0])
        energy = islands_energy(task, state, multiplier=multiplier, penalty_coef=penalty_coef)
        mass = boltzmann_density(energy, grid, temperature).ravel() * weights
        if not per_sample:
            return np.array([mass @ excess])
        assert penalty_coef is not None
        return np.array([mass @ np.maximum(multiplier + penalty_coef * excess, 0.0) - multiplier])

    return float(nonnegative_root(residual, 1)[0])


def island_masses(density: Floats, grid: Grid, task: IslandsTask, state: float) -> Floats:
    """Integrate a density: (left of the wall, under it, right of it), shape (3,).

    Without a wall the middle entry is 0 and the sides meet at a_0 = 0.
    """
    along = (density * trapezoid_weights(grid)).reshape(len(grid[0]), -1).sum(axis=1)
    half_width = float(task.half_width(state))
    # A node within half a cell of an edge shares its mass between the two sides of that edge.
    gap = grid[0][1] - grid[0][0]
    left = along @ np.clip((-half_width - grid[0]) / gap + 0.5, 0.0, 1.0)
    right = along @ np.clip((grid[0] - half_width) / gap + 0.5, 0.0, 1.0)
    return np.array([left, 1.0 - left - right, right])


def mixture_density(
    task: IslandsTask, state: float, grid: Grid, *, feasible_only: bool = False
) -> Floats:
    """Closed-form law at ``task.reward_temperature`` on the grid, cut to the box.

    With ``feasible_only`` it is also cut to the feasible set.
    """
    offset = grid_points(grid)[:, None, :] - task.centres(state)
    bumps = np.exp(-np.square(offset).sum(-1) / (2.0 * task.mode_width**2))
    values = bumps @ task.shares(state)
    masses = mixture_masses(task, state)
    total = float(masses.sum())
    if feasible_only:
        values = np.where(task.feasible(state, grid_points(grid)), values, 0.0)
        total = float(masses[0] + masses[2])
    scale = (task.mode_width * sqrt(2.0 * np.pi)) ** task.action_dim
    return (values / (scale * total)).reshape([len(axis) for axis in grid])


def mixture_masses(task: IslandsTask, state: float) -> Floats:
    """Closed-form mass of the uncut mixture (left of the wall, under it, right of it), box only.

    Three error functions per mode; in two dimensions times the share of the mode that a_1 keeps
    inside the box. Divide by the sum for the unconstrained law at ``reward_temperature``, by the
    first and last entry for the constrained one.
    """
    half_width = float(task.half_width(state))
    edges = (-1.0, -half_width, half_width, 1.0)
    masses = np.zeros(3)
    for share, centre in zip(task.shares(state), task.centres(state), strict=True):
        across = 1.0
        if task.action_dim == 2:
            across = _normal_mass(-1.0, 1.0, centre[1], task.mode_width)
        for piece in range(3):
            low, high = edges[piece], edges[piece + 1]
            masses[piece] += share * across * _normal_mass(low, high, centre[0], task.mode_width)
    return masses


def _normal_mass(low: float, high: float, mean: float, std: float) -> float:
    root = std * sqrt(2.0)
    return 0.5 * (erf((high - mean) / root) - erf((low - mean) / root))
