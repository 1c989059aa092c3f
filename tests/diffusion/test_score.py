"""Score estimators against analytic scores of noised Gaussian and two-Gaussian laws."""

import itertools
import math

import numpy as np
import pytest
import torch

from algd.diffusion.score import (
    ScoreEstimate,
    antithetic,
    denoising_score,
    estimate_score,
    importance_weights,
    mix_by_variance,
    propose,
    target_score,
)

pytestmark = pytest.mark.usefixtures("float64")

TEMPERATURE = 0.5
MEANS, SHARES, STD = (-1.0, 0.8), (0.35, 0.65), 0.3
VE = ([1.0, 1.0, 1.0], [0.05, 0.3, 1.0])
VP = ([0.99, 0.9, 0.6], [math.sqrt(1 - a * a) for a in (0.99, 0.9, 0.6)])


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def two_gaussian_log_density(latent, alpha, sigma):
    """Give each noised Gaussian mean alpha m and variance (alpha s)^2 + sigma^2."""
    variance = (alpha * STD) ** 2 + sigma**2
    parts = [
        math.log(share) - (latent - alpha * mean) ** 2 / (2 * variance) - variance.log() / 2
        for mean, share in zip(MEANS, SHARES, strict=True)
    ]
    return torch.logsumexp(torch.stack(parts), 0)


def two_gaussian_energy(latent):
    one = torch.ones((), dtype=latent.dtype)
    return -TEMPERATURE * two_gaussian_log_density(latent, one, 0.0 * one).sum(-1)


def exact_score(latent, alpha, sigma):
    latent = latent.clone().requires_grad_(True)
    return torch.autograd.grad(two_gaussian_log_density(latent, alpha, sigma).sum(), latent)[0]


def levels_and_points(schedule, points: int):
    """Return every level paired with points across the two modes, noised means included."""
    alphas, sigmas = (torch.tensor(values) for values in schedule)
    level = torch.arange(len(alphas)).repeat_interleave(points)
    alpha, sigma = alphas[level, None], sigmas[level, None]
    points_of_level = torch.linspace(-1.8, 1.8, points).repeat(len(alphas))[:, None]
    return alphas, sigmas, level, alpha, sigma, alpha * points_of_level


@pytest.mark.parametrize("pairs", [True, False], ids=["antithetic", "independent"])
@pytest.mark.parametrize("base_std", [None, 1.5])
@pytest.mark.parametrize("schedule", [VE, VP], ids=["ve", "vp"])
@pytest.mark.parametrize(
    # relative mean squared error at each level with 8,000 samples
    ("estimator", "bound"),
    [("target", [1e-4, 0.01, 0.05]), ("denoising", [1e-3] * 3), ("mixed", [1e-4, 1e-3, 1e-3])],
)
def test_estimators_approach_the_score_of_a_noised_two_gaussian_law(
    estimator, bound, schedule, base_std, pairs
):
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(schedule, 7)
    noise = antithetic(normals(4000, 21, 1)) if pairs else normals(8000, 21, 1)
    proposals = propose(noisy, alpha, sigma, noise, base_std=base_std)
    estimate = estimate_score(
        estimator, proposals, two_gaussian_energy, level, alphas, sigmas, TEMPERATURE
    )
    exact = exact_score(noisy, alpha, sigma)
    error = (estimate - exact).square().reshape(3, 7).mean(1)
    relative = error / exact.square().reshape(3, 7).mean(1)
    assert all(relative < torch.tensor(bound)), relative.tolist()
    assert not estimate.requires_grad


@pytest.mark.parametrize("estimator", ["target", "denoising", "mixed"])
@pytest.mark.parametrize("schedule", [VE, VP], ids=["ve", "vp"])
def test_estimators_approach_the_score_of_a_noised_correlated_gaussian(estimator, schedule):
    # u_0 ~ N(mu, C) in two dimensions: u_t ~ N(alpha mu, alpha^2 C + sigma^2 I).
    mean, covariance = torch.tensor([0.4, -0.2]), torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    precision = torch.linalg.inv(covariance)
    alphas, sigmas = (torch.tensor(values) for values in schedule)
    level = torch.arange(3).repeat_interleave(2)
    alpha, sigma = alphas[level, None], sigmas[level, None]
    noisy = alpha * torch.tensor([[1.0, 0.3], [-0.3, -0.9]]).repeat(3, 1)
    total = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(2)
    exact = -torch.linalg.solve(total, (noisy - alpha * mean)[..., None])[..., 0]

    def energy(latent):
        shifted = latent - mean
        return TEMPERATURE * 0.5 * (shifted @ precision * shifted).sum(-1)

    proposals = propose(noisy, alpha, sigma, antithetic(normals(10_000, 6, 2)), base_std=1.5)
    estimate = estimate_score(estimator, proposals, energy, level, alphas, sigmas, TEMPERATURE)
    torch.testing.assert_close(estimate, exact, rtol=0.06, atol=0.06)


