"""The temperature by its three rules, and the entropy estimate one of them follows."""

import copy
import math

import pytest
import torch

from algd.diffusion.temperature import (
    Temperature,
    TemperatureConfig,
    nearest_neighbour_entropy,
)


def build(action_dim: int = 2, **settings) -> Temperature:
    temperature = Temperature(TemperatureConfig(**settings), action_dim)
    temperature.build_optimizer()
    return temperature


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GAUSSIAN_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # 1.4189 nats per dimension


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_entropy_of_uniform_samples_is_the_log_volume(dim):
    # [-1, 1]^dim has log volume dim log 2; the neighbours beyond the edge are missing.
    samples = 2 * uniform(2000, 4, dim) - 1
    estimate = nearest_neighbour_entropy(samples)
    assert estimate.shape == (4,)
    assert estimate.mean().item() == pytest.approx(dim * math.log(2), abs=0.05 * dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("std", [1e-3, 0.1, 1.0])
def test_entropy_of_gaussian_samples_equals_the_closed_form(dim, std):
    estimate = nearest_neighbour_entropy(std * normals(2000, 4, dim))
    expected = dim * (GAUSSIAN_ENTROPY + math.log(std))
    assert estimate.mean().item() == pytest.approx(expected, abs=0.05 * dim)


def test_entropy_of_few_samples_is_nearly_unbiased():
    # 16 samples, as many as the temperature draws, averaged over many columns.
    estimate = nearest_neighbour_entropy(normals(16, 4000, 1)).mean().item()
    assert estimate == pytest.approx(GAUSSIAN_ENTROPY, abs=0.15)


def test_entropy_of_a_tight_cluster_far_from_the_origin_keeps_its_digits():
    estimate = nearest_neighbour_entropy(0.9 + 1e-3 * normals(64, 500, 2)).mean().item()
    assert estimate == pytest.approx(2 * (GAUSSIAN_ENTROPY + math.log(1e-3)), abs=0.1)


def test_entropy_by_hand_from_four_equidistant_points():
    # Third neighbours of 0, 1, 2, 3 lie at 3, 2, 2, 3; psi(4) - psi(3) = 1/3; ball of length 2.
    points = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None, None]
    expected = 1 / 3 + math.log(2) + math.log(3 * 2 * 2 * 3) / 4
    assert nearest_neighbour_entropy(points).item() == pytest.approx(expected, rel=1e-6)


def test_entropy_of_coinciding_samples_is_low_and_finite():
    estimate = nearest_neighbour_entropy(torch.ones(16, 3, 2))
    assert torch.isfinite(estimate).all()
    assert estimate.max().item() < -30


def test_raw_temperature_is_the_value():
    temperature = build(mode="raw", value=0.7)
    assert temperature().item() == pytest.approx(0.7)
    temperature.observe_energy(100 * normals(16, 4))
    assert temperature().item() == pytest.approx(0.7)


def test_relative_temperature_is_the_value_times_the_spread_within_states():
    temperature = build(mode="relative", value=0.1)
    assert temperature().item() == pytest.approx(0.1)  # nothing observed: unit scale
    # Two states: deviations +-1 and +-3 over two actions, unbiased stds sqrt 2 and 3 sqrt 2;
    # the levels of the states, 0 and 1000, do not count.
    energy = torch.tensor([[1.0, 1003.0], [-1.0, 997.0]])
    temperature.observe_energy(energy)
    assert temperature().item() == pytest.approx(0.1 * 2 * math.sqrt(2), rel=1e-4)


def test_running_scale_is_unbiased_from_its_first_observation():
    temperature = build(mode="relative", value=1.0, decay=0.9)
    one, two = torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [-2.0]])
    for _ in range(5):  # a constant scale is met at once and kept
        temperature.observe_energy(one)
        assert temperature().item() == pytest.approx(math.sqrt(2), rel=1e-5)
    temperature.observe_energy(two)
    # weights 0.1 on the newest, 0.1 (0.9 + ... + 0.9^5) on the others, over 1 - 0.9^6
    newest = 0.1 / (1 - 0.9**6)
    expected = math.sqrt(2) * (1 + newest)
    assert temperature().item() == pytest.approx(expected, rel=1e-5)


def test_relative_temperature_scales_with_the_energy_so_that_the_law_does_not():
    small, large = build(value=0.2), build(value=0.2)
    energy = normals(16, 8)
    small.observe_energy(energy)
    large.observe_energy(1000 * energy + 50)
    assert large().item() / small().item() == pytest.approx(1000, rel=1e-3)


def test_a_flat_energy_leaves_a_positive_temperature():
    temperature = build(mode="relative")
    temperature.observe_energy(torch.ones(16, 4))
    assert temperature().item() > 0


@pytest.mark.parametrize(("spread", "direction"), [(1e-3, 1.0), (1.0, -1.0)])
def test_tuned_temperature_rises_below_its_target_entropy_and_falls_above(spread, direction):
    temperature = build(mode="entropy", value=0.5, learning_rate=0.01)
    assert temperature.target_entropy == -2.0
    entropy = temperature.observe_samples(spread * normals(16, 8, 2))
    expected = 2 * (GAUSSIAN_ENTROPY + math.log(spread))
    assert entropy.item() == pytest.approx(expected, abs=0.5)
    # Adam's first step on the logarithm has the length of the learning rate.
    assert temperature().item() == pytest.approx(0.5 * math.exp(direction * 0.01), rel=1e-5)


def test_tuned_temperature_finds_the_spread_of_the_target_entropy():
    # Samples whose standard deviation is the temperature: entropy 1.4189 + log T = 0 at T = 0.242.
    temperature = build(1, mode="entropy", value=1.0, learning_rate=0.05, target_entropy=0.0)
    for seed in range(150):
        temperature.observe_samples(temperature() * normals(64, 8, 1, seed=seed))
    assert temperature().item() == pytest.approx(math.exp(-GAUSSIAN_ENTROPY), rel=0.15)


def test_full_state_continues_bitwise():
    first = build(mode="entropy", value=0.5)
    first.observe_samples(normals(16, 8, 2))
    first.observe_energy(normals(16, 8))
    second = build(mode="entropy", value=0.1)
    second.load_full_state(copy.deepcopy(first.full_state()))
    for temperature in (first, second):
        temperature.observe_samples(normals(16, 8, 2, seed=1))
    assert torch.equal(first(), second())
    assert torch.equal(first.scale, second.scale)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", 0.0),
        ("learning_rate", float("inf")),
        ("decay", 1.0),
        ("probe_states", 0),
        ("probe_actions", 3),
        ("target_entropy", float("nan")),
    ],
)
def test_impossible_configurations_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .* got"):
        TemperatureConfig(**{field: value})
