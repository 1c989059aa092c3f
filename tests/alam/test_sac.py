"""The Gaussian agent: its losses by hand, its signals, its entropy coefficient, its limits."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alam.acting import observation_rows
from alam.critics import CriticConfig
from alam.gaussian import GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import (
    FixedConfig,
    ScalarDualConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)
from alam.sac import SACAgent, SACConfig, make_constraint
from alam.types import Batch, require_batch

B, OBS_DIM, ACTION_DIM = 6, 3, 2


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(rows: int = B) -> Batch:
    return Batch(
        torch.randn(rows, OBS_DIM, generator=seeded(1)),
        torch.rand(rows, ACTION_DIM, generator=seeded(2)) * 2 - 1,
        torch.randn(rows, generator=seeded(3)),
        torch.rand(rows, generator=seeded(4)),
        torch.randn(rows, OBS_DIM, generator=seeded(5)),
        torch.tensor([0.0, 1.0] * (rows // 2)),
    )


def agent_of(policy=None, critics=None, constraint=None, multiplier=None, seed=0) -> SACAgent:
    config = SACConfig(
        policy=GaussianPolicyConfig(**({"hidden": (8,)} | (policy or {}))),
        critics=CriticConfig(**({"hidden": (8,)} | (critics or {}))),
        constraint=ConstraintConfig(**(constraint or {})),
        multiplier=multiplier or FixedConfig(value=0.7),
    )
    return SACAgent(OBS_DIM, ACTION_DIM, config, episode_length=10, seed=seed)


def upcoming_noise(agent: SACAgent) -> torch.Tensor:
    """Return the normals of the next update: of the next action, and of the policy's action."""
    generator = seeded(0)
    generator.set_state(agent.generator.get_state())
    return torch.randn(2, B, ACTION_DIM, generator=generator)


def plain_sample(network, obs, noise):
    """Write out the squashed Gaussian sample and its log-density."""
    (w0, w1), (b0, b1) = network.weights, network.biases
    mean, raw = (torch.relu(obs @ w0[0] + b0[0]) @ w1[0] + b1[0]).chunk(2, dim=-1)
    log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
    latent = mean + log_std.exp() * noise
    normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    return torch.tanh(latent), (normal - torch.log(1 - torch.tanh(latent) ** 2)).sum(-1)


def member_values(network, obs, action, activation) -> torch.Tensor:
    inputs = torch.cat([obs, action], dim=-1)
    (w0, w1), (b0, b1) = network.weights, network.biases
    return torch.stack(
        [(activation(inputs @ w0[e] + b0[e]) @ w1[e] + b1[e]).squeeze(-1) for e in range(len(w0))]
    )


@pytest.mark.parametrize(
    ("multiplier", "limit"), [(0.7, 0.2), (0.0, 50.0)], ids=["active", "inactive"]
)
def test_policy_gradient_is_that_of_the_loss_written_out(float64, multiplier, limit):
    agent = agent_of(
        policy={"entropy_coef": 0.3},
        constraint={"cost_limit": limit, "penalty_coef": 2.0},
        multiplier=FixedConfig(value=multiplier),
    )
    batch = Batch(*(column.double() for column in batch_of()))
    noise, before = upcoming_noise(agent)[1], copy.deepcopy(agent.policy)
    agent.update(batch)  # leaves the policy's gradient behind; the critics moved before it
    action, log_prob = plain_sample(before.network, batch.obs, noise)
    q = member_values(agent.critics.reward, batch.obs, action, torch.relu).amin(0)
    costs = member_values(agent.critics.cost, batch.obs, action, F.silu)
    q_cost = costs.mean(0) + 0.5 * (costs.var(0) + 1e-12).sqrt()
    h = limit * (1 - 0.99**10) / (0.01 * 10)
    hinge = torch.relu(multiplier + 2.0 * (q_cost - h) / h)
    assert (hinge > 0).any().item() == (limit < 1)
    loss = (0.3 * log_prob - q + (hinge**2 - multiplier**2) / (2 * 2.0)).mean()
    expected = torch.autograd.grad(loss, list(before.network.parameters()))
    for parameter, gradient in zip(agent.policy.network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-9)


def test_reward_target_carries_the_entropy_bonus_of_the_next_action(float64):
    agent = agent_of(policy={"entropy_coef": 0.3})
    batch = Batch(*(column.double() for column in batch_of()))
    noise, before = upcoming_noise(agent)[0], copy.deepcopy(agent)
    next_action, next_log_prob = plain_sample(before.policy.network, batch.next_obs, noise)
    q = member_values(before.critics.reward_target, batch.next_obs, next_action, torch.relu)
    bootstrap = q.amin(0) - 0.3 * next_log_prob
    target = batch.reward + 0.99 * (1 - batch.terminated) * bootstrap
    current = member_values(before.critics.reward, batch.obs, batch.action, torch.relu)
    loss = ((current - target) ** 2).mean(-1).sum()
    assert agent.update(batch)["loss/reward_critic"].item() == pytest.approx(loss.item())


