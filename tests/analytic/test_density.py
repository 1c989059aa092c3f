"""Densities and distances against closed forms and scipy's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import truncnorm, wasserstein_distance

from algd.analysis.density import (
    boltzmann_density,
    box_grid,
    cell_masses,
    grid_points,
    kernel_density,
    sliced_wasserstein1,
    total_variation,
    total_variation_floor,
    trapezoid_weights,
    wasserstein1_1d,
)


def test_boltzmann_density_of_a_parabola_is_the_truncated_normal():
    grid = box_grid(1, 2001)
    mean, temperature = 0.6, 0.1
    density = boltzmann_density(lambda a: np.square(a[:, 0] - mean), grid, temperature)
    std = np.sqrt(temperature / 2)
    exact = truncnorm((-1 - mean) / std, (1 - mean) / std, loc=mean, scale=std)
    np.testing.assert_allclose(density, exact.pdf(grid[0]), rtol=1e-5)


def test_two_dimensional_density_is_the_product_of_its_factors():
    grid = box_grid(2, 101)
    joint = boltzmann_density(lambda a: a[:, 0] ** 2 + 3 * a[:, 1], grid, 0.5)
    first = boltzmann_density(lambda a: a[:, 0] ** 2, grid[:1], 0.5)
    second = boltzmann_density(lambda a: 3 * a[:, 0], grid[:1], 0.5)
    np.testing.assert_allclose(joint, np.outer(first, second), rtol=1e-12)
    assert np.sum(joint * trapezoid_weights(grid)) == pytest.approx(1.0)


def test_infinite_energy_forbids_and_large_energies_do_not_overflow():
    grid = box_grid(1, 5)
    density = boltzmann_density(lambda a: np.where(a[:, 0] < 0, np.inf, 1e6), grid, 1e-3)
    # Three nodes at 0, 0.5 and 1 share the mass; the last has half a cell.
    np.testing.assert_allclose(density, [0, 0, 0.8, 0.8, 0.8])


def test_grid_points_run_through_the_last_axis_first():
    np.testing.assert_array_equal(
        grid_points((np.array([0.0, 1.0]), np.array([5.0, 6.0]))), [[0, 5], [0, 6], [1, 5], [1, 6]]
    )


def test_cell_masses_of_a_linear_density():
    grid = box_grid(1, 401, low=0.0, high=1.0)
    masses = cell_masses(2 * grid[0], grid, 4)
    np.testing.assert_allclose(masses, np.array([1, 3, 5, 7]) / 16, atol=1e-6)


def test_total_variation_known_values():
    grid = box_grid(1, 401)
    uniform = np.full(401, 0.5)
    evenly = (np.arange(4000) + 0.5) / 2000 - 1
    assert total_variation(evenly, uniform, grid) == pytest.approx(0.0, abs=1e-9)
    assert total_variation(np.abs(evenly), uniform, grid) == pytest.approx(0.5, abs=1e-9)
    assert total_variation(evenly + 5, uniform, grid) == pytest.approx(1.0)
    half_outside = np.concatenate([evenly, np.full(4000, 3.0)])
    assert total_variation(half_outside, uniform, grid) == pytest.approx(0.5, abs=1e-9)


def test_total_variation_in_two_dimensions_sees_a_wrong_correlation():
    grid = box_grid(2, 201)
    axis = (np.arange(200) + 0.5) / 100 - 1
    diagonal = np.stack([axis, axis], axis=1)
    uniform = np.full((201, 201), 0.25)
    # A diagonal fills 10 of 100 cells, each with mass 0.1 where 0.01 is right.
    assert total_variation(diagonal, uniform, grid, bins=10) == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize("num_samples", [300, 30_000])
def test_floor_is_what_exact_samples_show(num_samples):
    grid = box_grid(2, 201)
    density = boltzmann_density(lambda a: np.square(a).sum(-1), grid, 0.05)
    rng = np.random.default_rng(0)
    std = np.sqrt(0.025)
    shown = [
        total_variation(std * rng.standard_normal((num_samples, 2)), density, grid)
        for _ in range(10)
    ]
    floor = total_variation_floor(density, grid, num_samples=num_samples)
    assert np.mean(shown) == pytest.approx(floor, rel=0.12)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=30),
    st.floats(-0.8, 0.8),
    st.floats(0.05, 1.0),
)
def test_wasserstein_agrees_with_scipy(samples, mean, temperature):
    grid = box_grid(1, 2001)
    density = boltzmann_density(lambda a: np.square(a[:, 0] - mean), grid, temperature)
    weights = density * trapezoid_weights(grid)
    expected = wasserstein_distance(samples, grid[0], v_weights=weights)
    assert wasserstein1_1d(samples, density, grid) == pytest.approx(expected, abs=5e-4)


def test_wasserstein_of_a_point_to_the_uniform_law():
    grid = box_grid(1, 101, low=0.0, high=1.0)
    assert wasserstein1_1d([0.5], np.ones(101), grid) == pytest.approx(0.25)
    assert wasserstein1_1d([2.0], np.ones(101), grid) == pytest.approx(1.5)


def test_sliced_wasserstein_of_a_shift_and_of_the_law_itself():
    grid = box_grid(2, 101)
    density = boltzmann_density(lambda a: np.square(a).sum(-1), grid, 0.02)
    exact = 0.1 * np.random.default_rng(0).standard_normal((40_000, 2))
    assert sliced_wasserstein1(exact, density, grid) < 2e-3
    # A shift by 0.3 along the first axis projects to 0.3 |cos|, whose mean is 2 / pi.
    shifted = exact + np.array([0.3, 0.0])
    expected = 0.3 * 2 / np.pi
    assert sliced_wasserstein1(shifted, density, grid) == pytest.approx(expected, abs=2e-3)


def test_unusable_input_is_refused():
    grid = box_grid(1, 11)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        boltzmann_density(lambda a: a[:, 0], grid, 0.0)
    with pytest.raises(ValueError, match="one number per action, got shape"):
        boltzmann_density(lambda a: a, grid, 1.0)
    with pytest.raises(ValueError, match="never NaN"):
        boltzmann_density(lambda a: a[:, 0] * np.nan, grid, 1.0)
    with pytest.raises(ValueError, match="samples must be finite"):
        total_variation([np.nan], np.ones(11), grid)
    with pytest.raises(ValueError, match=r"samples must have shape \(n, 1\)"):
        total_variation(np.zeros((3, 2)), np.ones(11), grid)
    with pytest.raises(ValueError, match=r"action_dim must be in 1\.\.2, got 3"):
        box_grid(3, 11)


def test_what_is_no_density_on_the_grid_is_refused():
    grid = box_grid(1, 201)
    density = np.full(201, 0.5)
    assert total_variation(np.linspace(-1, 1, 999), density, grid) < 0.1
    with pytest.raises(ValueError, match="must integrate to 1 over the grid, got 5"):
        total_variation(np.zeros(9), 5 * density, grid)
    with pytest.raises(ValueError, match="no sample lies near the grid"):
        kernel_density(np.full(9, 1e3), grid, bandwidth=0.1)
