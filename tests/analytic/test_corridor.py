"""The corridor: dynamic programming, convex programmes and rollouts must agree."""

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from algd.analysis.corridor_rollouts import drive, drive_safe_optimum, even_starts
from algd.analysis.corridor_solution import solve_corridor
from algd.environments.analytic_corridor import CorridorEnv, CorridorTask

TASK = CorridorTask()
STEPS = TASK.num_steps
# Position after k steps is y + 0.1 k v + POSITION @ actions while the velocity is not clipped.
VELOCITY = 0.1 * np.tril(np.ones((STEPS, STEPS)))
POSITION = VELOCITY @ VELOCITY


@pytest.fixture(scope="module")
def solution():
    return solve_corridor(TASK)


def bounds_of_passage(*, upper, margin=0.0):
    """Lowest and highest allowed position after each step when passing on one side."""
    low, high = np.full(STEPS, -1.0 + margin), np.full(STEPS, 1.0 - margin)
    inside = slice(TASK.obstacle_steps[0] - 1, TASK.obstacle_steps[1])
    if upper:
        low[inside] = TASK.obstacle_span[1] + margin
    else:
        high[inside] = TASK.obstacle_span[0] - margin
    return low, high


def best_return_through(start, *, upper):
    """Continuous actions, one passage: a convex quadratic programme, solved by SLSQP."""
    low, high = bounds_of_passage(upper=upper)
    rows = np.concatenate([POSITION, -POSITION])
    slack = np.concatenate([start - low, high - start])

    def loss(actions):
        path = start + POSITION @ actions
        value = np.square(path / 0.5).sum() + 0.1 * actions @ actions - STEPS
        return value, 8.0 * POSITION.T @ path + 0.2 * actions

    found = minimize(
        loss,
        np.zeros(STEPS),
        jac=True,
        method="SLSQP",
        bounds=[(-1, 1)] * STEPS,
        constraints={
            "type": "ineq",
            "fun": lambda actions: rows @ actions + slack,
            "jac": lambda actions: rows,
        },
        options={"maxiter": 500, "ftol": 1e-9},
    )
    assert found.success
    assert np.abs(VELOCITY @ found.x).max() < TASK.max_velocity
    return -found.fun


def reachable(step, position, velocity, *, margin):
    """Whether some continuous control avoids every cost: a linear programme for each passage."""
    left = STEPS - step
    coast = position + 0.1 * velocity * np.arange(1, left + 1)
    fastest = VELOCITY[:left, :left]
    response = POSITION[:left, :left]
    for upper in (True, False):
        low, high = (limit[step:] for limit in bounds_of_passage(upper=upper, margin=margin))
        found = linprog(
            np.zeros(left),
            A_ub=np.concatenate([response, -response, fastest, -fastest]),
            b_ub=np.concatenate(
                [
                    high - coast,
                    coast - low,
                    np.full(left, TASK.max_velocity - velocity),
                    np.full(left, TASK.max_velocity + velocity),
                ]
            ),
            bounds=(-1, 1),
        )
        if found.status == 0:
            return True
    return False


@pytest.mark.parametrize("start", [-0.6, -0.3, 0.0, 0.2, 0.6])
def test_return_is_just_below_the_continuous_optimum(solution, start):
    continuous = max(best_return_through(start, upper=side) for side in (True, False))
    value = float(solution.value(0, start, 0.0))
    assert value <= continuous + 1e-6
    assert value == pytest.approx(continuous, rel=8e-3)


