"""Score and sampling errors against quadrature and known numbers."""

import numpy as np
import pytest
import torch

from algd.analysis.sampling_error import (
    draw_samples,
    exact_density,
    sampling_error,
    train_sampler,
    two_mode_energy,
)
from algd.analysis.score_error import TwoModeLaw, score_error
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.schedule import ScheduleConfig
from algd.diffusion.score import Estimator

TWO_LEVELS = ScheduleConfig(num_train_timesteps=2, sigma_max=2.0)
TARGET: Estimator = "target"
DENOISING: Estimator = "denoising"


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.5), (0.6, 0.8)])
def test_noised_density_is_the_law_convolved_with_the_noise(alpha: float, sigma: float) -> None:
    law = TwoModeLaw(action_dim=1)
    clean = torch.linspace(-4.0, 4.0, 4001, dtype=torch.float64)
    noisy = torch.tensor([-1.3, 0.1, 0.7], dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((noisy[:, None] - alpha * clean) / sigma) ** 2)
    kernel = kernel / (sigma * (2 * torch.pi) ** 0.5)
    density = torch.trapezoid(law.log_density(clean[:, None]).exp() * kernel, clean)
    exact = law.log_density(noisy[:, None], alpha=alpha, sigma=sigma).exp()
    torch.testing.assert_close(exact, density)


@pytest.mark.parametrize("action_dim", [1, 2, 3])
def test_noised_score_is_the_gradient_of_the_noised_log_density(action_dim: int) -> None:
    law = TwoModeLaw(action_dim=action_dim)
    point = torch.randn(5, action_dim, dtype=torch.float64, requires_grad=True)
    total = law.log_density(point, alpha=0.7, sigma=0.4).sum()
    (gradient,) = torch.autograd.grad(total, point)
    torch.testing.assert_close(law.noised_score(point, alpha=0.7, sigma=0.4), gradient)


def test_samples_of_the_law_have_its_mean_and_variance() -> None:
    law = TwoModeLaw(action_dim=1, separation=2.0, width=0.3, first_share=0.25)
    samples = law.sample(200_000, torch.Generator().manual_seed(0))
    # Mean 0.75 - 0.25 = 0.5; variance 0.09 + 0.75 * 0.25 * 2^2 = 0.84.
    assert samples.mean().item() == pytest.approx(0.5, abs=0.01)
    assert samples.var().item() == pytest.approx(0.84, abs=0.02)


def test_target_score_is_better_at_small_noise_and_denoising_score_at_large() -> None:
    target, denoising = (
        score_error(
            TwoModeLaw(action_dim=2),
            TWO_LEVELS,
            kind,
            num_samples=8,
            num_points=128,
            num_repeats=16,
        ).total
        for kind in (TARGET, DENOISING)
    )
    assert target[0] < 0.01 * denoising[0]
    assert denoising[1] < 0.1 * target[1]


def test_bias_and_variance_of_the_estimate_fall_with_samples() -> None:
    law, schedule = TwoModeLaw(action_dim=1), TWO_LEVELS
    few, many = (
        score_error(law, schedule, "denoising", num_samples=count, num_repeats=32)
        for count in (4, 64)
    )
    # The variance of a mean of 16 times as many samples, within its own noise.
    assert (many.variance < 0.15 * few.variance).all()
    assert many.squared_bias.sum() < 0.5 * few.squared_bias.sum()


def test_score_error_repeats_bit_for_bit() -> None:
    def measure(seed: int) -> torch.Tensor:
        law = TwoModeLaw(action_dim=1)
        return score_error(
            law, TWO_LEVELS, "mixed", num_samples=4, num_points=16, num_repeats=4, seed=seed
        ).total

    assert torch.equal(measure(7), measure(7))
    assert not torch.equal(measure(7), measure(8))


def test_impossible_counts_are_named() -> None:
    with pytest.raises(ValueError, match="num_samples"):
        score_error(TwoModeLaw(), TWO_LEVELS, "target", num_samples=3)
    with pytest.raises(ValueError, match="num_repeats"):
        score_error(TwoModeLaw(), TWO_LEVELS, "target", num_samples=4, num_repeats=1)


def test_impossible_laws_are_named() -> None:
    with pytest.raises(ValueError, match="action_dim"):
        TwoModeLaw(action_dim=0)
    with pytest.raises(ValueError, match="separation"):
        TwoModeLaw(separation=-1.0)
    with pytest.raises(ValueError, match="width"):
        TwoModeLaw(width=0.0)
    with pytest.raises(ValueError, match="first_share"):
        TwoModeLaw(first_share=1.0)


@pytest.mark.parametrize("action_dim", [1, 2])
def test_exact_samples_show_the_floor_and_misplaced_ones_do_not(action_dim: int) -> None:
    density, grid = exact_density(two_mode_energy(action_dim), action_dim)
    rng = np.random.default_rng(0)
    centres = np.array([[-0.45, 0.3], [0.45, -0.3]])[:, :action_dim]
    modes = (rng.random(20_000) >= 0.35).astype(int)
    drawn = centres[modes] + 0.15 * rng.normal(size=(20_000, action_dim))
    inside = drawn[(np.abs(drawn) < 1).all(axis=1)]
    exact = sampling_error(inside, density, grid)
    assert exact.total_variation == pytest.approx(exact.floor, rel=0.3)
    assert exact.wasserstein1 < 0.02
    one_sided = sampling_error(
        centres[1] + 0.15 * rng.normal(size=(5_000, action_dim)), density, grid
    )
    # The missing mode holds 0.35 of the mass.
    assert one_sided.total_variation == pytest.approx(0.35, abs=0.06)


def test_a_sampler_trained_on_an_energy_approaches_its_law() -> None:
    def energy(action: torch.Tensor) -> torch.Tensor:
        return 12.0 * (action[..., 0] - 0.4).square()

    density, grid = exact_density(energy, 1)
    config = DiffusionPolicyConfig(
        hidden=(32, 32), learning_rate=3e-3, schedule=ScheduleConfig(num_train_timesteps=5)
    )
    distances = [
        sampling_error(
            draw_samples(train_sampler(config, energy, 1, updates=updates), 2_000), density, grid
        ).total_variation
        for updates in (1, 400)
    ]
    assert distances[0] > 0.4
    assert distances[1] < 0.25
