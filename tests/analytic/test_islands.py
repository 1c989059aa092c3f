"""The two-islands task: closed forms, quadrature, sampling and flood fill must agree."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.ndimage import label
from scipy.optimize import brentq

from algd.analysis.density import boltzmann_density, box_grid, grid_points, trapezoid_weights
from algd.analysis.islands_solution import (
    feasible_energy,
    island_masses,
    islands_energy,
    islands_multiplier,
    mixture_density,
    mixture_masses,
)
from algd.environments.analytic_islands import IslandsEnv, IslandsTask

STATES = [-1.0, -0.25, 0.25, 0.6, 1.0]


def sample_mixture(task, state, rng, count):
    """Draw from the reward's own law on the box by ancestral sampling and rejection."""
    mode = rng.choice(3, size=count, p=task.shares(state))
    noise = rng.standard_normal((count, task.action_dim))
    actions = task.centres(state)[mode] + task.mode_width * noise
    return actions[np.abs(actions).max(axis=1) <= 1]


@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("state", STATES)
def test_number_of_islands_is_what_flood_fill_counts(action_dim, state):
    task = IslandsTask(action_dim)
    grid = box_grid(action_dim, 201)
    feasible = task.feasible(state, grid_points(grid)).reshape([201] * action_dim)
    assert task.num_islands(state) == label(feasible)[1] == (2 if state > 0 else 1)


def test_half_width_is_the_root_of_the_cost():
    task = IslandsTask()
    for state in (0.25, 0.6, 1.0):
        root = brentq(lambda a, s=state: float(task.cost(s, np.array([a]))) - 0.05, 0.01, 0.9)
        assert float(task.half_width(state)) == pytest.approx(root, abs=1e-9)
    # omega (log(H / d))^(1/4) with H = 1 / (1 + e^-20), omega = 0.26, d = 0.05
    assert float(task.half_width(1.0)) == pytest.approx(0.26 * np.log(20) ** 0.25, abs=1e-9)


@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("state", [-0.5, 0.5])
def test_closed_form_density_is_the_boltzmann_law_of_the_reward(action_dim, state):
    task = IslandsTask(action_dim)
    grid = box_grid(action_dim, 201)
    exact = mixture_density(task, state, grid)
    numeric = boltzmann_density(islands_energy(task, state), grid, task.reward_temperature)
    np.testing.assert_allclose(exact, numeric, rtol=2e-4)
    if state > 0:
        exact = mixture_density(task, state, grid, feasible_only=True)
        numeric = boltzmann_density(feasible_energy(task, state), grid, task.reward_temperature)
        np.testing.assert_allclose(exact, numeric, rtol=5e-3)


@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("state", [-0.5, 0.3, 0.9])
def test_closed_form_masses_agree_with_sampling_and_with_the_grid(action_dim, state):
    task = IslandsTask(action_dim)
    masses = mixture_masses(task, state)
    along = sample_mixture(task, state, np.random.default_rng(0), 200_000)[:, 0]
    half_width = float(task.half_width(state))
    left, right = np.mean(along < -half_width), np.mean(along > half_width)
    np.testing.assert_allclose(masses / masses.sum(), [left, 1 - left - right, right], atol=4e-3)
    grid = box_grid(action_dim, 401)
    on_grid = island_masses(mixture_density(task, state, grid), grid, task, state)
    np.testing.assert_allclose(masses / masses.sum(), on_grid, atol=1e-4)


def test_constrained_masses_have_known_values():
    task = IslandsTask()
    left, _, right = mixture_masses(task, 0.5)
    # Shares 0.65 and 0.35 of what is not under the wall; the middle mode's tails add equally.
    assert left / (left + right) == pytest.approx(0.65, abs=2e-3)


