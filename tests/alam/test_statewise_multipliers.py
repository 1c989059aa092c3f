"""Multiplier networks: dual ascent, and the regression to a lagged dual target that ALaM is."""

import copy
import subprocess
import sys

import pytest
import torch

from alam.lagrangian import dual_target
from alam.multiplier import MULTIPLIERS, make_multiplier
from alam.multiplier_base import require_rows
from alam.multiplier_config import (
    FixedConfig,
    ScalarDualConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)

OBS = torch.randn(16, 3, generator=torch.Generator().manual_seed(7))


def build(config, penalty_coef=1.0, obs_dim=3):
    generator = torch.Generator().manual_seed(0)
    multiplier = make_multiplier(config, obs_dim, penalty_coef=penalty_coef, generator=generator)
    multiplier.build_optimizer()
    return multiplier


def alam(**changes) -> StatewiseALaMConfig:
    return StatewiseALaMConfig(**({"hidden": (8,)} | changes))


def dual(**changes) -> StatewiseDualConfig:
    return StatewiseDualConfig(**({"hidden": (8,), "interval": 1} | changes))


NO_LAG = {"dual_target_rate": 1.0, "dual_target_interval": 1, "dual_steps": 1}


def gradients(loss, multiplier) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(multiplier.network.parameters())))


def test_dual_target_of_the_lagged_network_by_hand():
    multiplier = build(alam(multiplier_max=2.0), penalty_coef=4.0)
    with torch.no_grad():
        for parameter in multiplier.lagged.parameters():
            parameter.zero_()
        multiplier.lagged.network.biases[-1].fill_(0.5413248546129181)  # softplus gives 1
    violation = torch.tensor([-1.0, -0.1, 0.0, 0.1, 9.0])
    target = multiplier.target(torch.zeros(5, 3), violation)
    assert target.tolist() == pytest.approx([0.0, 0.6, 1.0, 1.4, 2.0], rel=1e-6)


def test_an_unhinged_target_is_bounded_above_alone():
    multiplier = build(alam(multiplier_max=2.0, target_hinge="mean"), penalty_coef=4.0)
    with torch.no_grad():
        for parameter in multiplier.lagged.parameters():
            parameter.zero_()
        multiplier.lagged.network.biases[-1].fill_(0.5413248546129181)  # softplus gives 1
    target = multiplier.target(torch.zeros(3, 3), torch.tensor([-1.0, 0.1, 9.0]))
    assert target.tolist() == pytest.approx([-3.0, 1.4, 2.0], rel=1e-6)


def test_own_penalty_overrides_that_of_the_constraint():
    target = build(alam(penalty_coef=4.0), penalty_coef=9.0).target(OBS, torch.ones(16))
    expected = build(alam(), penalty_coef=4.0).target(OBS, torch.ones(16))
    assert torch.equal(target, expected)


@pytest.mark.parametrize("penalty", [0.5, 4.0])
def test_without_lag_the_regression_gradient_is_that_of_dual_ascent(float64, penalty):
    # The trap: lagged copy equal to the network, one step, hinge active in every row.
    multiplier = build(alam(**NO_LAG, learning_rate=1e-2), penalty_coef=penalty)
    obs, violation = OBS.double(), torch.linspace(0.1, 1.0, 16)
    for _ in range(3):
        multiplier.update(obs, violation)
    regression = gradients(
        multiplier.loss(multiplier.network(obs), multiplier.target(obs, violation)), multiplier
    )
    ascent = gradients(-(penalty * violation * multiplier.network(obs)).mean(), multiplier)
    for mine, expected in zip(regression, ascent, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)
        assert expected.abs().max() > 0


