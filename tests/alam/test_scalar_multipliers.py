"""Fixed and scalar multipliers: dual ascent, PID and ADRC against sequences worked out by hand."""

import copy
import math

import pytest
import torch

from alam.multiplier import make_multiplier
from alam.multiplier_config import FixedConfig, ScalarADRCConfig, ScalarDualConfig, ScalarPIDConfig

OBS = torch.zeros(2, 3)


def build(config):
    multiplier = make_multiplier(config, 3, penalty_coef=1.0)
    multiplier.build_optimizer()
    return multiplier


def values(multiplier, violations) -> list[float]:
    """Return the multiplier after each violation, given as the mean of two different rows."""
    spread = torch.tensor([-0.5, 0.5])
    return [
        multiplier.update(OBS, violation + spread)["train/multiplier"].item()
        for violation in violations
    ]


def test_fixed_multiplier_is_the_same_everywhere_and_never_moves():
    multiplier = build(FixedConfig(value=0.7))
    assert values(multiplier, [9.0, -9.0]) == pytest.approx([0.7, 0.7])
    assert multiplier(torch.zeros(4, 2, 3)).tolist() == [[pytest.approx(0.7)] * 2] * 4


def test_integer_valued_settings_still_give_floating_multipliers():
    assert build(FixedConfig(value=1))(OBS).dtype == torch.float32


def test_projected_dual_ascent_by_hand():
    multiplier = build(ScalarDualConfig(learning_rate=0.1))
    assert values(multiplier, [1.0, 2.0, -5.0, 3.0]) == pytest.approx([0.1, 0.3, 0.0, 0.3])
    assert multiplier(OBS).tolist() == pytest.approx([0.3, 0.3])


def test_projected_dual_ascent_solves_a_concave_dual():
    # maximise -(a - 1)^2 with a <= 1/4: a(multiplier) = 1 - multiplier / 2, so multiplier* = 3/2.
    multiplier = build(ScalarDualConfig(learning_rate=0.1))
    for _ in range(300):
        multiplier.update(OBS, (1.0 - multiplier(OBS) / 2) - 0.25)
    assert multiplier(OBS)[0].item() == pytest.approx(1.5, abs=1e-4)


def test_log_dual_ascent_first_step_multiplies_by_the_exponential_of_the_learning_rate():
    config = ScalarDualConfig(parameterization="log", initial_value=0.6931, learning_rate=3e-4)
    up, down = build(config), build(config)
    assert up(OBS)[0].item() == pytest.approx(0.6931)
    # Adam's first step has the length of the learning rate, whatever the size of the violation.
    assert values(up, [40.0])[0] == pytest.approx(0.6931 * math.exp(3e-4), rel=1e-6)
    assert values(down, [-0.02])[0] == pytest.approx(0.6931 * math.exp(-3e-4), rel=1e-6)


def test_log_dual_ascent_never_reaches_zero_and_stops_at_its_bound():
    config = ScalarDualConfig(
        parameterization="log", initial_value=1.0, learning_rate=0.5, multiplier_max=2.0
    )
    falling, rising = build(config), build(config)
    assert 0 < values(falling, [-1.0] * 20)[-1] < 0.01
    assert values(rising, [1.0] * 20)[-1] == pytest.approx(2.0)
    # The logarithm is clipped too: one step back is a step from the bound, not from beyond it.
    assert values(rising, [-1.0] * 10)[-1] < 2.0


PID_VIOLATIONS = [1.0, 2.0, -1.0, 0.0, 3.0]
# P: 0.5 1.25 0.125 0.0625 1.53125; I: 0.1 0.3 0.2 0.2 0.5; D below.
PID_PROPORTIONAL_INTEGRAL = [0.35, 0.925, 0.2625, 0.23125, 1.265625]


@pytest.mark.parametrize(
    ("delay", "derivatives"),
    [(1, [1.0, 1.0, 0.0, 1.0, 3.0]), (2, [1.0, 2.0, 0.0, 0.0, 4.0])],
)
def test_pid_by_hand_over_five_steps(delay, derivatives):
    multiplier = build(
        ScalarPIDConfig(
            proportional_gain=0.5,
            integral_gain=0.1,
            derivative_gain=2.0,
            proportional_smoothing=0.5,
            derivative_smoothing=0.0,
            derivative_delay=delay,
            interval=1,
        )
    )
    expected = [
        rest + 2.0 * rise for rest, rise in zip(PID_PROPORTIONAL_INTEGRAL, derivatives, strict=True)
    ]
    assert values(multiplier, PID_VIOLATIONS) == pytest.approx(expected, rel=1e-6)


