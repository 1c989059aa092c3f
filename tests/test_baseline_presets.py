"""Every baseline is a preset, and each takes the update of its paper: worked out here in numbers.

Expected values come from the formulas and from torch.distributions, not from the functions under
test.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from alam.sac import SACAgent
from alam.scalar_multipliers import ScalarMultiplier
from alam.statewise_multipliers import StatewiseDual
from alam.types import Batch
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import DiffusionPolicy, DiffusionPolicyConfig
from algd.experiments.config import TrainedAgent, load_config, make_agent
from algd.experiments.yaml_files import list_presets

OBS, ACTION, ROWS = 3, 2, 6
BASELINES = {
    "sac": "1812.05905",
    "sac_lag": "dual ascent",
    "sac_pid": "2007.03964",
    "sac_adrc": "2601.18142",
    "fac": "2105.10682",
    "cal": "vy42bYs1Wo",
    "rac": "2205.07536",
    "cvpo": "2201.11927",
    "algd_scalar": "Ablation of ALGD",
    "algd_plain": "Ablation of ALGD",
    "diffusion": "2312.11752",
}


def agent_of(name: str, **overrides: Any) -> TrainedAgent:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    small = {"policy.hidden": [16], "critics.hidden": [16]}
    return make_agent(load_config([name], small | keys), OBS, ACTION, 1000, "cpu")


def sac_of(name: str, **overrides: Any) -> SACAgent:
    agent = agent_of(name, **overrides)
    assert isinstance(agent, SACAgent)
    return agent


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of() -> Batch:
    action = torch.tanh(normal(ROWS, ACTION, seed=1))
    reward, cost = normal(ROWS, seed=2), normal(ROWS, seed=4).abs()
    end = torch.tensor([1.0, 0, 0, 0, 0, 0])
    return Batch(normal(ROWS, OBS), action, reward, cost, normal(ROWS, OBS, seed=5), end)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_a_preset_that_names_its_source(name: str) -> None:
    assert BASELINES[name] in list_presets()[name]
    assert agent_of(name).update(batch_of())


# ---- the policy losses of the Gaussian baselines


def sampled(agent: SACAgent, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and log-densities by torch.distributions."""
    mean, log_std = agent.policy(obs)
    base = Normal(mean, log_std.exp())
    action = torch.tanh(mean + log_std.exp() * noise)
    law = TransformedDistribution(base, TanhTransform(cache_size=0))
    return action, law.log_prob(action).sum(-1)