def test_without_lag_training_equals_the_dual_ascent_network_step_by_step(float64):
    obs, violation = OBS.double(), torch.linspace(0.1, 1.0, 16)
    regression = build(alam(**NO_LAG, learning_rate=1e-3))
    ascent = build(dual(learning_rate=1e-3))
    for _ in range(5):
        regression.update(obs, violation)
        ascent.update(obs, violation)
    for mine, other in zip(
        regression.network.parameters(), ascent.network.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_a_lagged_copy_adds_a_pull_back_to_itself(float64):
    multiplier = build(alam(dual_target_interval=100, learning_rate=1e-2))
    obs, violation = OBS.double(), torch.linspace(0.1, 1.0, 16)
    for _ in range(30):
        multiplier.update(obs, violation)
    regression = gradients(
        multiplier.loss(multiplier.network(obs), multiplier.target(obs, violation)), multiplier
    )
    drift = (multiplier.network(obs) - multiplier.lagged(obs)).detach()
    assert drift.mean().item() > 0.1
    pulled = gradients(((drift - violation) * multiplier.network(obs)).mean(), multiplier)
    for mine, expected in zip(regression, pulled, strict=True):
        torch.testing.assert_close(mine, expected)
    ascent = gradients(-(violation * multiplier.network(obs)).mean(), multiplier)
    assert sum(g.norm() for g in regression) < 0.9 * sum(g.norm() for g in ascent)


def test_many_regression_steps_reach_the_target_and_stop_there():
    multiplier = build(alam(dual_steps=400, learning_rate=1e-2))
    start = multiplier(torch.zeros(4, 3))[0].item()
    multiplier.update(torch.zeros(4, 3), torch.full((4,), 0.5))
    # Dual ascent of the same length would go on: 400 Adam steps of 0.01 each.
    assert multiplier(torch.zeros(4, 3))[0].item() == pytest.approx(start + 0.5, abs=1e-3)


def test_where_the_hinge_is_off_the_target_is_zero_and_the_multiplier_decays(float64):
    multiplier = build(alam(**NO_LAG))
    obs = OBS.double()
    target = multiplier.target(obs, torch.full((16,), -5.0))
    assert target.abs().max() == 0
    regression = gradients(multiplier.loss(multiplier.network(obs), target), multiplier)
    decay = gradients(0.5 * multiplier.network(obs).square().mean(), multiplier)
    for mine, expected in zip(regression, decay, strict=True):
        torch.testing.assert_close(mine, expected)


def test_dual_ascent_network_follows_the_violation_weighted_gradient(float64):
    multiplier, obs = build(dual()), OBS.double()
    violation = torch.linspace(-1.0, 1.0, 16)
    output = multiplier.network(obs)
    (slope,) = torch.autograd.grad(-(output * violation).mean(), output)
    torch.testing.assert_close(slope, -violation / 16)
    expected = gradients(-(multiplier.network(obs) * violation).mean(), multiplier)
    for mine, other in zip(
        gradients(multiplier.loss(multiplier.network(obs), violation), multiplier),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(("rate", "interval"), [(1.0, 3), (0.25, 1), (0.5, 2)])
def test_lagged_copy_moves_by_its_rate_at_its_interval_alone(rate, interval):
    multiplier = build(
        alam(dual_target_rate=rate, dual_target_interval=interval, learning_rate=0.1)
    )
    for step in range(1, 7):
        before = copy.deepcopy(multiplier.lagged.state_dict())
        multiplier.update(OBS, torch.ones(16))
        for name, value in multiplier.lagged.state_dict().items():
            moved = before[name] + rate * (multiplier.network.state_dict()[name] - before[name])
            expected = moved if step % interval == 0 else before[name]
            torch.testing.assert_close(value, expected)


def test_several_regression_steps_share_one_target():
    multiplier = build(alam(dual_steps=3))
    multiplier.update(OBS, torch.ones(16))
    steps = {int(state["step"]) for state in multiplier.optimizer.state.values()}
    assert steps == {3}


@pytest.mark.parametrize("config", [alam(interval=3), dual(interval=3)])
def test_network_moves_at_its_interval_alone(config):
    multiplier = build(config)
    for step in range(1, 7):
        before = multiplier.network(OBS)
        multiplier.update(OBS, torch.ones(16))
        assert torch.equal(multiplier.network(OBS), before) == (step % 3 != 0)


def settle(multiplier, violation_of, updates: int) -> float:
    obs = torch.zeros(4, 3)
    for _ in range(updates):
        with torch.no_grad():
            violation = violation_of(multiplier(obs))
        multiplier.update(obs, violation)
    return multiplier(obs)[0].item()


@pytest.mark.parametrize(
    # Violation +1 in one of four draws, -1 else, penalty 1. Per sample: root of (m + 1) / 4 = m,
    # positive although the mean violation is -1/2. Hinge of the mean: [m - 1/2]_+ = m gives 0.
    ("hinge", "fixed_point"),
    [("sample", 1 / 3), ("mean", 0.0)],
)
def test_fixed_point_under_violations_that_do_not_depend_on_the_multiplier(hinge, fixed_point):
    multiplier = build(
        alam(target_hinge=hinge, output="relu", learning_rate=0.01, dual_target_interval=5)
    )
    draws = torch.tensor([1.0, -1.0, -1.0, -1.0])
    value = settle(multiplier, lambda _: draws, 400)
    assert value == pytest.approx(fixed_point, abs=5e-3)
    residual = dual_target(torch.tensor(fixed_point), draws, penalty_coef=1.0).mean().item()
    assert (residual == pytest.approx(fixed_point)) == (hinge == "sample")


@pytest.mark.parametrize("output", ["softplus", "relu"])
def test_a_multiplier_that_long_was_zero_is_not_wound_up_below_it(output):
    multiplier = build(
        alam(target_hinge="mean", output=output, learning_rate=0.01, dual_target_interval=5)
    )
    assert settle(multiplier, lambda _: -torch.ones(4), 500) < 0.01
    raw = multiplier.network.network(torch.zeros(1, 3)).item()
    assert raw > -7.0  # -9 and -195 where nothing holds it
    assert settle(multiplier, lambda _: torch.ones(4), 100) > 0.1


@pytest.mark.parametrize(
    # Violation 1 - m -+ 2: per sample E[(1 -+ 2)_+] = 3/2 = m, where the mean violation is -1/2;
    # hinge of the mean: m = 1, where it is 0.
    ("hinge", "fixed_point"),
    [("sample", 1.5), ("mean", 1.0)],
)
def test_hinge_of_the_mean_meets_the_constraint_in_expectation_and_hinge_per_sample_overshoots(
    hinge, fixed_point
):
    multiplier = build(alam(target_hinge=hinge, learning_rate=0.02, dual_target_interval=5))
    spread = torch.tensor([2.0, -2.0, 2.0, -2.0])
    value = settle(multiplier, lambda current: 1.0 - current + spread, 500)
    assert value == pytest.approx(fixed_point, abs=0.02)


def test_alam_finds_the_multiplier_of_every_state_of_a_family_of_quadratics():
    # maximise -(a - m)^2 with a <= b and m - b = s: a = m - multiplier / 2, multiplier* = 2 [s]_+.
    states = torch.linspace(-1.0, 1.0, 41)[:, None]
    multiplier = build(alam(hidden=(32,), learning_rate=0.01, dual_target_interval=10), obs_dim=1)
    for _ in range(800):
        with torch.no_grad():
            violation = states[:, 0] - multiplier(states) / 2
        multiplier.update(states, violation)
    optimum = 2 * states[:, 0].clamp(min=0)
    error = (multiplier(states) - optimum).abs().sum() / optimum.sum()
    assert error.item() < 0.03


@pytest.mark.parametrize(
    "config",
    [
        dual(hidden=(16,), learning_rate=1e-2, multiplier_max=2.0),
        alam(hidden=(16,), learning_rate=1e-2, dual_target_interval=10, multiplier_max=2.0),
    ],
    ids=["dual", "alam"],
)
def test_infeasible_states_stay_at_the_bound_and_return_when_they_become_feasible(config):
    multiplier, obs = build(config), OBS[:4]
    assert multiplier.update(obs, torch.ones(4))["train/multiplier_at_bound"].item() == 0.0
    for _ in range(600):
        metrics = multiplier.update(obs, torch.ones(4))
    assert multiplier(obs).tolist() == pytest.approx([2.0] * 4, abs=0.02)
    assert multiplier(obs).max().item() <= 2.0
    assert metrics["train/multiplier_at_bound"].item() == 1.0
    for _ in range(400):
        metrics = multiplier.update(obs, -torch.ones(4))
    assert multiplier(obs).max().item() < 0.1
    assert metrics["train/multiplier_at_bound"].item() == 0.0


@pytest.mark.parametrize("output", ["softplus", "squared", "relu"])
def test_every_output_is_non_negative_starts_near_zero_and_can_rise_and_return(output):
    multiplier = build(alam(output=output, learning_rate=0.02, dual_target_interval=10))
    start = multiplier(OBS)
    assert start.min().item() >= 0
    assert start.mean().item() < 0.35
    for _ in range(150):
        multiplier.update(OBS, torch.ones(16) * 0.2)
    assert multiplier(OBS).mean().item() > 1
    for _ in range(300):
        multiplier.update(OBS, -torch.ones(16) * 0.5)
    assert 0 <= multiplier(OBS).mean().item() < 0.1


@pytest.mark.parametrize("output", ["squared", "relu"])
def test_dual_ascent_that_reached_zero_rises_at_the_first_violations(output):
    multiplier = build(dual(output=output, learning_rate=0.01, interval=1))
    for _ in range(500):
        multiplier.update(OBS, -torch.ones(16))
    assert multiplier(OBS).mean().item() < 0.01
    for _ in range(60):  # a network that had been pushed on down needs 900 and more
        multiplier.update(OBS, torch.ones(16))
    assert multiplier(OBS).mean().item() > 0.1


def test_network_metrics_by_hand():
    multiplier = build(dual(multiplier_max=1.0))
    with torch.no_grad():
        for parameter in multiplier.network.parameters():
            parameter.zero_()
        multiplier.network.network.weights[0][:, 0, 0] = 1.0
        multiplier.network.network.weights[1][:, 0, 0] = 1.0  # softplus(relu(first observation))
    obs = torch.tensor([[0.0, 0, 0], [30.0, 0, 0]])
    metrics = multiplier.update(obs, torch.zeros(2))
    assert metrics["train/multiplier"].item() == pytest.approx((0.6931472 + 1.0) / 2)
    assert metrics["train/multiplier_at_bound"].item() == 0.5
    assert metrics["train/violation"].item() == 0.0


def test_episode_costs_do_not_move_a_network():
    for config in (alam(), dual()):
        multiplier = build(config)
        before = copy.deepcopy(multiplier.full_state())
        multiplier.observe_episode(100.0)
        torch.testing.assert_close(multiplier.full_state(), before)


@pytest.mark.parametrize(
    "config",
    [alam(dual_target_interval=3, interval=2), dual(interval=3), FixedConfig(value=1.0)],
    ids=["alam", "dual", "fixed"],
)
def test_full_state_continues_bitwise(config):
    first, second = build(config), build(config)
    for _ in range(4):
        first.update(OBS, torch.linspace(-1, 1, 16))
    second.load_full_state(copy.deepcopy(first.full_state()))
    for _ in range(4):
        for multiplier in (first, second):
            multiplier.update(OBS, torch.linspace(-1, 1, 16))
    assert torch.equal(first(OBS), second(OBS))


def test_six_kinds_are_offered():
    assert MULTIPLIERS == (
        "fixed",
        "scalar_dual",
        "scalar_pid",
        "scalar_adrc",
        "statewise_dual",
        "statewise_alam",
    )


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (StatewiseDualConfig, "learning_rate", -1.0),
        (StatewiseDualConfig, "interval", 0),
        (StatewiseALaMConfig, "dual_target_rate", 0.0),
        (StatewiseALaMConfig, "dual_target_interval", 0),
        (StatewiseALaMConfig, "dual_steps", 0),
        (StatewiseALaMConfig, "penalty_coef", 0.0),
        (StatewiseALaMConfig, "multiplier_max", float("inf")),
    ],
)
def test_impossible_configurations_are_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .* got"):
        config(**{field: value})