def test_finer_actions_come_closer_to_the_continuous_optimum():
    starts = np.array([-0.4, 0.0, 0.4])
    continuous = np.array(
        [max(best_return_through(y, upper=side) for side in (True, False)) for y in starts]
    )
    gaps = [
        (continuous - solve_corridor(TASK, levels=n).value(0, starts, 0.0)).max() for n in (1, 2, 5)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.15


def test_safe_set_is_what_linear_programmes_find(solution):
    rng = np.random.default_rng(0)
    checked = {True: 0, False: 0}
    for _ in range(150):
        step = int(rng.integers(0, 25))
        row, column = rng.integers(len(solution.velocities)), rng.integers(len(solution.positions))
        position, velocity = solution.positions[column], solution.velocities[row]
        if TASK.unsafe(step, position, margin=1e-6):
            assert not solution.safe[step, row, column]
            continue
        safe = bool(solution.safe[step, row, column])
        if safe:  # inner approximation: never safe where no control exists
            assert reachable(step, position, velocity, margin=0.0)
        else:  # and tight: two centimetres of spare room are always found
            assert not reachable(step, position, velocity, margin=0.02)
        checked[safe] += 1
    assert min(checked.values()) > 40


def test_known_states_of_the_viability_kernel(solution):
    # At rest on the centre line, n full pushes move 0.01 n (n + 1) / 2 metres: 8 make 0.36, enough
    # to reach the edge at 0.35 by step 16; 7 make 0.28.
    assert solution.is_safe(8, 0.0, 0.0)
    assert not solution.is_safe(9, 0.0, 0.0)
    # Braking from 0.9 m/s still covers 0.1 (0.8 + 0.7 + ... + 0.1) = 0.36 m, from 0.8 m/s 0.28 m.
    assert not solution.is_safe(30, 0.68, 0.9)
    assert solution.is_safe(30, 0.68, 0.8)
    # Outside the lattice, inside the obstacle.
    assert not solution.is_safe(0, 1.1, 0.0)
    assert not solution.is_safe(20, 0.0, 0.0)


def test_every_start_is_safe_and_unavoidable_collisions_exist(solution):
    starts = np.linspace(-0.6, 0.6, 1201)
    assert solution.is_safe(0, starts, 0.0).all()
    share = solution.safe.mean(axis=(1, 2))
    assert share[16] < 0.35 < 0.8 < share[0] < 0.85


@pytest.mark.parametrize("seed", range(5))
def test_controller_drives_the_environment_without_cost_to_the_promised_return(solution, seed):
    env = CorridorEnv()
    obs, _ = env.reset(seed=seed)
    position, velocity = float(obs[1]) * 1.2, 0.0
    promised = float(solution.value(0, position, velocity))
    total, step, terminated = 0.0, 0, False
    while not terminated:
        action = np.float32([solution.act(step, position, velocity)])
        _, reward, terminated, _, info = env.step(action)
        position, velocity = info["y"], info["v"]
        step += 1
        assert info["cost"] == 0.0
        total += reward
    # Between nodes the controller steers round the next node instead of the edge itself.
    assert total == pytest.approx(promised, rel=6e-3)


def test_from_a_node_the_controller_earns_the_value_to_rounding(solution):
    env = CorridorEnv()
    env.reset(seed=0, options={"y": -0.2})
    position, velocity, total = -0.2, 0.0, 0.0
    for step in range(STEPS):
        action = np.float32([solution.act(step, position, velocity)])
        _, reward, _, _, info = env.step(action)
        position, velocity = info["y"], info["v"]
        total += reward
        assert info["cost"] == 0.0
    assert total == pytest.approx(float(solution.value(0, -0.2, 0.0)), abs=1e-5)


def test_no_control_saves_a_state_outside_the_kernel(solution):
    env, rng = CorridorEnv(), np.random.default_rng(0)
    plans = [np.full(40, 1.0), np.full(40, -1.0), *rng.choice([-1.0, 1.0], size=(200, 40))]
    for plan in plans:
        env.reset(seed=0, options={"step": 9, "y": 0.0, "v": 0.0})
        cost, terminated, index = 0.0, False, 0
        while not terminated:
            _, _, terminated, _, info = env.step(np.float32([plan[index]]))
            cost, index = cost + info["cost"], index + 1
        assert cost > 0


def test_documented_return_and_passages(solution):
    starts = np.linspace(-0.6, 0.6, 121)
    assert solution.value(0, starts, 0.0).mean() == pytest.approx(28.7, abs=0.1)
    for start, upper in ((-0.3, True), (0.0, True), (0.3, False)):
        ways = {side: best_return_through(start, upper=side) for side in (True, False)}
        assert ways[upper] > ways[not upper]


def test_discounting_weighs_the_stages():
    short = CorridorTask(num_steps=2, obstacle_steps=(1, 1), obstacle_span=(-0.9, -0.8))
    solved = solve_corridor(short, discount=0.5)
    # At the centre, at rest: standing still earns 1 + 0.5.
    assert float(solved.value(0, 0.0, 0.0)) == pytest.approx(1.5)


def test_picture_shows_walls_obstacle_and_mass():
    env = CorridorEnv(render_mode="rgb_array")
    env.reset(seed=0, options={"y": 0.5})
    picture = env.render()
    assert picture is not None
    assert picture.shape == (240, 400, 3)
    assert picture[2, 50].tolist() == [150, 150, 150]
    assert picture[120, 200].tolist() == [200, 60, 60]
    assert picture[70, 1].tolist() == [40, 80, 200]
    assert CorridorEnv().render() is None


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="obstacle_span must be increasing"):
        CorridorTask(obstacle_span=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"obstacle_steps must be increasing in 1\.\.40"):
        CorridorTask(obstacle_steps=(0, 5))
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\], got 0"):
        solve_corridor(TASK, discount=0.0)
    with pytest.raises(ValueError, match=r"max_velocity must be a multiple of 0\.1"):
        solve_corridor(CorridorTask(max_velocity=1.25), levels=1)
    with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array', got 'human'"):
        CorridorEnv(render_mode="human")


def test_driving_many_masses_at_once_is_driving_the_environment():
    starts = np.array([-0.5, -0.1, 0.3, 0.6])
    plan = np.random.default_rng(0).uniform(-1.3, 1.3, (STEPS, len(starts), 1))
    plan[:, 3] = 1.0  # into the wall, where sliding stops
    steps = iter(plan)
    seen = []

    def act(obs):
        seen.append(obs)
        return next(steps)

    episodes = drive(TASK, act, starts)
    env = CorridorEnv()
    for index, start in enumerate(starts):
        env.reset(seed=0, options={"y": start})
        total = cost = 0.0
        for step in range(STEPS):
            obs, reward, _, _, info = env.step(plan[step, index])
            total, cost = total + reward, cost + info["cost"]
            if step + 1 == 20:  # the middle of the obstacle
                assert episodes.above[index] == (info["y"] > -0.005)
            if step + 1 < STEPS:
                np.testing.assert_allclose(obs, seen[step + 1][index], atol=1e-6)
        assert total == pytest.approx(episodes.returns[index], abs=1e-9)
        assert cost == episodes.collisions[index]
    assert episodes.collisions[3] > 0
    assert 0 < episodes.above.mean() < 1
    assert episodes.violation_rate() == (episodes.collisions > 0).mean()
    most = episodes.collisions.max()
    assert episodes.violation_rate(most - 1.0) == (episodes.collisions == most).mean()


def test_the_optimal_controller_is_the_whole_optimum_without_a_collision(solution):
    """By the passages that the environment documents: above from starts below 0.18, else below."""
    episodes = drive_safe_optimum(solution, even_starts(13))
    assert episodes.violation_rate() == 0.0
    assert episodes.share_of_optimum(solution) == pytest.approx(1.0, abs=6e-3)
    assert (episodes.above == (episodes.starts < 0.18)).all()