def values(agent: SACAgent, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum of the twins; mean + pessimism * deviation of the cost ensemble."""
    q_reward = agent.critics.reward(obs, action).squeeze(-1).min(0).values
    ensemble = agent.critics.cost(obs, action).squeeze(-1)
    if len(ensemble) == 1:
        return q_reward, ensemble[0]
    pessimism = agent.critics.config.cost_pessimism
    return q_reward, ensemble.mean(0) + pessimism * ensemble.std(0)


THRESHOLD = 25.0 * (1.0 - 0.99**1000) / (0.01 * 1000)


@pytest.mark.parametrize("name", ["sac", "sac_lag", "sac_pid", "sac_adrc", "fac", "cal", "rac"])
def test_policy_loss_of_the_gaussian_baselines(name: str) -> None:
    agent = sac_of(name)
    obs, noise = normal(ROWS, OBS), normal(ROWS, ACTION, seed=8)
    if isinstance(agent.multiplier, ScalarMultiplier):
        agent.multiplier.value.fill_(0.7)
    action, log_prob = sampled(agent, obs, noise)
    q_reward, q_cost = values(agent, obs, action)
    unit = THRESHOLD if name in ("sac_lag", "sac_pid", "sac_adrc") else 1.0
    violation = (q_cost - (0.0 if name == "rac" else THRESHOLD)) / unit
    weight: Tensor | float = 0.7
    if name == "sac":
        weight = 0.0
    elif name in ("fac", "rac"):
        weight = F.softplus(agent.multiplier.network.network(obs).squeeze(-1))
    elif name == "cal":
        weight = max(0.0, 0.7 + 10.0 * float(violation.detach().mean()))
    coefficient = agent.log_entropy_coef.exp()
    expected = (coefficient * log_prob - q_reward + weight * violation).mean()
    got = agent._update_policy(batch_of()._replace(obs=obs), noise, coefficient)[1]["loss/policy"]
    assert float(got) == pytest.approx(float(expected.detach()), rel=2e-5)


def test_the_hinge_of_cal_opens_and_closes_with_the_batch_mean() -> None:
    agent = sac_of("cal")
    agent.multiplier.value.fill_(0.7)
    obs, rewards = normal(ROWS, OBS), torch.zeros(ROWS)
    multiplier = agent.multiplier(obs)
    safe = torch.tensor([-1.0, 0.5, -0.1, 0.0, -0.1, 0.1])  # mean -0.1: 0.7 + 10 (-0.1) < 0
    assert torch.equal(agent.constraint.energy(rewards, safe, multiplier), torch.zeros(ROWS))
    near = safe + 0.05  # mean -0.05: weight 0.2, the same for safe and unsafe rows
    expected = 0.2 * near
    assert torch.allclose(agent.constraint.energy(rewards, near, multiplier), expected, atol=1e-6)


# ---- how their multipliers move


def test_sac_lag_ascends_the_dual() -> None:
    multiplier = sac_of("sac_lag").multiplier
    obs = normal(ROWS, OBS)
    for mean, expected in ((2.0, 0.002), (-0.5, 0.0015), (-9.0, 0.0)):
        multiplier.update(obs, torch.full((ROWS,), mean))
        assert float(multiplier(obs)[0]) == pytest.approx(expected, abs=1e-8)


def test_sac_pid_adds_its_three_terms() -> None:
    multiplier = sac_of("sac_pid").multiplier
    obs = normal(ROWS, OBS)
    # first interval, violation 1: P = 0.05, I = 0.01, D = 0.05
    # second, violation 3: P = 0.05 + 0.05 (3 - 0.05), I = 0.04, D = the same rise as P, from 0
    rises = 0.05 + 0.05 * (3 - 0.05)
    expected = [0.1 * 0.05 + 0.01 + 0.01 * 0.05, 0.1 * rises + 0.04 + 0.01 * rises]
    for violation, value in zip((1.0, 3.0), expected, strict=True):
        for _ in range(10):
            multiplier.update(obs, torch.full((ROWS,), violation))
        assert float(multiplier(obs)[0]) == pytest.approx(value, rel=1e-5)


def test_sac_adrc_cancels_the_disturbance_and_tracks_the_way_to_zero() -> None:
    multiplier = sac_of("sac_adrc").multiplier
    obs = normal(ROWS, OBS)
    for _ in range(10):
        multiplier.update(obs, torch.ones(ROWS))
    # First step: z = (1, 0, 0), reference (1, -0.05^2); u0 = 2 * 0.05 * (-0.0025); b0 = -0.01.
    assert float(multiplier(obs)[0]) == pytest.approx(0.025, rel=1e-5)


def test_fac_ascends_on_replayed_actions_every_twelfth_update() -> None:
    agent = sac_of("fac")
    assert isinstance(agent.multiplier, StatewiseDual)
    batch = batch_of()
    q_cost = values(agent, batch.obs, batch.action)[1].detach()
    signal = agent.multiplier_signal(batch, torch.full((ROWS,), 99.0))
    assert torch.allclose(signal, q_cost - THRESHOLD, atol=1e-5)
    expected_loss = -(F.softplus(_raw(agent, batch.obs)) * signal).mean()
    before = [p.detach().clone() for p in agent.multiplier.parameters()]
    start = _mean_multiplier(agent, batch.obs)
    for number in range(1, 13):
        metrics = agent.multiplier.update(batch.obs, signal)
        moved = [p - b for p, b in zip(agent.multiplier.parameters(), before, strict=True)]
        if number == 1:
            assert torch.allclose(metrics["loss/multiplier"], expected_loss, rtol=1e-5)
        assert any(bool((m != 0).any()) for m in moved) == (number == 12)
    # Adam's first step moves every weight by its rate at most, here downwards: signal < 0
    assert max(float(m.detach().abs().max()) for m in moved) == pytest.approx(5e-6, rel=0.02)
    assert float(_mean_multiplier(agent, batch.obs)) < float(start)


def _raw(agent: SACAgent, obs: Tensor) -> Tensor:
    return agent.multiplier.network.network(obs).squeeze(-1)


def _mean_multiplier(agent: SACAgent, obs: Tensor) -> Tensor:
    return agent.multiplier(obs).detach().mean()


def test_cal_moves_the_logarithm_by_adam_on_replayed_actions() -> None:
    agent = sac_of("cal")
    batch = batch_of()
    q_cost = values(agent, batch.obs, batch.action)[1].detach()
    signal = agent.multiplier_signal(batch, torch.full((ROWS,), -99.0))
    assert torch.allclose(signal, q_cost - THRESHOLD, atol=1e-5)
    agent.multiplier.update(batch.obs, torch.full((ROWS,), 2.0))
    expected = 0.6931 * torch.tensor(3e-4).exp()  # Adam's first step is its rate
    assert float(agent.multiplier(batch.obs)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_cal_has_the_settings_of_its_code() -> None:
    config = load_config(["cal"])
    assert (config.critics.num_cost_critics, config.critics.cost_pessimism) == (4, 0.5)
    assert (config.train.updates_per_step, config.train.batch_size) == (10.0, 12)
    assert (config.train.warmup, config.train.initial_updates_per_step) == ("policy", 5.0)
    assert config.critics.initial_weights == "released"
    assert (config.constraint.penalty_coef, config.constraint.hinge) == (10.0, "batch")
    assert (config.critics.target_update_interval, config.critics.mask_terminated_cost) == (
        2,
        False,
    )


# ---- reachability


def test_rac_regresses_to_the_worst_cost_ahead_and_allows_none() -> None:
    agent = sac_of("rac")
    batch, next_action = batch_of(), torch.tanh(normal(ROWS, ACTION, seed=9))
    ahead = agent.critics.cost_target(batch.next_obs, next_action).squeeze(-1)[0].detach()
    ahead = ahead * torch.tensor([0.0, 1, 1, 1, 1, 1])  # the first row is an end
    expected = 0.01 * batch.cost + 0.99 * torch.maximum(batch.cost, ahead)
    got = agent.critics.targets(batch, next_action)[1][0]
    assert torch.allclose(got, expected, atol=1e-6)
    assert (float(agent.constraint.threshold), float(agent.constraint.unit)) == (0.0, 1.0)


def test_rac_has_three_time_scales() -> None:
    agent = sac_of("rac")
    batch = batch_of()
    parts = {
        "critics": agent.critics.reward,
        "targets": agent.critics.reward_target,
        "policy": agent.policy,
        "multiplier": agent.multiplier,
    }
    changed: dict[str, list[int]] = {name: [] for name in parts}
    for number in range(1, 25):
        before = {name: _flat(part) for name, part in parts.items()}
        agent.update(batch)
        for name, part in parts.items():
            if not torch.equal(before[name], _flat(part)):
                changed[name].append(number)
    assert changed["critics"] == list(range(1, 25))
    assert changed["policy"] == changed["targets"] == [4, 8, 12, 16, 20, 24]
    assert changed["multiplier"] == [12, 24]


def _flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# ---- diffusion


def diffusion_of(name: str, **overrides: Any) -> ALGDAgent:
    agent = agent_of(name, **overrides)
    assert isinstance(agent, ALGDAgent)
    return agent


def test_plain_algd_has_an_energy_without_curvature_in_the_violation() -> None:
    agent = diffusion_of("algd_plain")
    q_reward, multiplier = normal(ROWS), normal(ROWS, seed=4).abs()
    violation = torch.linspace(-1.0, 1.5, ROWS, requires_grad=True)
    energy = agent.constraint.energy(q_reward, violation, multiplier)
    assert torch.allclose(energy, -q_reward + multiplier * violation)
    (slope,) = torch.autograd.grad(energy.sum(), violation)
    assert torch.equal(slope, multiplier)


def test_scalar_algd_is_augmented_around_one_multiplier() -> None:
    agent = diffusion_of("algd_scalar")
    obs = normal(ROWS, OBS)
    agent.multiplier.update(obs, torch.full((ROWS,), 400.0))
    assert torch.allclose(agent.multiplier(obs), torch.full((ROWS,), 0.4))
    violation = torch.tensor([-1.0, -0.4, 0.0, 0.1, 0.6, 2.0])
    energy = agent.constraint.energy(torch.zeros(ROWS), violation, agent.multiplier(obs))
    expected = [-0.08, -0.08, 0.0, 0.045, 0.42, 2.8]  # ([0.4 + v]_+^2 - 0.16) / 2
    assert torch.allclose(energy, torch.tensor(expected), atol=1e-6)


def test_diffusion_without_constraint_matches_the_score_to_the_gradient_of_q() -> None:
    agent = diffusion_of("diffusion")
    policy = agent.policy
    assert isinstance(policy, DiffusionPolicy)
    slope = torch.tensor([0.3, -0.2])
    agent.critics.q_reward = lambda obs, action, frozen=False: (action * slope).sum(-1)  # type: ignore[method-assign]
    clean = torch.atanh(torch.tensor([[0.5, -0.1], [0.0, 0.8]]))
    obs, level = normal(2, OBS), torch.zeros(2, dtype=torch.long)
    temperature = torch.tensor(0.1)
    sigma, base = float(policy.schedule.sigmas[0]), policy.config.base_std
    assert base == 1.5
    targets: list[Tensor] = []

    def recorded(score: Tensor, noisy: Tensor, at: Tensor) -> Tensor:
        targets.append(score)
        return score

    policy.network.prediction_target = recorded  # type: ignore[method-assign]
    noise = torch.zeros(1 + 8, 2, ACTION)  # no re-noising, every proposal at the same latent
    policy.score_loss(obs, clean, agent.evaluate, temperature, noise, level)
    # grad_u [Q / beta + sum log(1 - tanh^2)] where the base law puts the proposals
    squashed = torch.tanh(clean * base**2 / (base**2 + sigma**2))
    expected = slope / 0.1 * (1 - squashed.square()) - 2 * squashed
    assert torch.allclose(targets[0], expected, atol=1e-5)


def test_diffusion_without_constraint_does_not_see_the_cost() -> None:
    agent = diffusion_of("diffusion")
    obs, action = normal(ROWS, OBS), torch.tanh(normal(4, ROWS, ACTION))
    energy = agent.evaluate(obs, action)[0]
    for parameter in agent.critics.cost.parameters():
        parameter.data.add_(7.0)
    assert torch.equal(agent.evaluate(obs, action)[0], energy)
    q_reward = agent.critics.reward(obs, action).squeeze(-1).amin(0)
    assert torch.allclose(energy, -q_reward)
    config = agent.config.policy
    assert isinstance(config, DiffusionPolicyConfig)
    assert (config.chain_coef, config.estimator) == (0.0, "target")
