"""The constrained bandit's answers, each computed a second time in an independent way."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize

from algd.analysis.bandit_solution import BoltzmannBandit
from algd.environments.analytic_bandit import BanditEnv, BanditTask

STATES = np.array([-0.9, 0.0, 0.1, 0.48, 0.8, 0.95])


def constrained_optimum(task: BanditTask, state: float, limit: float):
    """Maximise the reward under cost <= limit with a general solver."""
    return minimize(
        lambda a: -task.reward(state, a),
        np.zeros(task.action_dim),
        method="SLSQP",
        bounds=[(-1, 1)] * task.action_dim,
        # The smooth side of the hinge: the constraint binds there only.
        constraints={
            "type": "ineq",
            "fun": lambda a: (
                limit - (a @ task.direction - task.bound_along(state) + task.cost_limit)
            ),
        },
        options={"ftol": 1e-14, "maxiter": 200},
    )


@pytest.mark.parametrize("action_dim", range(1, 9))
def test_closed_form_optimum_is_what_a_general_solver_finds(action_dim):
    task = BanditTask(action_dim)
    for state in STATES:
        found = constrained_optimum(task, state, task.cost_limit)
        np.testing.assert_allclose(task.optimal_action(state), found.x, atol=1e-6)


@pytest.mark.parametrize("action_dim", [1, 4, 8])
def test_closed_form_multiplier_is_the_price_of_the_limit(action_dim):
    task = BanditTask(action_dim)
    step = 1e-3
    for state in STATES:
        looser, tighter = (
            -constrained_optimum(task, state, task.cost_limit + sign * step).fun for sign in (1, -1)
        )
        price = (looser - tighter) / (2 * step)
        assert float(task.optimal_multiplier(state)) == pytest.approx(price, abs=1e-4)


def test_every_action_dimension_shares_one_multiplier_with_known_values():
    for action_dim in range(1, 9):
        multiplier = BanditTask(action_dim).optimal_multiplier([-0.5, 0.0, 0.25, 0.5])
        # 2 (0.5 sin(pi s) - 0.1 (1 + s)): at 1/4 sqrt(1/2) - 1/4, at 1/2 1 - 0.3
        np.testing.assert_allclose(multiplier, [0.0, 0.0, 0.4571067811865475, 0.7], atol=1e-12)


def test_part_of_the_states_is_active_and_optima_stay_inside_the_box():
    states = np.linspace(-1, 1, 2001)
    for action_dim in range(1, 9):
        task = BanditTask(action_dim)
        active = task.optimal_multiplier(states) > 0
        assert 0.35 < active.mean() < 0.45
        assert np.abs(task.preferred_action(states)).max() < 0.53
        np.testing.assert_allclose(
            task.cost(states, task.optimal_action(states))[active], 0.5, atol=1e-12
        )


@pytest.mark.parametrize("temperature", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("penalty_coef", [None, 2.0])
def test_one_dimensional_multiplier_agrees_with_adaptive_quadrature(temperature, penalty_coef):
    task = BanditTask(1)
    states = np.array([0.05, 0.48])
    law = BoltzmannBandit(task, states, temperature=temperature, penalty_coef=penalty_coef)
    multipliers, means = law.multiplier(), law.mean_action(0.3)
    for state, multiplier, mean in zip(states, multipliers, means, strict=True):

        def moment(trial, values, state=state):
            def weight(a):
                g = float(task.cost(state, np.array([a]))) - task.cost_limit
                penalty = trial * g
                if penalty_coef is not None:
                    hinge = max(trial + penalty_coef * g, 0.0)
                    penalty = (hinge**2 - trial**2) / (2 * penalty_coef)
                return np.exp((float(task.reward(state, np.array([a]))) - penalty) / temperature)

            kinks = [
                float(task.bound_along(state)) - task.cost_limit,
                float(task.optimal_action(state)[0]),
            ]
            total = quad(weight, -1, 1, points=kinks, epsabs=0, epsrel=1e-9, limit=300)[0]
            part = quad(
                lambda a: weight(a) * values(a), -1, 1, points=kinks, epsrel=1e-9, limit=300
            )[0]
            return part / total

        def excess(trial, state=state, moment=moment):
            return moment(trial, lambda a: float(task.cost(state, np.array([a]))) - 0.5)

        expected = 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, 4.0, xtol=1e-10)
        assert multiplier == pytest.approx(expected, abs=2e-4)
        assert mean[0] == pytest.approx(moment(0.3, lambda a: a), abs=2e-5)


@pytest.mark.parametrize("temperature", [0.2, 0.03])
def test_two_dimensional_law_agrees_with_a_brute_force_grid(temperature):
    task = BanditTask(2)
    axis = np.linspace(-1, 1, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    rule = np.ones(801)
    rule[[0, -1]] = 0.5
    states = np.array([0.1, 0.48])
    law = BoltzmannBandit(task, states, temperature=temperature)
    multipliers = law.multiplier()
    means = law.mean_action(multipliers)
    for state, multiplier, mean in zip(states, multipliers, means, strict=True):
        reward, cost = task.reward(state, grid), task.cost(state, grid)
        weight = np.exp((reward - multiplier * cost) / temperature) * np.outer(rule, rule)
        weight /= weight.sum()
        assert (weight * cost).sum() == pytest.approx(task.cost_limit, abs=2e-5)
        np.testing.assert_allclose(np.einsum("ij,ijk->k", weight, grid), mean, atol=2e-5)


@pytest.mark.parametrize("action_dim", [3, 8])
def test_many_dimensional_law_agrees_with_monte_carlo(action_dim):
    task = BanditTask(action_dim)
    temperature, state, draws = 0.1, 0.4, 400_000
    law = BoltzmannBandit(task, [state], temperature=temperature)
    multiplier = law.multiplier()
    rng = np.random.default_rng(0)
    # Proposals from the constrained optimum's neighbourhood, reweighted to the exact law.
    centre, std = task.optimal_action(state), np.sqrt(temperature / 2)
    noise = rng.standard_normal((draws, action_dim))
    actions = centre + std * noise
    log_weight = (
        (task.reward(state, actions) - multiplier * task.cost(state, actions)) / temperature
        + 0.5 * np.square(noise).sum(-1)
        + np.where(np.abs(actions).max(-1) <= 1, 0.0, -np.inf)
    )
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert weight @ task.cost(state, actions) == pytest.approx(task.cost_limit, abs=2e-3)
    np.testing.assert_allclose(weight @ actions, law.mean_action(multiplier)[0], atol=2e-3)


def test_multiplier_tends_to_the_hard_one_as_temperature_falls():
    task = BanditTask(3)
    states = np.linspace(-1, 1, 41)
    hard = task.optimal_multiplier(states)
    errors = [
        np.abs(BoltzmannBandit(task, states, temperature=t).multiplier() - hard).sum() / hard.sum()
        for t in (0.5, 0.1, 0.05, 0.01)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 2e-3
    assert errors[3] < 1e-9


def test_per_sample_hinge_settles_above_the_multiplier_of_the_expected_constraint():
    task, temperature, coef = BanditTask(1), 0.05, 1.0
    law = BoltzmannBandit(task, [0.1, 0.48], temperature=temperature, penalty_coef=coef)
    fixed = law.per_sample_fixed_point()
    axis = np.linspace(-1, 1, 20_001)[:, None]
    for state, point in zip([0.1, 0.48], fixed, strict=True):
        g = task.cost(state, axis) - task.cost_limit
        hinge = np.maximum(point + coef * g, 0.0)
        energy = -task.reward(state, axis) + (hinge**2 - point**2) / (2 * coef)
        weight = np.exp(-energy / temperature)
        assert (weight @ hinge) / weight.sum() == pytest.approx(point, abs=1e-5)
    # Near the edge of the active region some actions have lambda + rho g < 0, which lifts it.
    assert fixed[0] > law.multiplier()[0] + 0.01
    assert fixed[1] == pytest.approx(law.multiplier()[1], abs=1e-3)


def test_environment_pays_what_the_task_says():
    task, env = BanditTask(4), BanditEnv(4)
    rng = np.random.default_rng(1)
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        after, reward, terminated, truncated, info = env.step(action)
        state = float(obs[0])
        assert reward == pytest.approx(float(task.reward(state, action)), abs=1e-9)
        assert info["cost"] == pytest.approx(float(task.cost(state, action)), abs=1e-6)
        assert terminated
        assert not truncated
        np.testing.assert_array_equal(after, obs)


def test_optimal_policy_earns_the_documented_return_within_the_limit():
    env, task = BanditEnv(2), BanditTask(2)
    env.reset(seed=0)
    returns = []
    for _ in range(2000):
        obs, _ = env.reset()
        action = task.optimal_action(float(obs[0])).astype(np.float32)
        _, reward, _, _, info = env.step(action)
        assert info["cost"] <= 0.5 + 1e-6
        returns.append(reward)
    standard_error = np.std(returns) / np.sqrt(len(returns))
    assert np.mean(returns) == pytest.approx(-0.0255, abs=4 * standard_error)


def test_state_option_places_the_state():
    obs, _ = BanditEnv(1).reset(seed=0, options={"state": 0.25})
    np.testing.assert_array_equal(obs, np.float32([0.25]))


@pytest.mark.parametrize("action_dim", [0, 9])
def test_impossible_action_dimension_is_refused(action_dim):
    with pytest.raises(ValueError, match=r"action_dim must be in 1\.\.8, got"):
        BanditTask(action_dim)


def test_impossible_temperature_and_penalty_are_refused():
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        BoltzmannBandit(BanditTask(), STATES, temperature=0.0)
    with pytest.raises(ValueError, match="penalty_coef must be positive or None, got -1"):
        BoltzmannBandit(BanditTask(), STATES, temperature=0.1, penalty_coef=-1.0)
    with pytest.raises(ValueError, match="needs penalty_coef"):
        BoltzmannBandit(BanditTask(), STATES, temperature=0.1).per_sample_fixed_point()
