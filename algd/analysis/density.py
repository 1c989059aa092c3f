"""Densities on grids of one or two dimensions, and how far samples are from them.

In: an energy or a density on a grid of actions, and samples. Out: the exact Boltzmann density,
total variation, Wasserstein-1. A grid is a tuple of increasing axes, one per action dimension; a
density on it has one entry per node and integrates to 1 by the trapezoid rule.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Grid = tuple[Floats, ...]
MAX_GRID_DIM = 2
_MASS_TOLERANCE = 1e-3


def box_grid(action_dim: int, points: int, *, low: float = -1.0, high: float = 1.0) -> Grid:
    """Return evenly spaced axes over the box [low, high]^action_dim, ends included."""
    if not 1 <= action_dim <= MAX_GRID_DIM:
        raise ValueError(f"action_dim must be in 1..{MAX_GRID_DIM}, got {action_dim}")
    if points < 2 or not low < high:
        raise ValueError(f"need points >= 2 and low < high, got {points}, {low}, {high}")
    return tuple(np.linspace(low, high, points) for _ in range(action_dim))


def grid_points(grid: Grid) -> Floats:
    """Return every node as a row, (P, A), the last axis running fastest."""
    return np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, len(grid))


def trapezoid_weights(grid: Grid) -> Floats:
    """Return the integration weight of every node, shaped like a density on the grid."""
    weights = np.ones(())
    for axis in grid:
        gaps = np.diff(axis)
        weights = np.multiply.outer(weights, 0.5 * (np.append(gaps, 0.0) + np.append(0.0, gaps)))
    return weights


def boltzmann_density(
    energy: Callable[[Floats], ArrayLike], grid: Grid, temperature: float
) -> Floats:
    """Return exp(-energy / temperature) / Z on the grid.

    Args:
        energy: maps actions (P, A) to energies (P,); +inf marks a forbidden action.
        grid: axes of the box; the density is that of the law restricted to it.
        temperature: in units of the energy, > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    values = np.asarray(energy(grid_points(grid)), dtype=np.float64)
    shape = tuple(len(axis) for axis in grid)
    if values.shape != (np.prod(shape),):
        raise ValueError(f"energy must return one number per action, got shape {values.shape}")
    if np.isnan(values).any() or not np.isfinite(values.min()):
        raise ValueError("energy must be finite somewhere, above -inf and never NaN")
    weight = np.exp((values.min() - values) / temperature).reshape(shape)
    return weight / np.sum(weight * trapezoid_weights(grid))


