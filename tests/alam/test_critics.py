"""Targets, pessimism and gradient flow of the critics."""

import copy
import math

import pytest
import torch

from alam.critics import CriticConfig, SafeCritics, reachability_target, td_target
from alam.types import Batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def critics_of(**changes) -> SafeCritics:
    config = CriticConfig(**({"hidden": (8,)} | changes))
    critics = SafeCritics(3, 2, config, generator=seeded())
    critics.build_optimizer()
    return critics


@torch.no_grad()
def hold_constant(network, values) -> None:
    """Make each member of an ensemble return one number everywhere."""
    for parameter in network.parameters():
        parameter.zero_()
    network.biases[-1].copy_(torch.tensor(values)[:, None, None])


def batch_of(terminated, reward=None, cost=None) -> Batch:
    rows = len(terminated)
    return Batch(
        obs=torch.randn(rows, 3, generator=seeded(1)),
        action=torch.rand(rows, 2, generator=seeded(2)) * 2 - 1,
        reward=torch.tensor(reward or [1.0] * rows),
        cost=torch.tensor(cost or [0.5] * rows),
        next_obs=torch.randn(rows, 3, generator=seeded(3)),
        terminated=torch.tensor(terminated),
    )


@pytest.mark.parametrize(("terminated", "expected"), [(0.0, 11.0), (1.0, 2.0)])
def test_termination_stops_bootstrapping(terminated, expected):
    target = td_target(
        torch.tensor([2.0]), torch.tensor([10.0]), torch.tensor([terminated]), discount=0.9
    )
    assert target.item() == pytest.approx(expected)


def test_truncation_is_no_column_of_a_batch():
    assert Batch._fields == ("obs", "action", "reward", "cost", "next_obs", "terminated")


@pytest.mark.parametrize(
    ("cost", "next_value", "terminated", "expected"),
    # (1 - 0.9) c + 0.9 max(c, Q')
    [(0.5, 2.0, 0.0, 1.85), (0.5, 0.1, 0.0, 0.5), (0.5, 2.0, 1.0, 0.5), (0.0, 1.0, 0.0, 0.9)],
)
def test_reachability_target_by_hand(cost, next_value, terminated, expected):
    target = reachability_target(
        torch.tensor([cost]), torch.tensor([next_value]), torch.tensor([terminated]), discount=0.9
    )
    assert target.item() == pytest.approx(expected)


def test_reachability_without_any_cost_ahead_is_zero_and_is_never_negative_at_an_end():
    target = reachability_target(
        torch.zeros(2), torch.tensor([0.0, -3.0]), torch.tensor([0.0, 1.0]), discount=0.9
    )
    assert target.tolist() == [0.0, 0.0]


def test_targets_take_the_minimum_of_the_reward_twins_and_each_cost_member_its_own():
    critics = critics_of(num_cost_critics=3, discount=0.9, cost_discount=0.8)
    hold_constant(critics.reward_target, [5.0, 3.0])
    hold_constant(critics.cost_target, [1.0, 2.0, 4.0])
    batch = batch_of([0.0, 1.0])
    reward, cost = critics.targets(batch, batch.action)
    assert reward.tolist() == pytest.approx([1.0 + 0.9 * 3.0, 1.0])
    assert cost[:, 0].tolist() == pytest.approx([0.5 + 0.8 * q for q in (1.0, 2.0, 4.0)])
    assert cost[:, 1].tolist() == [0.5, 0.5, 0.5]


def test_target_values_are_the_pessimistic_values_of_the_target_networks():
    critics = critics_of(num_cost_critics=4, cost_pessimism=0.5)
    for online in (critics.reward, critics.cost):
        hold_constant(online, [100.0] * len(online.biases[-1]))
    hold_constant(critics.reward_target, [5.0, 3.0])
    hold_constant(critics.cost_target, [1.0, 2.0, 3.0, 6.0])
    batch = batch_of([0.0, 1.0])
    q_reward, q_cost = critics.target_values(batch.obs, batch.action)
    assert q_reward.tolist() == [3.0, 3.0]
    assert q_cost.tolist() == pytest.approx([3.0 + 0.5 * math.sqrt(14.0 / 3.0)] * 2)


