"""Laws of the augmented Lagrangian, its dual target and the threshold on the critic's scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian, jacobian

from alam.lagrangian import (
    Constraint,
    ConstraintConfig,
    augmented_lagrangian,
    cost_threshold,
    dual_target,
    lagrangian,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=40, deadline=None)
multipliers = st.floats(0.0, 20.0)
violations = st.floats(-10.0, 10.0)
penalties = st.floats(0.01, 20.0)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_augmented_lagrangian_by_hand_with_the_hinge_active_and_inactive():
    # ((2 + 4/2)^2 - 2^2) / 8 - 1, and ((1 - 4)_+^2 - 1) / 8 - 1
    energy = augmented_lagrangian(
        tensor(1.0, 1.0), tensor(0.5, -1.0), tensor(2.0, 1.0), penalty_coef=4.0
    )
    assert energy.tolist() == [0.5, -1.125]
    assert lagrangian(tensor(1.0), tensor(0.5), tensor(2.0)).item() == 0.0


@few
@given(multipliers, violations, penalties)
def test_penalty_gradient_equals_dual_target(multiplier, violation, penalty):
    g = tensor(violation).requires_grad_(True)
    energy = augmented_lagrangian(tensor(0.3), g, tensor(multiplier), penalty_coef=penalty)
    (slope,) = torch.autograd.grad(energy.sum(), g)
    target = dual_target(tensor(multiplier), tensor(violation), penalty_coef=penalty)
    assert slope.item() == pytest.approx(target.item(), abs=1e-10)


def q_cost(action: torch.Tensor) -> torch.Tensor:
    return torch.sin(action[0]) + action[1] ** 2


def q_reward(action: torch.Tensor) -> torch.Tensor:
    return torch.cos(action[0] * action[1]) - action[1]


@pytest.mark.parametrize(
    # the weight [multiplier + 3 (sin 0.4 + 0.48^2 - threshold)]_+ by hand
    ("multiplier", "threshold", "weight"),
    [(0.5, -0.5, 3.859455027), (0.0, 2.0, 0.0)],
)
def test_action_gradient_and_curvature_carry_the_dual_target_and_the_convexification(
    multiplier, threshold, weight
):
    penalty, action = 3.0, tensor(0.4, 0.48)

    def energy(a):
        g = (q_cost(a) - threshold)[None]
        return augmented_lagrangian(
            q_reward(a)[None], g, tensor(multiplier), penalty_coef=penalty
        ).sum()

    slope = jacobian(q_cost, action)
    expected_gradient = -jacobian(q_reward, action) + weight * slope
    torch.testing.assert_close(jacobian(energy, action), expected_gradient, rtol=1e-8, atol=1e-8)
    convexification = (penalty if weight > 0 else 0.0) * torch.outer(slope, slope)
    expected_hessian = (
        -hessian(q_reward, action) + weight * hessian(q_cost, action) + convexification
    )
    torch.testing.assert_close(hessian(energy, action), expected_hessian, rtol=1e-8, atol=1e-8)


@few
@given(st.floats(0.1, 20.0), violations)
def test_augmented_lagrangian_exceeds_the_plain_one_by_half_penalty_times_squared_violation(
    multiplier, violation
):
    penalty = 1e-3  # small enough that the hinge is active: 0.1 > 1e-3 * 10
    args = tensor(0.7), tensor(violation), tensor(multiplier)
    excess = augmented_lagrangian(*args, penalty_coef=penalty) - lagrangian(*args)
    assert excess.item() == pytest.approx(0.5 * penalty * violation**2, abs=1e-9)


def test_augmented_lagrangian_tends_to_the_plain_one_linearly_in_the_penalty():
    args = tensor(0.0), tensor(2.0), tensor(1.0)
    gaps = [
        (augmented_lagrangian(*args, penalty_coef=rho) - lagrangian(*args)).item()
        for rho in (1e-1, 1e-2, 1e-3)
    ]
    assert gaps == pytest.approx([0.2, 0.02, 0.002], rel=1e-9)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_energy_at_the_optimal_multiplier_is_minimal_at_the_constrained_optimum(penalty):
    # maximise -|a - m|^2 with n.a <= 1, m = (2, 1), n = (3, 4)/5: n.m = 2, so that
    # a* = m - (2 - 1) n = (1.4, 0.2) and multiplier* = 2 (2 - 1) = 2, whatever the penalty.
    centre, normal = tensor(2.0, 1.0), tensor(0.6, 0.8)

    def energy(a):
        reward = -(a - centre).square().sum()
        g = normal @ a - 1.0
        return augmented_lagrangian(reward[None], g[None], tensor(2.0), penalty_coef=penalty).sum()

    start = tensor(1.9, 1.0)  # active, where the energy is quadratic: one Newton step is exact
    curvature = hessian(energy, start)
    minimiser = start - torch.linalg.solve(curvature, jacobian(energy, start))
    torch.testing.assert_close(minimiser, tensor(1.4, 0.2))
    torch.testing.assert_close(torch.linalg.eigvalsh(curvature), tensor(2.0, 2.0 + penalty))


@pytest.mark.parametrize(("penalty", "curvature"), [(1.0, -1.0), (3.0, 1.0)])
def test_penalty_turns_a_maximum_of_the_plain_lagrangian_into_a_minimum(penalty, curvature):
    # reward a^2 with a <= 1: optimum a = 1, multiplier 2; the plain energy has curvature -2 there.
    def energy(a):
        return augmented_lagrangian(
            a.square()[None], (a - 1.0)[None], tensor(2.0), penalty_coef=penalty
        ).sum()

    optimum = torch.tensor(1.0, dtype=torch.float64)
    # The hinge is at multiplier 2 there, far from its kink.
    assert jacobian(energy, optimum).item() == 0.0
    assert hessian(energy, optimum).item() == pytest.approx(curvature)


def test_dual_target_is_clipped_to_zero_and_to_its_maximum():
    target = dual_target(
        tensor(1.0, 1.0, 1.0), tensor(-3.0, 0.5, 9.0), penalty_coef=2.0, multiplier_max=5.0
    )
    assert target.tolist() == [0.0, 2.0, 5.0]


@few
@given(
    st.one_of(st.just(0.0), st.floats(0.01, 20.0)),
    st.one_of(st.just(0.0), st.floats(-10.0, -0.01), st.floats(0.01, 10.0)),
    penalties,
)
def test_fixed_points_of_the_dual_target_are_the_kkt_points(multiplier, violation, penalty):
    target = dual_target(tensor(multiplier), tensor(violation), penalty_coef=penalty)
    is_fixed = abs(target.item() - multiplier) < 1e-9
    assert is_fixed == (violation <= 0 and multiplier * violation == 0)


@pytest.mark.parametrize(
    ("discount", "threshold"),
    [(0.99, 2.49989207), (1.0, 25.0), (0.0, 0.025), (0.999, 15.8076143807)],
)
def test_cost_threshold_known_values_for_25_per_1000_steps(discount, threshold):
    value = cost_threshold(cost_limit=25.0, episode_length=1000, cost_discount=discount)
    assert value == pytest.approx(threshold, rel=1e-6)


@few
@given(st.floats(0.0, 100.0), st.integers(1, 300), st.floats(0.0, 1.0))
def test_cost_threshold_is_the_discounted_sum_of_an_even_spending(limit, length, discount):
    value = cost_threshold(cost_limit=limit, episode_length=length, cost_discount=discount)
    spent = sum(limit / length * discount**t for t in range(length))
    assert value == pytest.approx(spent, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cost_limit": -1.0}, "cost_limit"),
        ({"episode_length": 0}, "episode_length"),
        ({"cost_discount": 1.1}, "cost_discount"),
    ],
)
def test_impossible_thresholds_are_refused_by_name(changes, field):
    arguments = {"cost_limit": 25.0, "episode_length": 10, "cost_discount": 0.9} | changes
    with pytest.raises(ValueError, match=rf"{field} must be .* got"):
        cost_threshold(**arguments)


@pytest.mark.parametrize("field", ["cost_limit", "penalty_coef", "calibration_rate"])
def test_impossible_constraints_are_refused_by_name(field):
    with pytest.raises(ValueError, match=rf"{field} must be .* got -1"):
        ConstraintConfig(**{field: -1.0})


@pytest.mark.parametrize("limit", [float("nan"), float("inf")])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(ValueError, match=f"cost_limit must be >= 0 and finite, got {limit}"):
        ConstraintConfig(cost_limit=limit)


def test_calibration_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="calibration_rate needs a cost_limit above 0, got 0"):
        ConstraintConfig(cost_limit=0.0, calibration_rate=0.1)


def test_calibration_moves_the_threshold_against_the_excess_of_episodes_and_never_above_its_limit():
    constraint = Constraint(ConstraintConfig(cost_limit=25.0, calibration_rate=0.1), threshold=2.5)
    assert constraint.unit == 2.5
    for _ in range(3):
        constraint.observe_episode(24.0)  # a fifth more than four fifths of the limit
    assert constraint.threshold.item() == pytest.approx(2.5 * math.exp(-3 * 0.1 * 0.2))
    assert constraint.violation(tensor(2.5)).item() == pytest.approx(1 - math.exp(-0.06))
    constraint.observe_episode(16.0)
    assert constraint.threshold.item() == pytest.approx(2.5 * math.exp(-2 * 0.1 * 0.2))
    constraint.observe_episode(0.0)
    assert constraint.threshold.item() == 2.5
    for _ in range(50):
        constraint.observe_episode(100.0)
    assert constraint.threshold.item() == 0.25
    assert constraint.unit == 2.5


def test_one_wild_episode_moves_the_calibrated_threshold_by_a_bounded_share():
    constraint = Constraint(ConstraintConfig(calibration_rate=0.1), threshold=2.5)
    constraint.observe_episode(1e9)
    assert constraint.threshold.item() == pytest.approx(2.5 * math.exp(-1.0))


def test_rare_expensive_episodes_count_with_all_of_their_cost():
    # One in ten costs 400: the mean is twice the aim, the median 0.
    constraint = Constraint(ConstraintConfig(cost_limit=25.0, calibration_rate=0.02), threshold=2.5)
    for episode in range(200):
        constraint.observe_episode(400.0 if episode % 10 == 9 else 0.0)
    assert constraint.threshold.item() < 0.4


def test_without_calibration_episodes_leave_the_threshold_alone():
    constraint = Constraint(ConstraintConfig(), threshold=2.5)
    constraint.observe_episode(1000.0)
    assert constraint.threshold.item() == 2.5


def test_unit_of_the_threshold_equals_a_raw_penalty_divided_by_its_square():
    # One energy, two bookkeepings: multiplier' = h multiplier, penalty' = h^2 penalty.
    h, penalty = 2.5, 4.0
    reward, cost, multiplier = tensor(0.1, 0.2, 0.3), tensor(0.0, 2.0, 6.0), tensor(0.0, 3.0, 5.0)
    relative = Constraint(ConstraintConfig(penalty_coef=penalty), threshold=h)
    raw = Constraint(ConstraintConfig(penalty_coef=penalty / h**2, unit="raw"), threshold=h)
    assert relative.violation(cost).tolist() == pytest.approx([-1.0, -0.2, 1.4])
    assert raw.violation(cost).tolist() == [-2.5, -0.5, 3.5]
    torch.testing.assert_close(
        relative.energy(reward, relative.violation(cost), multiplier),
        raw.energy(reward, raw.violation(cost), multiplier / h),
    )


@few
@given(st.floats(0.01, 100.0))
def test_unit_of_the_threshold_makes_the_energy_free_of_the_scale_of_costs(scale):
    reward, cost, multiplier = tensor(0.1, 0.2), tensor(0.7, 6.0), tensor(0.4, 5.0)
    plain = Constraint(ConstraintConfig(), threshold=2.0)
    scaled = Constraint(ConstraintConfig(), threshold=2.0 * scale)
    torch.testing.assert_close(
        scaled.energy(reward, scaled.violation(scale * cost), multiplier),
        plain.energy(reward, plain.violation(cost), multiplier),
    )


def test_threshold_zero_has_unit_one():
    constraint = Constraint(ConstraintConfig(unit="threshold"), threshold=0.0)
    assert constraint.violation(tensor(0.3)).item() == 0.3


def test_without_augmentation_the_energy_is_the_plain_lagrangian():
    constraint = Constraint(ConstraintConfig(augmented=False, penalty_coef=9.0), threshold=1.0)
    energy = constraint.energy(tensor(2.0), tensor(3.0), tensor(0.5))
    assert energy.item() == 0.5 * 3.0 - 2.0


@pytest.mark.parametrize(
    ("hinge", "weights"),
    # rows: multiplier (0, 1, 2), violation (-3, 1, 8), penalty 2; means 1 and 2, no median
    [("sample", [0.0, 3.0, 18.0]), ("batch", [5.0, 5.0, 5.0])],
)
def test_hinge_acts_per_row_or_once_on_the_batch_mean(hinge, weights):
    constraint = Constraint(ConstraintConfig(penalty_coef=2.0, hinge=hinge), threshold=1.0)
    violation = tensor(-3.0, 1.0, 8.0).requires_grad_(True)
    energy = constraint.energy(tensor(0.0, 0.0, 0.0), violation, tensor(0.0, 1.0, 2.0))
    (slopes,) = torch.autograd.grad(energy.sum(), violation)
    assert slopes.tolist() == weights


def test_batch_hinge_is_off_for_every_row_where_the_mean_is_feasible():
    constraint = Constraint(ConstraintConfig(penalty_coef=1.0, hinge="batch"), threshold=1.0)
    energy = constraint.energy(tensor(0.5, 0.25), tensor(4.0, -6.0), tensor(0.5, 0.5))
    assert energy.tolist() == [-0.5, -0.25]