def test_pid_smooths_its_derivative():
    multiplier = build(
        ScalarPIDConfig(
            proportional_gain=0.0,
            integral_gain=0.0,
            derivative_gain=1.0,
            derivative_smoothing=0.5,
            derivative_delay=1,
            interval=1,
        )
    )
    # exponential means 0.5 1.25 0.125 0.0625 1.53125, and their rises
    expected = [0.5, 0.75, 0.0, 0.0, 1.46875]
    assert values(multiplier, PID_VIOLATIONS) == pytest.approx(expected, rel=1e-6)


def test_pid_integral_has_no_windup_at_either_end():
    multiplier = build(
        ScalarPIDConfig(
            proportional_gain=0.0,
            integral_gain=1.0,
            derivative_gain=0.0,
            interval=1,
            multiplier_max=2.0,
        )
    )
    assert values(multiplier, [-50.0, 0.5, 50.0, -0.5]) == pytest.approx([0.0, 0.5, 2.0, 1.5])


def test_adrc_first_step_by_hand():
    multiplier = build(ScalarADRCConfig(interval=1))
    # observer (1, 0, 0); reference (1, -0.05^2); u0 = 2 * 0.05 * -0.0025; value = u0 / -0.01
    assert values(multiplier, [1.0])[0] == pytest.approx(0.025, rel=1e-5)
    assert multiplier.observer.tolist() == [1.0, 0.0, 0.0]
    assert multiplier.reference.tolist() == pytest.approx([1.0, -0.0025])


def test_adrc_second_step_by_hand():
    """By the recurrences of ``ScalarADRC`` with its default rates, worked out on paper."""
    config = ScalarADRCConfig(interval=1)
    multiplier = build(config)
    values(multiplier, [1.0])
    held = multiplier.value.item()
    z, path = multiplier.observer.tolist(), multiplier.reference.tolist()
    last = values(multiplier, [2.0])[-1]
    rate, omega, stiff = (
        config.tracking_rate,
        config.observer_bandwidth,
        config.controller_bandwidth,
    )
    path = [path[0] + path[1], path[1] - rate**2 * path[0] - 2 * rate * path[1]]
    error, drive = 2.0 - z[0], z[2] + config.input_gain * held
    z = [
        z[0] + z[1] + 3 * omega * error,
        z[1] + drive + 3 * omega**2 * error,
        z[2] + omega**3 * error,
    ]
    assert multiplier.observer.tolist() == pytest.approx(z, rel=1e-5)
    assert multiplier.reference.tolist() == pytest.approx(path, rel=1e-5)
    wanted = stiff**2 * (path[0] - z[0]) + 2 * stiff * (path[1] - z[1])
    assert last == pytest.approx(max((wanted - z[2]) / config.input_gain, 0.0), rel=1e-5)


def test_log_dual_ascent_has_the_gradient_of_the_logarithm():
    """Of log lambda it is lambda * violation; Adam's moments weigh the steps by it."""
    config = ScalarDualConfig(parameterization="log", initial_value=1.0, learning_rate=0.5)
    expected = [1.64872, 1.27267, 1.41094]
    assert values(build(config), [1.0, -2.0, 3.0]) == pytest.approx(expected, rel=1e-4)


def adrc_in_the_loop(disturbance: float, gain: float, steps: int):
    """Run ADRC on violation'' = disturbance + gain * multiplier, from a violation of 1."""
    multiplier = build(ScalarADRCConfig(interval=1, input_gain=-0.01))
    position, velocity, path = 1.0, 0.0, []
    for _ in range(steps):
        control = values(multiplier, [position])[0]
        position, velocity = position + velocity, velocity + disturbance + gain * control
        path.append(position)
    return multiplier, control, path


