"""Modes, basins and coverage on densities whose modes are known."""

import numpy as np
import pytest

from algd.analysis.density import box_grid, grid_points, kernel_density, trapezoid_weights
from algd.analysis.islands_solution import mixture_density, mixture_masses
from algd.analysis.modes import find_modes, mode_coverage
from algd.environments.analytic_islands import IslandsTask


def mixture(grid, centres, shares, width):
    offset = grid_points(grid)[:, None, :] - np.asarray(centres)
    bumps = np.exp(-np.square(offset).sum(-1) / (2 * width**2)) @ np.asarray(shares)
    values = bumps.reshape([len(axis) for axis in grid])
    return values / np.sum(values * trapezoid_weights(grid))


def test_three_modes_in_one_dimension_with_their_masses():
    grid = box_grid(1, 401)
    found = find_modes(mixture(grid, [[-0.7], [0.0], [0.6]], [0.2, 0.5, 0.3], 0.08), grid)
    assert found.num_modes == 3
    np.testing.assert_allclose(found.centres[:, 0], [0.0, 0.6, -0.7], atol=5e-3)
    np.testing.assert_allclose(found.masses, [0.5, 0.3, 0.2], atol=2e-3)


def test_diagonal_neighbours_join_and_distant_peaks_do_not_in_two_dimensions():
    grid = box_grid(2, 81)
    found = find_modes(mixture(grid, [[-0.5, -0.5], [0.5, 0.5]], [0.4, 0.6], 0.12), grid)
    np.testing.assert_allclose(found.centres, [[0.5, 0.5], [-0.5, -0.5]], atol=0.03)
    np.testing.assert_allclose(found.masses, [0.6, 0.4], atol=2e-3)


def test_peaks_without_a_barrier_between_them_are_one_mode():
    grid = box_grid(1, 801)
    # Two equal bumps 3 widths apart: log(peak / saddle) = log((1 + e^-4.5) / (2 e^-1.125)) = 0.443
    density = mixture(grid, [[-0.15], [0.15]], [0.5, 0.5], 0.1)
    assert find_modes(density, grid, min_barrier=0.40).num_modes == 2
    assert find_modes(density, grid, min_barrier=0.48).num_modes == 1
    assert find_modes(density, grid, min_barrier=0.48).masses[0] == pytest.approx(1.0)


def test_light_basins_and_empty_nodes_belong_to_no_mode():
    grid = box_grid(1, 401)
    density = mixture(grid, [[-0.5], [0.5]], [0.995, 0.005], 0.05)
    density[:20] = 0.0
    found = find_modes(density, grid)
    assert found.num_modes == 1
    assert (found.basins[:20] == -1).all()
    assert (found.basins[320:] == -1).all()
    assert find_modes(density, grid, min_mass=0.001).num_modes == 2


@pytest.mark.parametrize("action_dim", [1, 2])
def test_islands_have_two_modes_where_the_wall_stands_and_three_without(action_dim):
    task, grid = IslandsTask(action_dim), box_grid(action_dim, 101)
    for state in (0.3, 1.0):
        found = find_modes(mixture_density(task, state, grid, feasible_only=True), grid)
        assert found.num_modes == 2
        masses = mixture_masses(task, state)
        exact = np.sort(masses[[0, 2]] / (masses[0] + masses[2]))[::-1]
        np.testing.assert_allclose(found.masses, exact, atol=1e-2)
        assert find_modes(mixture_density(task, -state, grid), grid).num_modes == 3


def test_coverage_counts_samples_by_basin():
    grid = box_grid(1, 401)
    found = find_modes(mixture(grid, [[-0.5], [0.5]], [0.7, 0.3], 0.1), grid)
    one_sided = mode_coverage(np.full(100, -0.45), found)
    assert one_sided.shares.tolist() == [1.0, 0.0]
    assert one_sided.covered.tolist() == [True, False]
    assert one_sided.fraction == 0.5
    # 4 of 100 on the light mode, 10 of 100 outside the box and in no basin.
    samples = np.concatenate([np.full(86, -0.5), np.full(4, 0.5), np.full(10, 1.5)])
    both = mode_coverage(samples, found)
    np.testing.assert_allclose(both.shares, [0.86, 0.04])
    assert both.fraction == 1.0
    assert mode_coverage(samples, found, min_ratio=0.2).fraction == 0.5


def test_modes_of_samples_are_found_through_their_kernel_density():
    rng = np.random.default_rng(0)
    centres = np.array([[-0.5, 0.3], [0.5, -0.3]])
    samples = centres[rng.integers(2, size=2000)] + 0.1 * rng.standard_normal((2000, 2))
    grid = box_grid(2, 61)
    found = find_modes(kernel_density(samples, grid, bandwidth=0.08), grid)
    assert found.num_modes == 2
    order = np.argsort(found.centres[:, 0])
    np.testing.assert_allclose(found.centres[order], centres, atol=0.06)


def test_kernel_density_of_one_sample_is_the_kernel():
    grid = box_grid(1, 2001)
    density = kernel_density([0.2], grid, bandwidth=0.1)
    peak = 1 / (0.1 * np.sqrt(2 * np.pi))
    assert density.max() == pytest.approx(peak, rel=1e-4)
    assert grid[0][density.argmax()] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
        kernel_density([0.2], grid, bandwidth=0.0)