@pytest.mark.parametrize(("target", "direction"), [(100.0, 1.0), (-100.0, -1.0)])
def test_entropy_coefficient_rises_below_its_target_entropy_and_falls_above(target, direction):
    agent = agent_of(policy={"target_entropy": target, "learning_rate": 1e-2})
    agent.update(batch_of())
    # Adam's first step on the logarithm has the length of the learning rate.
    assert agent.log_entropy_coef.item() == pytest.approx(direction * 1e-2, rel=1e-4)


def test_target_entropy_defaults_to_minus_the_number_of_action_dimensions():
    assert agent_of().target_entropy == -2.0


@pytest.mark.parametrize("coefficient", [0.0, 0.25])
def test_fixed_entropy_coefficient_stays(coefficient):
    agent = agent_of(policy={"entropy_coef": coefficient})
    for _ in range(2):
        metrics = agent.update(batch_of())
    assert metrics["train/entropy_coef"].item() == pytest.approx(coefficient, abs=1e-9)


@pytest.mark.parametrize("signal", ["policy", "replay"])
def test_multiplier_learns_from_the_configured_actions(signal):
    agent = agent_of(multiplier=ScalarDualConfig(signal=signal, learning_rate=0.1))
    batch = batch_of()
    noise, before = upcoming_noise(agent)[1], copy.deepcopy(agent.policy)
    metrics = agent.update(batch)
    with torch.no_grad():
        action = batch.action if signal == "replay" else before.sample(batch.obs, noise)[0]
        violation = agent.constraint.violation(agent.critics.q_cost(batch.obs, action)).mean()
    assert metrics["train/violation"].item() == pytest.approx(violation.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("constraint", "critics", "expected"),
    [
        # an episode that cost 50 against a limit of 25 over 10 steps
        ({}, {}, 1.0),
        ({"unit": "raw"}, {"cost_discount": 1.0}, 25.0),
        ({"unit": "raw"}, {}, 25.0 * (1 - 0.99**10) / 0.1),
        ({"cost_limit": 0.0}, {}, 50.0),
    ],
)
def test_episode_costs_reach_the_multiplier_in_the_unit_of_the_constraint(
    constraint, critics, expected
):
    agent = agent_of(
        constraint=constraint,
        critics=critics,
        multiplier=ScalarDualConfig(signal="episode", learning_rate=0.1),
    )
    agent.observe_episode_cost(1e6)  # of the warm-up
    assert agent.update(batch_of())["train/multiplier"].item() == 0.0
    agent.observe_episode_cost(50.0)
    metrics = agent.update(batch_of())
    assert metrics["train/multiplier"].item() == pytest.approx(0.1 * expected, rel=1e-5)


def test_episodes_calibrate_the_threshold_from_the_first_update_on():
    agent = agent_of(constraint={"calibration_rate": 0.1})
    nominal = agent.constraint.threshold.item()
    agent.observe_episode_cost(50.0)
    assert agent.constraint.threshold.item() == nominal
    agent.update(batch_of())
    agent.observe_episode_cost(50.0)
    assert agent.constraint.threshold.item() == pytest.approx(nominal * math.exp(-0.15))


def test_threshold_is_that_of_the_discounted_critic_and_zero_for_reachability():
    config = ConstraintConfig(cost_limit=25.0)
    discounted = make_constraint(config, CriticConfig(), episode_length=1000)
    reachability = make_constraint(
        config, CriticConfig(cost_target="reachability"), episode_length=1000
    )
    assert discounted.threshold.item() == pytest.approx(2.49989207, rel=1e-6)
    assert (reachability.threshold.item(), reachability.unit.item()) == (0.0, 1.0)


def test_multiplier_carries_no_gradient_from_the_policy_loss():
    agent = agent_of(multiplier=StatewiseDualConfig(hidden=(8,), interval=1))
    obs = batch_of().obs
    action = torch.zeros(B, ACTION_DIM, requires_grad=True)
    energy, violation = agent.evaluate(obs, action)
    (energy.sum() + violation.sum()).backward()
    assert action.grad is not None
    parameters = [*agent.multiplier.parameters(), *agent.critics.parameters()]
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("interval", [1, 3])
def test_policy_and_multiplier_move_at_the_policy_interval_and_targets_at_theirs(interval):
    agent = agent_of(
        policy={"update_interval": interval},
        critics={"target_update_interval": 2},
        multiplier=ScalarDualConfig(learning_rate=0.1, initial_value=5.0),
    )
    for step in range(1, 7):
        before = copy.deepcopy(agent.state_dict())
        agent.update(batch_of())
        after = agent.state_dict()

        def moved(part, before=before, after=after):
            old, new = part(before), part(after)
            return any(not torch.equal(old[name], new[name]) for name in old)

        assert moved(lambda state: state["policy"]) == (step % interval == 0)
        assert moved(lambda state: {"v": state["multiplier"]["module"]["value"]}) == (
            step % interval == 0
        )
        targets = moved(
            lambda state: {k: v for k, v in state["critics"]["module"].items() if "_target" in k}
        )
        assert targets == (step % 2 == 0)