def kernel_density(samples: ArrayLike, grid: Grid, *, bandwidth: float) -> Floats:
    """Return the density of samples smoothed by a Gaussian of width ``bandwidth``, cut to the box.

    Args:
        samples: shape (n, A), or (n,) on a one-dimensional grid.
        grid: axes.
        bandwidth: standard deviation in units of the action, the same along every axis.

    Raises:
        ValueError: a bandwidth that is not positive, or no sample near the grid.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    points = as_points(samples, grid)
    factors = [
        np.exp(-0.5 * np.square((axis[:, None] - points[:, dim]) / bandwidth))
        for dim, axis in enumerate(grid)
    ]
    values = factors[0].sum(axis=1) if len(grid) == 1 else factors[0] @ factors[1].T
    if not values.any():
        raise ValueError("no sample lies near the grid")
    return values / np.sum(values * trapezoid_weights(grid))


def cell_masses(density: Floats, grid: Grid, bins: int) -> Floats:
    """Integrate a density over ``bins`` equal cells per axis; shape (bins,) * A."""
    masses = density
    for dim, axis in enumerate(grid):
        rows = np.moveaxis(masses, dim, 0)
        gaps = np.diff(axis).reshape(-1, *[1] * (rows.ndim - 1))
        steps = 0.5 * (rows[1:] + rows[:-1]) * gaps
        cumulative = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(steps, axis=0)])
        edges = np.linspace(axis[0], axis[-1], bins + 1)
        position = np.clip(np.searchsorted(axis, edges, side="right") - 1, 0, len(axis) - 2)
        share = (edges - axis[position]) / np.diff(axis)[position]
        share = share.reshape(-1, *[1] * (rows.ndim - 1))
        at_edges = cumulative[position] * (1 - share) + cumulative[position + 1] * share
        masses = np.moveaxis(np.diff(at_edges, axis=0), 0, dim)
    return masses


def total_variation(samples: ArrayLike, density: Floats, grid: Grid, *, bins: int = 40) -> float:
    """Return the total variation distance, in [0, 1], over ``bins`` equal cells per axis.

    Samples outside the grid's box count as misplaced. Even a perfect sampler does not reach 0:
    subtract nothing, but compare with ``total_variation_floor``.

    Args:
        samples: shape (n, A), or (n,) on a one-dimensional grid.
        density: on the grid, as ``boltzmann_density`` returns it.
        grid: axes, finer than the cells.
        bins: cells per axis; structure finer than a cell goes unseen.

    Raises:
        ValueError: the density does not integrate to 1.
    """
    points = as_points(samples, grid)
    masses = cell_masses(density, grid, bins)
    if not abs(masses.sum() - 1.0) < _MASS_TOLERANCE:
        raise ValueError(f"density must integrate to 1 over the grid, got {masses.sum():.6g}")
    ranges = [(axis[0], axis[-1]) for axis in grid]
    counts, _ = np.histogramdd(points, bins=bins, range=ranges)
    outside = 1.0 - counts.sum() / len(points)
    gap = np.abs(counts / len(points) - masses).sum()
    return float(0.5 * (gap + outside))


def total_variation_floor(
    density: Floats, grid: Grid, *, num_samples: int, bins: int = 40
) -> float:
    """Return what ``total_variation`` is expected to show for exact samples.

    The mean absolute deviation of a binomial share, by its normal approximation.
    """
    masses = np.clip(cell_masses(density, grid, bins), 0.0, 1.0)
    # In cells that expect less than one sample the normal approximation exceeds the exact bound 2p.
    spread = np.sqrt(2.0 * masses * (1.0 - masses) / (np.pi * num_samples))
    return float(0.5 * np.minimum(spread, 2.0 * masses).sum())


def wasserstein1_1d(samples: ArrayLike, density: Floats, grid: Grid) -> float:
    """Return the Wasserstein-1 distance, in units of the action, on a one-dimensional grid."""
    if len(grid) != 1:
        raise ValueError(f"wasserstein1_1d needs a one-dimensional grid, got {len(grid)} axes")
    (axis,) = grid
    values = np.sort(as_points(samples, grid)[:, 0])
    gaps = np.diff(axis)
    cumulative = np.append(0.0, np.cumsum(0.5 * (density[1:] + density[:-1]) * gaps))
    inside = np.clip(values, axis[0], axis[-1])
    # The empirical distribution function jumps at samples: integrate between all breakpoints.
    breaks = np.union1d(axis, inside)
    empirical = np.searchsorted(inside, breaks, side="right")[:-1] / len(inside)
    exact = np.interp(breaks, axis, cumulative)
    left, right = empirical - exact[:-1], empirical - exact[1:]
    return float(_absolute_integral(left, right, np.diff(breaks)) + np.abs(values - inside).mean())


def sliced_wasserstein1(
    samples: ArrayLike, density: Floats, grid: Grid, *, num_directions: int = 32
) -> float:
    """Return the mean Wasserstein-1 distance of projections, in units of the action, in 2-D.

    Directions are evenly spaced over the half circle, so the number is deterministic. The density
    is taken as point masses on its nodes: exact to about a quarter of the grid's spacing.
    """
    if len(grid) != 2 or num_directions < 1:
        raise ValueError(f"need a 2-D grid and directions, got {len(grid)} axes, {num_directions}")
    points, nodes = as_points(samples, grid), grid_points(grid)
    masses = (density * trapezoid_weights(grid)).ravel()
    angles = np.pi * (np.arange(num_directions) + 0.5) / num_directions
    evenly = np.full(len(points), 1.0 / len(points))
    distances = [
        _weighted_wasserstein1(points @ direction, evenly, nodes @ direction, masses)
        for direction in np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ]
    return float(np.mean(distances))


def _weighted_wasserstein1(
    first: Floats, first_masses: Floats, second: Floats, second_masses: Floats
) -> float:
    """Integrate |F - G| for two laws of weighted points."""
    places = np.concatenate([first, second])
    order = np.argsort(places, kind="stable")
    gap = np.cumsum(np.concatenate([first_masses, -second_masses])[order])
    return float(np.abs(gap[:-1]) @ np.diff(places[order]))


def _absolute_integral(left: Floats, right: Floats, width: Floats) -> float:
    """Integrate |f| for f linear from ``left`` to ``right`` on each interval."""
    same_sign = left * right >= 0.0
    total = np.abs(left) + np.abs(right)
    crossing = (np.square(left) + np.square(right)) / np.where(total > 0.0, total, 1.0)
    return float(np.sum(0.5 * width * np.where(same_sign, total, crossing)))


def as_points(samples: ArrayLike, grid: Grid) -> Floats:
    """Return samples as rows (n, A) matching the grid, or say why they cannot be.

    Raises:
        ValueError: wrong shape, none, or not finite.
    """
    points = np.asarray(samples, dtype=np.float64)
    if points.ndim == 1 and len(grid) == 1:
        points = points[:, None]
    if points.ndim != 2 or points.shape[1] != len(grid) or len(points) == 0:
        raise ValueError(f"samples must have shape (n, {len(grid)}), n >= 1, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("samples must be finite")
    return points