@pytest.mark.parametrize("gain", [-0.01, -0.012])
def test_adrc_cancels_a_constant_disturbance_on_a_double_integrator(gain):
    multiplier, control, path = adrc_in_the_loop(0.02, gain, 600)
    assert path[-1] == pytest.approx(0.0, abs=1e-3)
    assert control == pytest.approx(0.02 / -gain, rel=1e-3)
    # The observer sees what its own model of the input leaves unexplained.
    assert multiplier.observer[2].item() == pytest.approx(0.01 * control, rel=1e-3)
    assert multiplier.reference.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_adrc_multiplier_is_zero_where_nothing_is_violated():
    multiplier = build(ScalarADRCConfig(interval=1))
    assert values(multiplier, [-1.0] * 50) == [0.0] * 50


@pytest.mark.parametrize(
    "config",
    [
        ScalarDualConfig(learning_rate=1.0, multiplier_max=5.0),
        ScalarPIDConfig(integral_gain=1.0, interval=1, multiplier_max=5.0),
        ScalarADRCConfig(interval=1, multiplier_max=5.0),
    ],
)
def test_infeasible_violation_holds_the_multiplier_at_its_bound_and_says_so(config):
    multiplier = build(config)
    early = multiplier.update(OBS, torch.ones(2))
    assert early["train/multiplier_at_bound"].item() == 0.0
    for step in range(200):
        late = multiplier.update(OBS, torch.ones(2) + 0.05 * step)
    assert late["train/multiplier"].item() == 5.0
    assert late["train/multiplier_at_bound"].item() == 1.0


def test_interval_averages_the_violations_since_the_last_step():
    multiplier = build(ScalarDualConfig(learning_rate=0.1, interval=3))
    expected = [0.0, 0.0, 0.3, 0.3, 0.3, 0.4]
    assert values(multiplier, [1.0, 2.0, 6.0, 0.0, 1.0, 2.0]) == pytest.approx(expected)


def test_episode_signal_averages_finished_episodes_and_ignores_critics():
    multiplier = build(ScalarDualConfig(learning_rate=0.1, interval=2, signal="episode"))
    assert values(multiplier, [9.0, 9.0]) == [0.0, 0.0]
    for violation in (1.0, 3.0):
        multiplier.observe_episode(violation)
    assert values(multiplier, [9.0, 9.0]) == pytest.approx([0.0, 0.2])
    # No further episode, no further step.
    assert values(multiplier, [9.0, 9.0]) == pytest.approx([0.2, 0.2])


def test_critic_signal_ignores_episodes():
    multiplier = build(ScalarDualConfig(learning_rate=0.1))
    multiplier.observe_episode(100.0)
    assert values(multiplier, [1.0]) == pytest.approx([0.1])


@pytest.mark.parametrize(
    "config",
    [
        FixedConfig(value=0.5),
        ScalarDualConfig(interval=3),
        ScalarDualConfig(parameterization="log", initial_value=0.6931, interval=2),
        ScalarPIDConfig(interval=3),
        ScalarADRCConfig(interval=3),
    ],
)
def test_full_state_continues_bitwise_in_the_middle_of_an_interval(config):
    first = build(config)
    values(first, [0.3, 0.7, 0.2, 0.9])
    second = build(config)
    second.load_full_state(copy.deepcopy(first.full_state()))
    rest = [0.4, -0.2, 0.8, 0.6, 0.1]
    assert values(first, rest) == values(second, rest)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (FixedConfig, "value", -1.0),
        (ScalarDualConfig, "learning_rate", 0.0),
        (ScalarDualConfig, "initial_value", float("nan")),
        (ScalarDualConfig, "initial_value", 200.0),
        (ScalarPIDConfig, "integral_gain", -0.1),
        (ScalarPIDConfig, "derivative_delay", 0),
        (ScalarPIDConfig, "proportional_smoothing", 1.0),
        (ScalarADRCConfig, "observer_bandwidth", 1.0),
        (ScalarADRCConfig, "input_gain", 0.01),
        (ScalarADRCConfig, "multiplier_max", float("inf")),
    ],
)
def test_impossible_configurations_are_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .* got"):
        config(**{field: value})


def test_log_dual_ascent_refuses_to_start_at_zero():
    with pytest.raises(ValueError, match="initial_value must be > 0 with parameterization 'log'"):
        ScalarDualConfig(parameterization="log")
