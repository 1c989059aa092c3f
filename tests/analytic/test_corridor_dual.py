"""How well anything can foresee collisions of exploration, and what exact learning gives."""

import numpy as np
import pytest

from algd.analysis.corridor_dual import CorridorLattice, solve_dual
from algd.environments.analytic_corridor import CorridorEnv, CorridorTask


@pytest.fixture(scope="module")
def lattice():
    return CorridorLattice(CorridorTask(), levels=2)


@pytest.fixture(scope="module")
def exploration(lattice):
    return lattice.explore(episodes=2_000, seed=0)


def test_risk_is_the_share_of_uniform_episodes_that_collide(lattice, exploration):
    risk = lattice.evaluate(lattice.uniform())[2]
    predicted = risk[tuple(exploration.states)].reshape(40, -1)
    came = exploration.violated.reshape(40, -1)
    for step in (0, 10, 20, 30):
        spread = np.sqrt((predicted[step] * (1 - predicted[step])).sum()) / predicted.shape[1]
        assert predicted[step].mean() == pytest.approx(came[step].mean(), abs=4 * spread + 1e-9)


def test_uniform_episodes_collide_as_often_as_in_the_environment(exploration):
    env, rng, collided = CorridorEnv(), np.random.default_rng(0), []
    for episode in range(300):
        env.reset(seed=episode)
        levels = rng.integers(-2, 3, 40) / 2
        collided.append(any(env.step(np.array([a], dtype=np.float32))[4]["cost"] for a in levels))
    share = exploration.violated.reshape(40, -1)[0].mean()
    assert np.mean(collided) == pytest.approx(share, abs=0.1)


def test_best_foresight_is_the_risk_and_the_safe_set_falls_far_short(lattice, exploration):
    risk = lattice.evaluate(lattice.uniform())[2]
    assert exploration.auroc_of(risk) == pytest.approx(0.967, abs=0.005)
    # One bit: outside the safe set, or on it, where the optimum's own multiplier is 0.
    assert exploration.auroc_of(~lattice.safe[:-1] * 1.0) == pytest.approx(0.698, abs=0.02)


def test_exact_multipliers_are_safe_and_foresee_more_if_the_policy_cools_slowly(
    lattice, exploration
):
    rest = np.full(10, 0.02)
    slow = np.concatenate([np.geomspace(10.0, 0.02, 20), rest])
    found = [
        solve_dual(lattice, temperatures=cooling, penalty_coef=coef)
        for cooling, coef in ((slow, 8.0), (np.tile(rest, 3), 2.0))
    ]
    foresight = [exploration.auroc_of(path.multiplier) for path in found]
    assert foresight == pytest.approx([0.959, 0.943], abs=0.004)
    for path in found:
        assert 0.98 < path.share_of_optimum < 1.0
        assert path.violations < 1e-6