def test_denoising_estimate_is_exact_with_two_samples_where_the_energy_is_that_of_the_base():
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(VP, 5)
    proposals = propose(noisy, alpha, sigma, normals(2, 15, 1), base_std=1.5)
    estimate = estimate_score(
        "denoising",
        proposals,
        lambda latent: TEMPERATURE * latent.square().sum(-1) / (2 * 1.5**2),
        level,
        alphas,
        sigmas,
        TEMPERATURE,
    )
    torch.testing.assert_close(estimate, -noisy / ((1.5 * alpha) ** 2 + sigma**2))


@pytest.mark.parametrize("base_std", [None, 1.5])
def test_target_estimate_is_exact_with_two_samples_where_the_energy_is_linear(base_std):
    # Noising exp(-3 u / T) only rescales it: score -3 / (T alpha) everywhere.
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(VP, 5)
    proposals = propose(noisy, alpha, sigma, normals(2, 15, 1), base_std=base_std)
    estimate = estimate_score(
        "target", proposals, lambda u: 3.0 * u.sum(-1), level, alphas, sigmas, TEMPERATURE
    )
    torch.testing.assert_close(estimate, -3.0 / (TEMPERATURE * alpha))


@pytest.mark.parametrize("schedule", [VE, VP], ids=["ve", "vp"])
def test_proposals_are_draws_from_the_posterior_of_the_base_law(schedule):
    _, _, _, alpha, sigma, noisy = levels_and_points(schedule, 3)
    plain = propose(noisy, alpha, sigma, normals(4000, 9, 1))
    torch.testing.assert_close(plain.latent, (noisy + sigma * plain.noise) / alpha)
    assert plain.log_ratio.abs().max() == 0
    assert plain.base_score.abs().max() == 0
    shaped = propose(noisy, alpha, sigma, normals(4000, 9, 1), base_std=1.5)
    precision = 1 / 1.5**2 + (alpha / sigma) ** 2
    torch.testing.assert_close(shaped.spread, precision.rsqrt())
    centre = alpha * noisy / sigma**2 / precision
    torch.testing.assert_close(shaped.latent, centre + precision.rsqrt() * shaped.noise)
    torch.testing.assert_close(shaped.log_ratio, shaped.latent[..., 0] ** 2 / (2 * 1.5**2))


def test_a_wide_base_law_is_no_base_law():
    _, _, _, alpha, sigma, noisy = levels_and_points(VP, 3)
    plain = propose(noisy, alpha, sigma, normals(6, 9, 1))
    wide = propose(noisy, alpha, sigma, normals(6, 9, 1), base_std=1e6)
    for field in ("latent", "spread", "base_score", "log_ratio"):
        torch.testing.assert_close(
            getattr(wide, field), getattr(plain, field), rtol=1e-8, atol=1e-8
        )


