"""The finite decision process: linear programme, dynamic programming, Monte Carlo must agree."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from algd.analysis.finite_soft_solution import solve_expected_soft, solve_statewise_soft
from algd.analysis.finite_solution import (
    action_grid,
    expected_cost,
    solve_expected,
    solve_statewise,
)
from algd.environments.analytic_finite import NUM_STATES, FiniteEnv, FiniteTask

TASK = FiniteTask()
DISCOUNT = 0.9


def occupancy_of(policy, actions, discount=DISCOUNT):
    """Discounted, unnormalised visits (S,) of a policy (S, G)."""
    chain = np.einsum("sg,sgt->st", policy, TASK.transition(actions))
    return np.linalg.solve((np.eye(NUM_STATES) - discount * chain).T, TASK.start)


def best_values(reward, transition, allowed):
    """Value iteration over the allowed actions of a grid, (S,)."""
    value = np.zeros(NUM_STATES)
    for _ in range(400):
        q_values = np.where(allowed, reward + DISCOUNT * transition @ value, -np.inf)
        value = q_values.max(axis=1)
    return value, q_values


@pytest.fixture(scope="module")
def statewise():
    return solve_statewise(TASK, discount=DISCOUNT)


def test_statewise_programme_agrees_with_dynamic_programming_and_its_derivative(statewise):
    caps = 2 * np.sqrt(TASK.step_limit / TASK.cost([1.0])[:, 0]) - 1
    actions = np.union1d(np.linspace(-1, 1, 4001), caps[caps < 1])
    allowed = TASK.cost(actions) <= TASK.step_limit + 1e-12
    value, q_values = best_values(TASK.reward(actions), TASK.transition(actions), allowed)
    np.testing.assert_allclose(statewise.value, value, atol=5e-5)
    best = q_values.argmax(axis=1)
    np.testing.assert_allclose(statewise.mean_action, actions[best], atol=5e-3)
    # Where the limit binds, the price is what a little more action earns per cost it causes.
    free = TASK.reward(actions) + DISCOUNT * TASK.transition(actions) @ value
    slopes = np.gradient(free, actions, axis=1) / np.gradient(TASK.cost(actions), actions, axis=1)
    prices = np.maximum(slopes[np.arange(NUM_STATES), best], 0.0)
    # The programme's own price is a chord of its 401 actions.
    np.testing.assert_allclose(statewise.multiplier, prices, atol=2e-2)


def test_documented_multipliers_and_actions():
    fine = solve_statewise(TASK, discount=DISCOUNT, points=2001)
    np.testing.assert_allclose(fine.multiplier, [2.51, 0, 0.86, 0, 1.73], atol=6e-3)
    np.testing.assert_allclose(fine.mean_action, [0, -0.29, 0.29, 0.09, 0], atol=5e-3)
    expected = solve_expected(TASK, discount=DISCOUNT, threshold=2.5, points=2001)
    assert expected.multiplier[0] == pytest.approx(0.914, abs=2e-3)
    np.testing.assert_allclose(expected.mean_action, [0.33, -0.45, 0.26, 0.03, 0.18], atol=5e-3)


def test_statewise_duals_are_prices_before_multiplying_by_visits(statewise):
    step = 0.01
    looser, tighter = (
        TASK.start @ solve_statewise(TASK, discount=DISCOUNT, limit=0.25 + sign * step).value
        for sign in (1, -1)
    )
    visits = occupancy_of(statewise.policy, statewise.actions)
    price = (looser - tighter) / (2 * step)
    assert statewise.multiplier @ visits == pytest.approx(price, rel=0.02)


def test_expected_programme_agrees_with_the_lagrangian_dual():
    threshold = 1.5
    solved = solve_expected(TASK, discount=DISCOUNT, threshold=threshold)
    actions = solved.actions

    def dual(multiplier):
        reward = TASK.reward(actions) - multiplier * TASK.cost(actions)
        value, _ = best_values(reward, TASK.transition(actions), True)
        return TASK.start @ value + multiplier * threshold

    found = minimize_scalar(dual, bounds=(0, 10), method="bounded", options={"xatol": 1e-6})
    primal = np.sum(
        occupancy_of(solved.policy, actions)[:, None] * solved.policy * TASK.reward(actions)
    )
    assert primal == pytest.approx(found.fun, abs=1e-6)
    # The dual function is piecewise linear on a grid: flat to 1e-3 around its minimum.
    assert solved.multiplier[0] == pytest.approx(found.x, abs=2e-2)
    assert np.ptp(solved.multiplier) == 0.0
    cost = expected_cost(TASK, solved.policy, actions, criterion="discounted", discount=DISCOUNT)
    assert cost == pytest.approx(threshold, abs=1e-8)


def test_slack_constraints_cost_nothing():
    np.testing.assert_allclose(
        solve_expected(TASK, discount=DISCOUNT, threshold=50.0).multiplier, 0.0, atol=1e-12
    )
    soft = solve_expected_soft(TASK, discount=DISCOUNT, temperature=0.1, threshold=50.0)
    np.testing.assert_array_equal(soft.multiplier, 0.0)


def soft_programme(points, temperature, constraints):
    """Maximise reward + temperature * entropy over occupancies with a general convex solver."""
    actions = action_grid(points)
    reward, transition = TASK.reward(actions), TASK.transition(actions)
    cell = 2.0 / points

    def loss(flat):
        x = np.maximum(flat.reshape(NUM_STATES, points), 1e-12)
        log_policy = np.log(x / x.sum(axis=1, keepdims=True) / cell)
        gradient = reward - temperature * log_policy
        return -(x * gradient).sum(), -gradient.ravel()

    flow = np.repeat(np.eye(NUM_STATES), points, axis=0) - DISCOUNT * transition.reshape(
        -1, NUM_STATES
    )
    found = minimize(
        loss,
        np.full(NUM_STATES * points, 10.0 / (NUM_STATES * points)),
        jac=True,
        method="SLSQP",
        bounds=[(1e-10, None)] * (NUM_STATES * points),
        constraints=[
            {"type": "eq", "fun": lambda x: x @ flow - TASK.start, "jac": lambda x: flow.T},
            {
                "type": "ineq",
                "fun": lambda x: constraints @ x,
                "jac": lambda x: constraints,
            },
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    return -found.fun, found.x.reshape(NUM_STATES, points)


def test_soft_statewise_solution_maximises_reward_plus_entropy():
    points, temperature = 9, 0.2
    actions = action_grid(points)
    excess = TASK.cost(actions) - TASK.step_limit
    rows = np.zeros((NUM_STATES, NUM_STATES, points))
    rows[np.arange(NUM_STATES), np.arange(NUM_STATES)] = -excess
    value, occupancy = soft_programme(points, temperature, rows.reshape(NUM_STATES, -1))
    solved = solve_statewise_soft(TASK, discount=DISCOUNT, temperature=temperature, points=points)
    assert TASK.start @ solved.value == pytest.approx(value, abs=1e-6)
    policy = occupancy / occupancy.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(solved.policy, policy, atol=1e-3)


def test_soft_expected_value_is_the_convex_programmes():
    points, temperature, threshold = 9, 0.2, 1.5
    actions = action_grid(points)
    # sum x cost <= threshold, written with sum x = 1 / (1 - discount)
    row = (threshold * (1 - DISCOUNT) - TASK.cost(actions)).reshape(1, -1)
    value, _ = soft_programme(points, temperature, row)
    solved = solve_expected_soft(
        TASK, discount=DISCOUNT, temperature=temperature, threshold=threshold, points=points
    )
    assert TASK.start @ solved.value == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("entropy_in_value", [True, False])
def test_soft_multipliers_are_marginal_values(entropy_in_value):
    options = {"discount": DISCOUNT, "temperature": 0.05, "entropy_in_value": entropy_in_value}
    solved = solve_statewise_soft(TASK, **options)
    policy, actions = solved.policy, solved.actions
    mean_cost = (policy * TASK.cost(actions)).sum(axis=1)
    active = solved.multiplier > 0
    assert active.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(mean_cost[active], TASK.step_limit, atol=1e-9)
    assert (mean_cost[~active] < TASK.step_limit).all()
    if entropy_in_value:  # only then does the policy maximise what `value` measures
        step = 1e-3
        looser, tighter = (
            TASK.start @ solve_statewise_soft(TASK, limit=0.25 + sign * step, **options).value
            for sign in (1, -1)
        )
        visits = occupancy_of(policy, actions)
        price = (looser - tighter) / (2 * step)
        assert solved.multiplier @ visits == pytest.approx(price, rel=1e-4)
    else:
        visits = occupancy_of(policy, actions)
        earned = np.sum(visits[:, None] * policy * TASK.reward(actions))
        assert TASK.start @ solved.value == pytest.approx(earned, abs=1e-8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_augmented_policy_is_the_boltzmann_law_of_its_own_critic(per_sample):
    temperature, coef = 0.1, 2.0
    solved = solve_statewise_soft(
        TASK,
        discount=DISCOUNT,
        temperature=temperature,
        penalty_coef=coef,
        per_sample=per_sample,
        entropy_in_value=False,
    )
    # Everything from the policy alone: critic by linear algebra, penalty by its definition.
    policy, actions = solved.policy, solved.actions
    reward, transition = TASK.reward(actions), TASK.transition(actions)
    chain = np.einsum("sg,sgt->st", policy, transition)
    value = np.linalg.solve(np.eye(NUM_STATES) - DISCOUNT * chain, (policy * reward).sum(axis=1))
    price = solved.multiplier[:, None]
    g = TASK.cost(actions) - TASK.step_limit
    hinge = np.maximum(price + coef * g, 0.0)
    energy = (hinge**2 - price**2) / (2 * coef) - reward - DISCOUNT * transition @ value
    # log pi = -energy / temperature + const(s)
    constant = np.log(policy) + energy / temperature
    np.testing.assert_allclose(constant - constant[:, :1], 0.0, atol=1e-6)
    if per_sample:
        np.testing.assert_allclose((policy * hinge).sum(axis=1), price[:, 0], atol=1e-9)
        assert (solved.multiplier > 0).all()
    else:
        slack = (policy * g).sum(axis=1)
        assert (slack <= 1e-9).all()
        np.testing.assert_allclose(slack * price[:, 0], 0.0, atol=1e-9)


def test_soft_solutions_tend_to_the_programmes_as_temperature_falls(statewise):
    for entropy_in_value in (True, False):
        gaps = [
            np.abs(
                solve_statewise_soft(
                    TASK, discount=DISCOUNT, temperature=t, entropy_in_value=entropy_in_value
                ).multiplier
                - statewise.multiplier
            ).sum()
            / statewise.multiplier.sum()
            for t in (0.2, 0.05, 0.005)
        ]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 0.01
    hard = solve_expected(TASK, discount=DISCOUNT, threshold=1.5).multiplier[0]
    soft = solve_expected_soft(TASK, discount=DISCOUNT, temperature=0.005, threshold=1.5)
    assert soft.multiplier[0] == pytest.approx(hard, rel=0.01)


def test_environment_moves_as_the_table_says():
    env = FiniteEnv()
    env.reset(seed=0)
    tries = 4000
    for state, action in ((0, -0.4), (3, 0.7)):
        counts = np.zeros(NUM_STATES)
        for _ in range(tries):
            env.reset(options={"state": state})
            obs, reward, terminated, _, info = env.step(np.float32([action]))
            counts[obs.argmax()] += 1
            assert not terminated
        expected = TASK.transition([action])[state, 0]
        np.testing.assert_allclose(counts / tries, expected, atol=4 * np.sqrt(0.25 / tries))
        assert reward == pytest.approx(TASK.reward([action])[state, 0], abs=1e-6)
        assert info["cost"] == pytest.approx(TASK.cost([action])[state, 0], abs=1e-6)


def test_rollouts_spend_the_episode_budget_that_the_soft_solution_promises():
    solved = solve_expected_soft(
        TASK, discount=DISCOUNT, temperature=0.05, threshold=TASK.cost_limit, criterion="episode"
    )
    assert solved.multiplier[0] == pytest.approx(0.971, abs=2e-3)
    env, rng = FiniteEnv(), np.random.default_rng(0)
    cumulative = np.cumsum(solved.policy, axis=1)
    obs, _ = env.reset(seed=0)
    totals = []
    for _ in range(150):
        total = 0.0
        for _ in range(TASK.horizon):
            index = np.searchsorted(cumulative[obs.argmax()], rng.random())
            obs, _, _, _, info = env.step(solved.actions[[index]].astype(np.float32))
            total += info["cost"]
        totals.append(total)
        obs, _ = env.reset()
    standard_error = np.std(totals) / np.sqrt(len(totals))
    assert np.mean(totals) == pytest.approx(12.5, abs=4 * standard_error)
    assert standard_error < 0.2


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\), got 1"):
        solve_statewise(TASK, discount=1.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        solve_statewise_soft(TASK, discount=0.9, temperature=0.0)
    with pytest.raises(ValueError, match="per_sample needs penalty_coef"):
        solve_statewise_soft(TASK, discount=0.9, temperature=0.1, per_sample=True)
    with pytest.raises(ArithmeticError, match="the linear programme has no solution"):
        solve_expected(TASK, discount=0.9, threshold=-1.0)
    with pytest.raises(ValueError, match="cost_limit must be positive, got -1"):
        FiniteTask(cost_limit=-1.0)