def test_pessimistic_bootstrap_gives_all_members_one_target_that_is_never_below_the_cost():
    critics = critics_of(num_cost_critics=3, cost_discount=0.8, bootstrap_pessimism=0.25)
    batch = batch_of([0.0, 1.0])
    hold_constant(critics.cost_target, [1.0, 2.0, 3.0])
    _, cost = critics.targets(batch, batch.action)
    ahead = 2.0 + 0.25 * 1.0  # mean and deviation of 1, 2, 3
    assert cost.shape == (3, 2)
    assert cost[:, 0].tolist() == [pytest.approx(0.5 + 0.8 * ahead)] * 3
    assert cost[:, 1].tolist() == [0.5, 0.5, 0.5]
    hold_constant(critics.cost_target, [-9.0, -9.0, -9.0])
    _, cost = critics.targets(batch, batch.action)
    assert cost.flatten().tolist() == [0.5] * 6


def test_targets_come_from_the_target_networks_at_the_next_observation_and_action():
    critics = critics_of(discount=1.0, cost_discount=1.0)
    hold_constant(critics.reward, [100.0, 100.0])
    hold_constant(critics.cost, [100.0] * 4)
    batch, next_action = batch_of([0.0, 0.0]), torch.tensor([[0.1, 0.2], [0.3, -0.4]])
    reward, cost = critics.targets(batch, next_action)
    at_next = critics.reward_target(batch.next_obs, next_action).squeeze(-1).amin(0)
    torch.testing.assert_close(reward, 1.0 + at_next)
    at_next = critics.cost_target(batch.next_obs, next_action).squeeze(-1)
    torch.testing.assert_close(cost, 0.5 + at_next)
    assert not reward.requires_grad
    assert not cost.requires_grad


def test_entropy_bonus_enters_the_reward_target_alone_and_stops_at_the_end():
    critics = critics_of(discount=0.5)
    batch = batch_of([0.0, 1.0])
    plain = critics.targets(batch, batch.action)
    with_bonus = critics.targets(batch, batch.action, torch.tensor([4.0, 4.0]))
    assert (with_bonus[0] - plain[0]).tolist() == pytest.approx([2.0, 0.0], abs=1e-6)
    assert torch.equal(with_bonus[1], plain[1])


def test_unmasked_cost_target_bootstraps_past_termination():
    critics = critics_of(num_cost_critics=1, cost_discount=0.8, mask_terminated_cost=False)
    hold_constant(critics.cost_target, [2.0])
    hold_constant(critics.reward_target, [2.0, 2.0])
    reward, cost = critics.targets(batch_of([1.0]), torch.zeros(1, 2))
    assert reward.tolist() == [1.0]
    assert cost.tolist() == [[pytest.approx(0.5 + 0.8 * 2.0)]]


def test_reachability_config_changes_the_cost_target_alone():
    critics = critics_of(num_cost_critics=1, cost_discount=0.9, cost_target="reachability")
    hold_constant(critics.cost_target, [2.0])
    hold_constant(critics.reward_target, [2.0, 2.0])
    reward, cost = critics.targets(batch_of([0.0]), torch.zeros(1, 2))
    assert reward.item() == pytest.approx(1.0 + 0.99 * 2.0)
    assert cost.item() == pytest.approx(0.1 * 0.5 + 0.9 * 2.0)


def test_q_reward_is_the_minimum_of_the_twins():
    critics = critics_of()
    hold_constant(critics.reward, [5.0, 3.0])
    assert critics.q_reward(torch.zeros(1, 3), torch.zeros(1, 2)).tolist() == [3.0]


@pytest.mark.parametrize(
    # members 1, 2, 3, 6: mean 3, unbiased standard deviation sqrt(14 / 3)
    ("pessimism", "expected"),
    [(0.0, 3.0), (0.5, 3.0 + 0.5 * math.sqrt(14 / 3)), (1.0, 5.160246899)],
)
def test_q_cost_is_mean_plus_pessimism_times_standard_deviation(pessimism, expected):
    critics = critics_of(cost_pessimism=pessimism)
    hold_constant(critics.cost, [1.0, 2.0, 3.0, 6.0])
    value = critics.q_cost(torch.zeros(1, 3), torch.zeros(1, 2))
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_one_cost_critic_has_no_spread_and_agreeing_ones_keep_a_finite_gradient():
    alone = critics_of(num_cost_critics=1, cost_pessimism=9.0)
    hold_constant(alone.cost, [2.0])
    assert alone.q_cost(torch.zeros(1, 3), torch.zeros(1, 2)).item() == 2.0
    agreeing = critics_of(cost_pessimism=1.0)
    for weight in agreeing.cost.parameters():
        weight.data.copy_(weight.data[:1].expand_as(weight).clone())
    action = torch.zeros(1, 2, requires_grad=True)
    agreeing.q_cost(torch.ones(1, 3), action).sum().backward()
    assert action.grad is not None
    assert torch.isfinite(action.grad).all()