def quadrature_rows(samples: int, nodes: int):
    """Return noise (samples, nodes^samples, 1) and weights whose mean is a Gaussian expectation."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    index = np.array(list(itertools.product(range(nodes), repeat=samples)))
    noise, probability = points[index].T[..., None], weights[index].prod(1)
    return torch.tensor(noise), torch.tensor(probability)


def mean_target_estimate(noise, probability) -> float:
    """Average the estimate for u_0 ~ N(0, 1/4), sigma 1/2, u_t = 0.8: its score is -1.6."""
    rows = noise.shape[1]
    one, half = torch.ones(rows, 1), torch.full((rows, 1), 0.5)
    proposals = propose(0.8 * one, one, half, noise)
    estimate = estimate_score(
        "target",
        proposals,
        lambda latent: 2.0 * latent.square().sum(-1),
        torch.zeros(rows, dtype=torch.long),
        torch.ones(1),
        torch.tensor([0.5]),
        1.0,
    )
    return float((estimate[:, 0] * probability).sum())


def test_self_normalised_weights_are_biased_with_four_samples_and_hardly_with_sixty_four():
    assert mean_target_estimate(*quadrature_rows(4, 12)) == pytest.approx(-1.927, abs=2e-3)
    rows = 20_000
    even = torch.full((rows,), 1.0 / rows)
    assert mean_target_estimate(normals(64, rows, 1), even) == pytest.approx(-1.616, abs=5e-3)


def test_bias_of_self_normalised_weights_falls_as_one_over_the_number_of_samples():
    rows = 40_000
    even = torch.full((rows,), 1.0 / rows)
    biases = [mean_target_estimate(normals(n, rows, 1), even) + 1.6 for n in (8, 16, 32)]
    assert biases == sorted(biases)
    assert biases[0] / biases[1] == pytest.approx(2.0, rel=0.15)
    assert biases[1] / biases[2] == pytest.approx(2.0, rel=0.15)


def test_weights_are_a_softmax_of_minus_energy_over_temperature_by_hand():
    energy = torch.tensor([[0.0], [math.log(3.0)]])
    zero = torch.zeros(2, 1)
    assert importance_weights(energy, zero, 1.0).tolist() == [[0.75], [pytest.approx(0.25)]]
    # half the temperature squares the ratio; a log-ratio multiplies
    assert importance_weights(energy, zero, 0.5)[0].item() == pytest.approx(0.9)
    shaped = importance_weights(energy, torch.tensor([[0.0], [math.log(9.0)]]), 1.0)
    assert shaped[0].item() == pytest.approx(0.25)


def test_both_estimates_by_hand_from_two_samples():
    one, alpha, sigma = torch.ones(1, 1), torch.tensor([[0.5]]), torch.tensor([[2.0]])
    proposals = propose(one, alpha, sigma, torch.tensor([[[1.0]], [[-0.5]]]))
    assert proposals.latent.flatten().tolist() == [6.0, 0.0]  # 1 / 0.5 + 4 eps
    weights = torch.tensor([[0.75], [0.25]])
    denoising = denoising_score(proposals, weights, alpha, sigma)
    # (0.75 * 1 - 0.25 * 0.5 - 0.25) / 2; variance sum w^2 (eps - 0.625)^2 / 4
    assert denoising.score.item() == pytest.approx(0.1875)
    assert denoising.variance.item() == pytest.approx((0.75**2 * 0.375**2 + 0.25**2 * 1.125**2) / 4)
    target = target_score(torch.tensor([[[2.0]], [[-6.0]]]), weights, alpha, 0.5)
    # -(0.75 * 2 - 0.25 * 6) / (0.5 * 0.5) = 0; terms -4 and 12 about their mean 0
    assert target.score.item() == pytest.approx(0.0)
    assert target.variance.item() == pytest.approx((0.75**2 * 16 + 0.25**2 * 144) / 0.25)


def test_antithetic_noise_is_noise_and_its_negative():
    noise = normals(3, 2, 1)
    paired = antithetic(noise)
    assert torch.equal(paired[:3], noise)
    assert torch.equal(paired[3:], -noise)


def test_mixture_weighs_by_inverse_variance_of_the_level_by_hand():
    first = ScoreEstimate(torch.tensor([[0.0], [0.0], [8.0]]), torch.tensor([1.0, 5.0, 0.0]))
    second = ScoreEstimate(torch.tensor([[4.0], [8.0], [0.0]]), torch.tensor([4.0, 14.0, 2.0]))
    level = torch.tensor([1, 1, 3])
    # level 1: mean variances 3 and 9, shares 3/4 and 1/4; level 3: 0 and 2, all to the first
    mixed = mix_by_variance(first, second, level, 5)
    assert mixed.flatten().tolist() == pytest.approx([1.0, 2.0, 8.0])


@pytest.mark.parametrize("schedule", [VE, VP], ids=["ve", "vp"])
def test_mixed_estimate_lies_between_the_two_and_is_better_than_both(schedule):
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(schedule, 200)
    proposals = propose(noisy, alpha, sigma, antithetic(normals(8, 600, 1)))
    estimates = {
        name: estimate_score(
            name, proposals, two_gaussian_energy, level, alphas, sigmas, TEMPERATURE
        )
        for name in ("target", "denoising", "mixed")
    }
    low = torch.minimum(estimates["target"], estimates["denoising"])
    high = torch.maximum(estimates["target"], estimates["denoising"])
    tolerance = 1e-9
    assert (estimates["mixed"] >= low - tolerance).all()
    assert (estimates["mixed"] <= high + tolerance).all()
    exact = exact_score(noisy, alpha, sigma)
    errors = {
        name: (estimate - exact).square().reshape(3, -1).mean(1)
        for name, estimate in estimates.items()
    }
    for k in range(3):
        best = min(errors["target"][k], errors["denoising"][k])
        assert errors["mixed"][k] < 1.1 * best


def test_target_estimate_wins_at_small_noise_and_denoising_at_large():
    schedule = ([1.0, 1.0], [0.05, 1.0])
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(schedule, 200)
    proposals = propose(noisy, alpha, sigma, antithetic(normals(8, 400, 1)))
    exact = exact_score(noisy, alpha, sigma)
    target, denoising = (
        (
            estimate_score(name, proposals, two_gaussian_energy, level, alphas, sigmas, TEMPERATURE)
            - exact
        )
        .square()
        .reshape(2, -1)
        .mean(1)
        for name in ("target", "denoising")
    )
    assert target[0] < denoising[0] / 30
    assert denoising[1] < target[1] / 3


def test_denoising_estimate_needs_no_gradient_of_the_energy():
    alphas, sigmas, level, alpha, sigma, noisy = levels_and_points(VE, 3)
    proposals = propose(noisy, alpha, sigma, normals(4, 9, 1))

    def opaque(latent):
        assert not torch.is_grad_enabled()
        return torch.from_numpy(latent.numpy()[..., 0] ** 2)

    estimate = estimate_score("denoising", proposals, opaque, level, alphas, sigmas, 1.0)
    assert torch.isfinite(estimate).all()
