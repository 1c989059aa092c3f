"""The tanh-Gaussian policy against torch.distributions, and its limits."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from alam.gaussian import GaussianPolicy, GaussianPolicyConfig, log_one_minus_tanh_squared


def policy_of() -> GaussianPolicy:
    config = GaussianPolicyConfig(hidden=(8,))
    return GaussianPolicy(3, 2, config, generator=torch.Generator().manual_seed(0))


def test_log_probability_equals_that_of_torch_distributions(float64):
    policy = policy_of()
    obs = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    mean, log_std = policy(obs)
    law = Independent(
        TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1)), 1
    )
    action, log_prob = policy.sample(obs, noise)
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(log_prob, law.log_prob(action), rtol=1e-7, atol=1e-7)


def test_density_over_actions_integrates_to_one(float64):
    # In one state: noise on a fine grid gives actions and densities; integrate over the actions.
    policy = policy_of()
    noise = torch.linspace(-8.0, 8.0, 4001)[:, None].expand(-1, 2)
    obs = torch.zeros(4001, 3)
    action, log_prob = policy.sample(obs, noise)
    mean, log_std = policy(obs)
    # Along the diagonal of the noise the joint density is the product of two marginals of which
    # each integrates to 1; take one dimension out by its own closed form.
    other = Normal(0.0, 1.0).log_prob(noise[:, 1]) - log_std[:, 1]
    other = other - log_one_minus_tanh_squared(mean[:, 1] + log_std[:, 1].exp() * noise[:, 1])
    marginal = (log_prob - other).exp()
    assert torch.trapezoid(marginal, action[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("latent", [-20.0, -3.0, -1e-4, 0.0, 0.5, 8.0, 20.0])
def test_log_one_minus_tanh_squared_is_stable_in_single_precision(latent):
    value = log_one_minus_tanh_squared(torch.tensor(latent, dtype=torch.float32)).item()
    # log sech^2 u = 2 log 2 - 2 |u| - 2 log(1 + exp(-2 |u|))
    exact = 2 * math.log(2) - 2 * abs(latent) - 2 * math.log1p(math.exp(-2 * abs(latent)))
    assert value == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_naive_formula_fails_where_the_stable_one_holds():
    latent = torch.tensor(20.0, dtype=torch.float32)
    assert torch.log(1 - torch.tanh(latent) ** 2).item() == -math.inf
    assert log_one_minus_tanh_squared(latent).item() == pytest.approx(-38.61370564, rel=1e-6)


def test_saturated_actions_keep_finite_densities_and_gradients():
    policy = policy_of()
    with torch.no_grad():
        policy.network.biases[-1][..., :2] = 20.0
    action, log_prob = policy.sample(torch.zeros(4, 3), torch.zeros(4, 2))
    log_prob.sum().backward()
    assert action.min() > 1 - 1e-6
    for value in (log_prob, *(p.grad for p in policy.parameters())):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(("raw", "expected"), [(-50.0, -5.0), (0.0, -1.5), (50.0, 2.0)])
def test_log_standard_deviation_stays_between_minus_five_and_two(raw, expected):
    policy = policy_of()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.network.biases[-1][..., 2:] = raw
    assert policy(torch.zeros(1, 3))[1].tolist() == [[expected, expected]]


def test_mode_is_tanh_of_the_mean_and_the_sample_without_noise():
    policy, obs = policy_of(), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(policy.mode(obs), policy.sample(obs, torch.zeros(5, 2))[0])
    assert torch.equal(policy.mode(obs), torch.tanh(policy(obs)[0]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", (0,)),
        ("entropy_coef", -0.1),
        ("initial_entropy_coef", 0.0),
        ("initial_entropy_coef", float("inf")),
        ("target_entropy", float("nan")),
        ("update_interval", 0),
        ("learning_rate", float("inf")),
    ],
)
def test_impossible_configurations_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .* got"):
        GaussianPolicyConfig(**{field: value})
