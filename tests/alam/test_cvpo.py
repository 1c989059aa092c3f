"""CVPO (arXiv 2201.11927): its dual, its two steps, and a problem whose answer is known."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from alam.critics import CriticConfig
from alam.cvpo import (
    CVPOAgent,
    CVPOConfig,
    CVPOPolicyConfig,
    decoupled_kl,
    weighted_likelihood,
)
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import ScalarDualConfig
from alam.types import Batch
from alam.variational_dual import Dual, dual_value, mean_kl_to_uniform, solve_dual

OBS, ACTION, ROWS = 3, 2, 8


def dual_of(temperature: float, multiplier: float) -> Dual:
    pair = torch.tensor([temperature, multiplier], dtype=torch.float64)
    return Dual(pair[0], pair[1])


def make_agent(**policy: Any) -> CVPOAgent:
    config = CVPOConfig(
        CVPOPolicyConfig(hidden=(32,), **{"num_action_samples": 16} | policy),
        CriticConfig(hidden=(16,), num_cost_critics=2),
        ConstraintConfig(augmented=False, unit="raw", cost_limit=25.0),
    )
    return CVPOAgent(OBS, ACTION, config, episode_length=1000, seed=0)


def batch_of(rows: int = ROWS, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    action = torch.tanh(normal(rows, ACTION))
    zeros = torch.zeros(rows)
    return Batch(
        normal(rows, OBS), action, normal(rows), normal(rows).abs(), normal(rows, OBS), zeros
    )


# ---- the dual


def by_numpy(q_reward: np.ndarray, violation: np.ndarray, kl_bound: float, x: Any) -> float:
    """The formula, written once more."""
    temperature, multiplier = np.exp(x[0]), x[1]
    y = (q_reward - multiplier * violation) / temperature
    top = y.max(0)
    return temperature * (kl_bound + np.mean(top + np.log(np.mean(np.exp(y - top), axis=0))))


def test_the_dual_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    q_reward, violation = rng.normal(size=(16, 5)) * 30, rng.normal(size=(16, 5))
    got = dual_value(
        torch.tensor(q_reward), torch.tensor(violation), dual_of(2.5, 0.8), kl_bound=0.1
    )
    expected = by_numpy(q_reward, violation, 0.1, [np.log(2.5), 0.8])
    assert float(got) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.01, 1000),
    violation_scale=st.floats(0.01, 100),
    shift=st.floats(-1.0, 0.5),
    kl_bound=st.floats(0.02, 1.0),
)
@example(seed=4852, scale=804.0, violation_scale=0.03125, shift=0.0, kl_bound=1.0)
def test_the_dual_is_solved_as_scipy_solves_it(
    seed: int, scale: float, violation_scale: float, shift: float, kl_bound: float
) -> None:
    rng = np.random.default_rng(seed)
    q_reward = (rng.normal(size=(32, 16)) + 3) * scale
    violation = (rng.normal(size=(32, 16)) + 0.1 * shift) * violation_scale
    got = solve_dual(
        torch.tensor(q_reward),
        torch.tensor(violation),
        dual_of(1.0, 0.0),
        kl_bound=kl_bound,
        multiplier_max=1e5,
        steps=40,
    )

    def value(x: Any) -> float:
        return by_numpy(q_reward, violation, kl_bound, x)

    bounds = [(np.log(1e-6), np.log(1e5)), (0.0, 1e5)]
    start = [np.log(scale), scale / violation_scale]
    found = minimize(value, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    mine = value([np.log(float(got.temperature)), float(got.multiplier)])
    assert mine <= found.fun + 1e-6 * scale


def test_at_its_minimum_both_constraints_hold_with_equality() -> None:
    generator = torch.Generator().manual_seed(1)
    q_reward = 20.0 * torch.randn(64, 32, generator=generator, dtype=torch.float64)
    violation = q_reward / 20.0 + 0.5 * torch.randn(64, 32, generator=generator).double()
    dual = solve_dual(
        q_reward, violation, dual_of(1.0, 0.0), kl_bound=0.1, multiplier_max=1e5, steps=40
    )
    weights = torch.softmax((q_reward - dual.multiplier * violation) / dual.temperature, 0)
    assert float(mean_kl_to_uniform(weights)) == pytest.approx(0.1, abs=1e-6)
    assert float((weights * violation).sum(0).mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(dual.multiplier) > 1.0


def test_a_constraint_that_holds_anyway_has_multiplier_zero() -> None:
    q_reward = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).double()
    violation = q_reward.clamp(max=0.0) - 5.0
    dual = solve_dual(
        q_reward, violation, dual_of(1.0, 3.0), kl_bound=0.1, multiplier_max=1e5, steps=40
    )
    assert float(dual.multiplier) == 0.0


def test_an_infeasible_constraint_ends_at_the_bound() -> None:
    q_reward = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).double()
    dual = solve_dual(
        q_reward, q_reward + 9.0, dual_of(1.0, 0.0), kl_bound=0.1, multiplier_max=50.0, steps=40
    )
    assert float(dual.multiplier) == 50.0


def test_few_steps_per_update_follow_a_slowly_moving_dual() -> None:
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    violation = torch.randn(32, 64, generator=generator, dtype=torch.float64) + base
    dual = dual_of(1.0, 0.0)
    for update in range(60):
        q_reward = base * (1.0 + 5.0 * update)
        dual = solve_dual(q_reward, violation, dual, kl_bound=0.1, multiplier_max=1e5, steps=5)
    weights = torch.softmax((q_reward - dual.multiplier * violation) / dual.temperature, 0)
    assert float(mean_kl_to_uniform(weights)) == pytest.approx(0.1, rel=0.02)
    assert abs(float((weights * violation).sum(0).mean())) < 0.01


def test_kl_to_uniform_of_known_weights() -> None:
    one_hot = torch.tensor([[1.0, 0.25], [0.0, 0.25], [0.0, 0.25], [0.0, 0.25]])
    assert float(mean_kl_to_uniform(one_hot)) == pytest.approx(0.5 * np.log(4.0), rel=1e-6)


# ---- the M-step


def test_decoupled_kl_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    old_mean, mean, old_log_std, log_std = torch.randn(4, ROWS, ACTION, generator=generator)
    got = decoupled_kl(old_mean, old_log_std, mean, log_std)

    def law(mean: Tensor, log_std: Tensor) -> MultivariateNormal:
        return MultivariateNormal(mean, torch.diag_embed((2 * log_std).exp()))

    old = law(old_mean, old_log_std)
    by_mean = kl_divergence(old, law(mean, old_log_std)).mean()
    by_std = kl_divergence(old, law(old_mean, log_std)).mean()
    assert torch.allclose(got.mean, by_mean, rtol=1e-4)
    assert torch.allclose(got.std, by_std, rtol=1e-4)


def test_weighted_likelihood_is_that_of_torch_up_to_its_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(5, ROWS, ACTION, generator=generator)
    mean, log_std = torch.randn(2, ROWS, ACTION, generator=generator)
    weights = torch.softmax(torch.randn(5, ROWS, generator=generator), 0)
    law = MultivariateNormal(mean, torch.diag_embed((2 * log_std).exp()))
    expected = (weights * law.log_prob(latent)).sum(0).mean()
    got = weighted_likelihood(latent, weights, mean, log_std)
    assert torch.allclose(got - 0.5 * ACTION * np.log(2 * np.pi), expected, rtol=1e-4)


def test_multipliers_of_the_trust_region_follow_its_excess() -> None:
    agent = make_agent(policy_steps=1, mean_kl_rate=2.0, std_kl_rate=3.0)
    obs = batch_of().obs
    mean, log_std = (x.detach() for x in agent.policy(obs))
    old_mean, old_log_std = mean + 0.1 * log_std.exp(), log_std + 0.1
    latent = old_mean.expand(4, ROWS, ACTION)
    weights = torch.full((4, ROWS), 0.25)
    agent._maximization(obs, latent, weights, old_mean, old_log_std)
    kl = decoupled_kl(old_mean, old_log_std, mean, log_std)
    expected = [
        min(0.1, 2.0 * (float(kl.mean) - 1e-3)),
        min(10.0, 3.0 * (float(kl.std) - 1e-3)),
    ]
    assert agent.kl_coefs.tolist() == pytest.approx(expected, rel=1e-4)
    for _ in range(3):  # the policy is the old one: both bounds are slack
        now = [x.detach() for x in agent.policy(obs)]
        agent._maximization(obs, now[0].expand(4, ROWS, ACTION), weights, now[0], now[1])
    assert agent.kl_coefs[0] < expected[0]


def test_the_released_coefficients_hold_the_mean_near_its_trust_region() -> None:
    """By a sum over the samples in place of their mean it is some 60 bounds away."""
    agent = make_agent(num_action_samples=32)

    def known(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return -50.0 * (action - 0.6).square().sum(-1), torch.full_like(action[..., 0], -5.0)

    agent.critics.target_values = known  # type: ignore[method-assign]
    agent.critics.update = lambda *_: {}  # type: ignore[method-assign]
    kl = [float(agent.update(batch_of(32, seed))["train/mean_kl"]) for seed in range(60)]
    assert 1 < np.mean(kl[-30:]) / agent.config.policy.mean_kl_bound < 15


# ---- the agent


def test_an_update_moves_every_part_and_reports_the_dual() -> None:
    agent = make_agent()
    before = [p.detach().clone() for p in agent.policy.parameters()]
    metrics = agent.update(batch_of())
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())
    after = list(agent.policy.parameters())
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))
    assert float(agent.multiplier(batch_of().obs)[0]) == pytest.approx(
        float(metrics["train/multiplier"])
    )
    assert {"train/dual_temperature", "train/mean_kl", "train/std_kl"} <= metrics.keys()


def test_the_multiplier_is_the_one_that_the_dual_found() -> None:
    agent = make_agent()
    agent.critics.target_values = lambda _, action: (  # type: ignore[method-assign]
        -action.square().sum(-1),
        1e3 + action.sum(-1),
    )
    metrics = agent.update(batch_of())
    assert float(metrics["train/multiplier"]) > 0.1
    assert agent.multiplier(batch_of().obs).tolist() == [
        pytest.approx(float(metrics["train/multiplier"]))
    ] * len(batch_of().obs)


def test_actions_are_weighed_where_the_old_policy_drew_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, batch = make_agent(), batch_of()
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(0.1)
    expected = [value.detach().clone() for value in agent.old_policy(batch.obs)]
    assert not torch.allclose(expected[0], agent.policy(batch.obs)[0])
    seen: list[torch.Tensor] = []

    def fit(_obs, _latent, _weights, *old):
        seen.extend(value.clone() for value in old)
        return {}

    monkeypatch.setattr(agent, "_maximization", fit)
    agent.update(batch)
    for actual, wanted in zip(seen, expected, strict=True):
        assert torch.equal(actual, wanted)


def test_the_old_policy_follows_at_its_rate() -> None:
    agent = make_agent(target_update_rate=0.25)
    old = [p.clone() for p in agent.old_policy.parameters()]
    agent.update(batch_of())
    for was, now, target in zip(
        old, agent.old_policy.parameters(), agent.policy.parameters(), strict=True
    ):
        assert torch.allclose(now, was + 0.25 * (target.detach() - was), atol=1e-6)


def test_a_restored_agent_goes_on_bit_for_bit() -> None:
    first, second = make_agent(), make_agent()
    for seed in range(3):
        first.update(batch_of(seed=seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        a, b = first.update(batch_of(seed=seed)), second.update(batch_of(seed=seed))
        assert all(torch.equal(a[name], b[name]) for name in a)
    obs = batch_of().obs.numpy()
    act = [agent.act(obs, generator=torch.Generator().manual_seed(1)) for agent in (first, second)]
    assert np.array_equal(*act)
    assert np.array_equal(
        first.act(obs, generator=torch.Generator(), deterministic=True),
        torch.tanh(second.policy(torch.from_numpy(obs))[0]).detach().numpy(),
    )


@pytest.mark.parametrize(("bound", "expected", "multiplier"), [(0.2, 0.2, 40.0), (5.0, 0.6, 0.0)])
def test_it_finds_optimum_and_multiplier_of_known_critics(
    bound: float, expected: float, multiplier: float
) -> None:
    """Q = -50 |a - 0.6|^2, E[a_0] <= bound: a_0 = min(0.6, bound), lambda = 100 [0.6 - bound]_+."""
    agent = make_agent(
        learning_rate=5e-3,
        mean_kl_bound=0.1,
        std_kl_bound=0.01,
        mean_kl_coef_max=0.1 / 16,
        std_kl_coef_max=10.0 / 16,
        target_update_rate=0.5,
        policy_steps=5,
    )

    def known(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        q_cost = action[..., 0] - bound + agent.constraint.threshold
        return -50.0 * (action - 0.6).square().sum(-1), q_cost

    agent.critics.target_values = known  # type: ignore[method-assign]
    agent.critics.update = lambda *_: {}  # type: ignore[method-assign]
    batch = batch_of(32)
    for _ in range(70):
        metrics = agent.update(batch)
    with torch.no_grad():
        action = torch.tanh(agent.policy(batch.obs)[0]).mean(0)
    assert float(action[0]) == pytest.approx(expected, abs=0.03)
    assert float(action[1]) == pytest.approx(0.6, abs=0.07)
    assert float(metrics["train/multiplier"]) == pytest.approx(multiplier, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden", (), "hidden must be one or more positive widths"),
        ("num_action_samples", 1, "num_action_samples must be >= 2, got 1"),
        ("policy_steps", 0, "policy_steps must be >= 1, got 0"),
        ("dual_kl_bound", 0.0, "dual_kl_bound must be positive, got 0.0"),
        ("target_update_rate", 1.5, r"target_update_rate must be in \(0, 1\], got 1.5"),
    ],
)
def test_impossible_settings_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CVPOPolicyConfig(**{field: value})


def test_another_multiplier_or_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiplier.kind must be 'fixed'.* got 'scalar_dual'"):
        CVPOConfig(multiplier=ScalarDualConfig())
    with pytest.raises(ValueError, match=r"constraint.augmented must be false"):
        CVPOConfig(constraint=ConstraintConfig())