@pytest.mark.parametrize("penalty_coef", [None, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 0.05])
def test_multiplier_agrees_with_adaptive_quadrature(temperature, penalty_coef):
    task, state = IslandsTask(), 0.6
    multiplier = islands_multiplier(
        task,
        state,
        temperature=temperature,
        penalty_coef=penalty_coef,
        per_sample=penalty_coef is not None,
    )
    coef = penalty_coef or 0.0

    def weight(a):
        g = float(task.cost(state, np.array([a]))) - task.cost_limit
        penalty = multiplier * g
        if penalty_coef is not None:
            penalty = (max(multiplier + coef * g, 0.0) ** 2 - multiplier**2) / (2 * coef)
        return np.exp((float(task.reward(state, np.array([a]))) - penalty) / temperature), g

    def moment(of_g):
        # Twelve pieces, so that no narrow mode falls between the first nodes of the quadrature.
        edges = np.linspace(-1, 1, 13)
        return sum(
            quad(lambda a: weight(a)[0] * of_g(weight(a)[1]), low, high, epsabs=1e-12)[0]
            for low, high in pairwise(edges)
        )

    total = moment(lambda g: 1.0)
    if penalty_coef is None:
        assert moment(lambda g: g) / total == pytest.approx(0.0, abs=1e-6)
        assert multiplier > 0.1
    else:
        target = moment(lambda g: max(multiplier + coef * g, 0.0)) / total
        assert target == pytest.approx(multiplier, abs=1e-6)


def test_two_dimensional_multiplier_is_the_one_dimensional_one():
    # The wall does not see a_1 and a mode's marginal in a_0 has the same share: one multiplier.
    one, two = (islands_multiplier(IslandsTask(dim), 0.6, temperature=0.1) for dim in (1, 2))
    assert one == pytest.approx(two, abs=1e-4)


def test_wall_is_what_makes_the_constraint_bind():
    task, grid = IslandsTask(), box_grid(1, 801)
    assert islands_multiplier(task, -0.5, temperature=0.1) == 0.0
    free = boltzmann_density(islands_energy(task, 0.5), grid, 0.1)
    assert island_masses(free, grid, task, 0.5)[1] > 0.35


def test_penalty_on_each_action_leaves_less_than_one_percent_infeasible():
    task, grid = IslandsTask(), box_grid(1, 801)
    for state in (0.25, 0.5, 1.0):
        fixed = islands_multiplier(
            task, state, temperature=0.05, penalty_coef=1.0, per_sample=True, grid=grid
        )
        energy = islands_energy(task, state, multiplier=fixed, penalty_coef=1.0)
        law = boltzmann_density(energy, grid, 0.05)
        left, under, right = island_masses(law, grid, task, state)
        assert under < 0.01
        assert min(left, right) > 0.1


def test_environment_pays_what_the_task_says_and_keeps_away_from_the_gap():
    env, task = IslandsEnv(2), IslandsTask(2)
    env.reset(seed=0)
    states = []
    for step in range(300):
        obs, _ = env.reset()
        states.append(float(obs[0]))
        action = np.float32([0.01 * step - 1.5, 0.2])
        _, reward, terminated, _, info = env.step(action)
        inside = np.clip(action, -1, 1)
        assert terminated
        assert reward == pytest.approx(float(task.reward(states[-1], inside)), abs=1e-6)
        assert info["cost"] == pytest.approx(float(task.cost(states[-1], inside)), abs=1e-6)
    assert 0.25 <= np.abs(states).min() < 0.27
    assert 0.98 < np.abs(states).max() <= 1.0
    assert 0.4 < np.mean(np.array(states) > 0) < 0.6


def test_documented_optimal_rewards():
    task = IslandsTask()
    fine = np.linspace(-1, 1, 4001)[:, None]
    assert task.reward(-0.5, fine).max() == pytest.approx(0.1 * np.log(0.4), abs=1e-4)
    reward = np.where(task.feasible(0.5, fine), task.reward(0.5, fine), -np.inf)
    assert fine[reward.argmax(), 0] == pytest.approx(-0.62, abs=1e-3)
    assert reward.max() == pytest.approx(0.1 * np.log(0.39), abs=1e-4)


def test_weights_of_the_grid_integrate_to_the_area_of_the_box():
    assert trapezoid_weights(box_grid(2, 33)).sum() == pytest.approx(4.0)


def test_unusable_settings_are_refused():
    with pytest.raises(ValueError, match="action_dim must be 1 or 2, got 3"):
        IslandsTask(3)
    with pytest.raises(ValueError, match="per_sample needs penalty_coef"):
        islands_multiplier(IslandsTask(), 0.5, temperature=0.1, per_sample=True)
    with pytest.raises(ValueError, match="penalty_coef must be positive or None, got 0"):
        islands_energy(IslandsTask(), 0.5, penalty_coef=0.0)