# ---- in a loop of one's own ----


@pytest.mark.parametrize("shape", [(16, 1), (1,), ()])
def test_violations_that_would_broadcast_are_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(16,\), one per observation, got"):
        require_rows(OBS, torch.zeros(shape))


def test_every_kind_looks_at_the_shape_of_its_violations():
    """In a process without the array checks of these tests."""
    code = """
import torch
from alam import *
for config in (FixedConfig(), ScalarDualConfig(), StatewiseDualConfig(), StatewiseALaMConfig()):
    try:
        make_multiplier(config, 3, penalty_coef=1.0).update(torch.ones(4, 3), torch.ones(4, 1))
    except ValueError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    says = "violation must have shape (4,), one per observation, got (4, 1)"
    assert run.stdout.splitlines() == [says] * 4


@pytest.mark.parametrize(
    "config",
    [alam(), dual(), ScalarDualConfig(parameterization="log", initial_value=0.5), FixedConfig()],
)
def test_a_multiplier_makes_its_optimiser_and_leaves_the_violation_alone(config):
    multiplier = make_multiplier(config, 3, penalty_coef=1.0)
    weight = torch.ones(3, requires_grad=True)
    for _ in range(2):
        metrics = multiplier.update(OBS, OBS @ weight)
    assert weight.grad is None
    assert not any(value.requires_grad for value in metrics.values())


def test_a_state_alone_is_what_it_is_in_a_batch():
    for config in (alam(), dual(), FixedConfig(value=0.5)):
        multiplier = build(config)
        alone = multiplier(OBS[0])
        assert alone.shape == ()
        assert alone.item() == pytest.approx(multiplier(OBS)[0].item(), rel=1e-6)


def test_what_is_no_configuration_makes_no_multiplier():
    with pytest.raises(TypeError, match=r"must be one of FixedConfig, .*, got 'scalar_pid'"):
        make_multiplier("scalar_pid", 3, penalty_coef=1.0)


def test_building_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(alam())
    assert torch.equal(torch.rand(3), expected)