def test_frozen_values_carry_gradients_to_actions_and_none_to_weights():
    critics = critics_of()
    obs = torch.randn(4, 3, generator=seeded(4))
    action = torch.rand(4, 2, generator=seeded(5)).requires_grad_(True)
    (free,) = torch.autograd.grad(
        (critics.q_reward(obs, action) + critics.q_cost(obs, action)).sum(), action
    )
    frozen = critics.q_reward(obs, action, frozen=True) + critics.q_cost(obs, action, frozen=True)
    frozen.sum().backward()
    assert all(parameter.grad is None for parameter in critics.parameters())
    torch.testing.assert_close(action.grad, free)
    assert free.abs().max() > 0


def test_losses_are_sums_over_members_of_mean_squared_errors():
    critics = critics_of(num_cost_critics=2, discount=0.0, cost_discount=0.0)
    hold_constant(critics.reward, [2.0, 4.0])
    hold_constant(critics.cost, [1.0, 0.0])
    metrics = critics.update(batch_of([0.0, 0.0], [1.0, 3.0], [0.0, 1.0]), torch.zeros(2, 2))
    # reward: (1 + 1)/2 + (9 + 1)/2; cost: (1 + 0)/2 + (0 + 1)/2
    assert metrics["loss/reward_critic"].item() == pytest.approx(6.0)
    assert metrics["loss/cost_critic"].item() == pytest.approx(1.0)
    assert metrics["train/q_reward"].item() == pytest.approx(3.0)
    assert metrics["train/q_cost"].item() == pytest.approx(0.5)


def test_update_moves_both_critics_and_no_target_and_polyak_moves_targets_by_the_rate():
    critics = critics_of(target_update_rate=0.25)
    before = copy.deepcopy(critics)
    critics.update(batch_of([0.0, 1.0]), torch.zeros(2, 2))
    for name, value in critics.state_dict().items():
        moved = not torch.equal(value, before.state_dict()[name])
        assert moved == ("target" not in name), name
    critics.polyak()
    for target, source in (
        (critics.reward_target, critics.reward),
        (critics.cost_target, critics.cost),
    ):
        old = before.reward_target if target is critics.reward_target else before.cost_target
        for mine, theirs, start in zip(
            target.parameters(), source.parameters(), old.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, 0.75 * start + 0.25 * theirs)


def test_regression_reaches_the_discounted_value_of_a_two_state_chain():
    # s0 -> s1 -> end, rewards 1 and 2, costs 0.5 and 1: Q(s1) = 2 and Q(s0) = 1 + 0.9 * 2.
    critics = critics_of(
        hidden=(16,), discount=0.9, cost_discount=0.8, learning_rate=0.01, target_update_rate=0.1
    )
    obs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    batch = Batch(
        obs,
        torch.zeros(2, 2),
        torch.tensor([1.0, 2.0]),
        torch.tensor([0.5, 1.0]),
        obs.flip(0),
        torch.tensor([0.0, 1.0]),
    )
    for _ in range(400):
        critics.update(batch, torch.zeros(2, 2))
        critics.polyak()
    with torch.no_grad():
        assert critics.q_reward(obs, batch.action).tolist() == pytest.approx([2.8, 2.0], abs=0.02)
        assert critics.q_cost(obs, batch.action).tolist() == pytest.approx([1.3, 1.0], abs=0.02)


def test_full_state_continues_bitwise():
    critics, batch = critics_of(), batch_of([0.0, 1.0, 0.0])
    critics.update(batch, batch.action)
    state = copy.deepcopy(critics.full_state())
    other = critics_of(learning_rate=3e-4)
    other.load_full_state(state)
    for each in (critics, other):
        each.update(batch, batch.action)
        each.polyak()
    for mine, theirs in zip(critics.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", ()),
        ("num_cost_critics", 0),
        ("cost_pessimism", float("inf")),
        ("bootstrap_pessimism", -0.1),
        ("bootstrap_pessimism", float("nan")),
        ("discount", 1.01),
        ("cost_discount", -0.1),
        ("target_update_rate", 0.0),
        ("target_update_interval", 0),
        ("learning_rate", 0.0),
    ],
)
def test_impossible_configurations_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .* got"):
        CriticConfig(**{field: value})