def test_deterministic_action_is_the_mode_and_stochastic_ones_follow_their_generator():
    agent, obs = agent_of(), batch_of().obs.numpy()
    mode = agent.act(obs, generator=seeded(0), deterministic=True)
    with torch.no_grad():
        np.testing.assert_array_equal(mode, agent.policy.mode(torch.from_numpy(obs)).numpy())
    first, second, other = (agent.act(obs, generator=seeded(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).min() > 0
    assert (first.shape, first.dtype) == ((B, ACTION_DIM), np.float32)
    assert np.abs(first).max() <= 1.0


def test_acting_leaves_the_generator_of_learning_alone():
    agent = agent_of()
    before = agent.generator.get_state()
    agent.act(batch_of().obs.numpy(), generator=seeded(0))
    assert torch.equal(agent.generator.get_state(), before)


# ---- in a loop of one's own ----


@pytest.mark.parametrize("rows", [1, 3])
def test_observations_of_any_precision_act_alike(rows):
    agent = agent_of()
    obs = np.arange(3.0 * rows).reshape(rows, 3)
    expected = agent.act(obs.astype(np.float32), generator=seeded(0))
    assert expected.dtype == np.float32
    for other in (obs, obs.astype(int)):
        action = agent.act(other, generator=seeded(0))
        assert np.array_equal(action, expected)
        assert action.dtype == np.float32
    assert agent.act(obs[:0], generator=seeded(0)).shape == (0, ACTION_DIM)
    for wrong in (obs[0], obs[:, :2], obs[None]):
        with pytest.raises(ValueError, match=r"obs must have shape \(N, 3\), got"):
            observation_rows(wrong, 3, agent.policy)


def test_another_policy_acts_at_once_one_row_or_several():
    agent, other = agent_of(), agent_of(seed=1)
    obs = np.ones((2, 3), np.float32)
    agent.act(obs[:1], generator=seeded(0), deterministic=True)
    agent.policy = other.policy
    expected = other.act(obs, generator=seeded(0), deterministic=True)
    assert agent.act(obs, generator=seeded(0), deterministic=True) == pytest.approx(expected)
    alone = agent.act(obs[:1], generator=seeded(0), deterministic=True)
    assert alone == pytest.approx(expected[:1], abs=1e-6)


@pytest.mark.parametrize("name", Batch._fields)
def test_a_column_that_would_broadcast_is_refused(name):
    batch = batch_of(2)
    column = getattr(batch, name)
    wrong = column[:, None] if column.ndim == 1 else column[:, :1]
    with pytest.raises(ValueError, match=rf"^{name} must have shape \("):
        require_batch(batch._replace(**{name: wrong}), OBS_DIM, ACTION_DIM)
    require_batch(batch, OBS_DIM, ACTION_DIM)


def test_an_update_looks_at_its_batch_before_it_counts():
    agent = agent_of()
    with pytest.raises(ValueError, match=r"^action must have shape \(6, 2\), got \(6, 3\)"):
        agent.update(batch_of()._replace(action=torch.zeros(6, 3)))
    assert agent.num_updates == 0


def test_a_limit_without_a_point_can_be_calibrated():
    agent = agent_of(
        constraint={"cost_limit": 25, "penalty_coef": 1, "calibration_rate": 0.1},
        critics={"cost_discount": 1.0},
    )
    agent.update(batch_of())
    agent.observe_episode_cost(50.0)
    assert 0 < agent.constraint.threshold.item() < 25


def test_the_dual_target_has_the_penalty_of_the_constraint() -> None:
    agent = agent_of(constraint={"penalty_coef": 4.0}, multiplier=StatewiseALaMConfig(hidden=(8,)))
    assert agent.multiplier.penalty_coef == 4.0


def test_the_entropy_coefficient_starts_where_the_config_says() -> None:
    agent = agent_of(policy={"entropy_coef": "auto", "initial_entropy_coef": 0.2})
    assert agent.log_entropy_coef.item() == pytest.approx(math.log(0.2))


def test_episodes_are_held_against_the_limit_whatever_the_calibrated_threshold() -> None:
    """An episode of twice the limit is a violation of 1 in units of the nominal threshold."""
    config = ScalarDualConfig(signal="episode", learning_rate=0.1)
    agent = agent_of(constraint={"cost_limit": 25.0, "calibration_rate": 0.1}, multiplier=config)
    agent.update(batch_of())
    for expected in (0.1, 0.2):
        agent.observe_episode_cost(50.0)
        agent.update(batch_of())
        assert agent.multiplier.value.item() == pytest.approx(expected, rel=1e-6)


def test_several_rows_act_by_one_draw_of_their_own_noise() -> None:
    agent = agent_of()
    obs = batch_of().obs
    action = agent.act(obs.numpy(), generator=seeded(7))
    noise = torch.randn(B, ACTION_DIM, generator=seeded(7))
    expected, _ = plain_sample(agent.policy.network, obs, noise)
    np.testing.assert_allclose(action, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
