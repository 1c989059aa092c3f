"""One form of the exact answer against each task's own solver."""

import numpy as np
import pytest

from algd.analysis.bandit_solution import BoltzmannBandit
from algd.analysis.exact_answers import ExactTables, exact_tables, solve_exact
from algd.analysis.finite_soft_solution import solve_statewise_soft
from algd.analysis.islands_solution import islands_multiplier
from algd.environments.analytic_bandit import BanditTask
from algd.environments.analytic_finite import FiniteTask
from algd.environments.analytic_islands import IslandsTask


def tables_of(env_id: str, step_limit: float, cost_discount: float = 0.99) -> ExactTables:
    found = exact_tables(env_id, step_limit=step_limit, cost_discount=cost_discount)
    assert found is not None
    return found


@pytest.mark.parametrize(("penalty", "per_sample"), [(None, False), (2.0, False), (2.0, True)])
@pytest.mark.parametrize("action_dim", [1, 2])
def test_bandit_multipliers_are_those_of_its_solver(
    action_dim: int, penalty: float | None, per_sample: bool
) -> None:
    tables = tables_of(f"AnalyticBandit{action_dim}-v0", 0.5)
    bandit = BoltzmannBandit(
        BanditTask(action_dim), tables.obs[:, 0], temperature=0.05, penalty_coef=penalty
    )
    exact = bandit.per_sample_fixed_point() if per_sample else bandit.multiplier()
    answer = solve_exact(
        tables,
        temperature=0.05,
        penalty_coef=penalty,
        hinge_coef=penalty if per_sample else None,
    )
    np.testing.assert_allclose(answer.multiplier, exact, atol=2e-3)


@pytest.mark.parametrize("per_sample", [False, True])
def test_islands_multipliers_are_those_of_its_solver(per_sample: bool) -> None:
    tables = tables_of("AnalyticIslands1-v0", 0.05)
    answer = solve_exact(
        tables, temperature=0.1, penalty_coef=1.0, hinge_coef=1.0 if per_sample else None
    )
    for index in (0, 12, 19):
        exact = islands_multiplier(
            IslandsTask(),
            float(tables.obs[index, 0]),
            temperature=0.1,
            penalty_coef=1.0,
            per_sample=per_sample,
        )
        assert answer.multiplier[index] == pytest.approx(exact, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("entropy_in_value", [False, True])
def test_finite_multipliers_are_those_of_its_solver(entropy_in_value: bool) -> None:
    tables = tables_of("AnalyticFinite-v0", 0.25, cost_discount=0.0)
    exact = solve_statewise_soft(
        FiniteTask(), discount=0.9, temperature=0.05, entropy_in_value=entropy_in_value
    )
    answer = solve_exact(
        tables,
        temperature=0.05,
        penalty_coef=None,
        hinge_coef=None,
        discount=0.9,
        entropy_weight=0.05 if entropy_in_value else 0.0,
    )
    np.testing.assert_allclose(answer.multiplier, exact.multiplier, atol=5e-3)


def test_a_shared_multiplier_meets_the_constraint_on_average() -> None:
    tables = tables_of("AnalyticBandit1-v0", 0.4)
    answer = solve_exact(tables, temperature=0.05, penalty_coef=None, hinge_coef=None, shared=True)
    assert np.ptp(answer.multiplier) == 0.0
    mean_excess = (answer.density * tables.weights * tables.excess).sum(axis=1).mean()
    assert mean_excess * answer.multiplier[0] == pytest.approx(0.0, abs=1e-5)
    assert mean_excess < 1e-5


def test_a_shared_multiplier_weighs_states_as_often_as_an_episode_is_there() -> None:
    tables = tables_of("AnalyticFinite-v0", 0.16, cost_discount=0.0)
    answer = solve_exact(
        tables, temperature=0.05, penalty_coef=None, hinge_coef=None, shared=True, discount=0.9
    )
    mass = answer.density * tables.weights
    assert answer.multiplier[0] > 0.1
    # Rolled out: the mean cost of a step is the limit.
    generator = np.random.default_rng(0)
    states = generator.choice(5, 20_000, p=tables.start)
    excess = 0.0
    for _ in range(tables.horizon):
        actions = (mass.cumsum(axis=1)[states] < generator.random((len(states), 1))).sum(axis=1)
        excess += tables.excess[states, actions].mean()
        after = tables.transition[states, actions].cumsum(axis=1)
        states = (after < generator.random((len(states), 1))).sum(axis=1)
    assert excess / tables.horizon == pytest.approx(0.0, abs=1e-3)
    # Weighing states alike would leave the limit by twice that and more.
    assert abs((mass * tables.excess).sum(axis=1).mean()) > 2e-3


def test_tasks_without_such_an_answer_have_no_tables() -> None:
    assert exact_tables("AnalyticFinite-v0", step_limit=0.25, cost_discount=0.9) is None
    assert exact_tables("AnalyticCorridor-v0", step_limit=0.0, cost_discount=0.9) is None
    assert exact_tables("SafetyPointGoal1-v0", step_limit=0.025, cost_discount=0.9) is None


def test_the_limit_of_the_agent_may_differ_from_that_of_the_task() -> None:
    tables = tables_of("AnalyticBandit1-v0", 0.3)
    task = BanditTask()
    state = float(tables.obs[4, 0])
    # The cost belongs to the environment, with d = 0.5; the excess to the agent's limit.
    expected = task.cost(state, tables.actions) - 0.3
    np.testing.assert_allclose(tables.excess[4], expected)


def test_a_temperature_of_zero_is_refused() -> None:
    tables = tables_of("AnalyticBandit1-v0", 0.5)
    with pytest.raises(ValueError, match="temperature"):
        solve_exact(tables, temperature=0.0, penalty_coef=None, hinge_coef=None)
