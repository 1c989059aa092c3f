"""Every analytic id can be made, keeps Gymnasium's contract and ours, and is reproducible."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from algd.environments.analytic import ANALYTIC_TASKS, register_analytic_tasks
from algd.environments.make import make_env

IDS = register_analytic_tasks()


def test_registering_twice_changes_nothing():
    before = {env_id: gymnasium.spec(env_id) for env_id in IDS}
    assert register_analytic_tasks() == IDS
    assert all(gymnasium.spec(env_id) is spec for env_id, spec in before.items())


@pytest.mark.parametrize("task", ANALYTIC_TASKS, ids=lambda task: task.env_id)
def test_spec_states_the_episode_length_that_episodes_have(task):
    env = gymnasium.make(task.env_id)
    assert env.spec is not None
    assert env.spec.max_episode_steps == task.horizon
    env.action_space.seed(0)
    env.reset(seed=0)
    for step in range(1, task.horizon + 1):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (terminated or truncated) == (step == task.horizon)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_no_fault(env_id):
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_are_float32_boxes_with_unit_actions(env_id):
    env = gymnasium.make(env_id)
    for space in (env.observation_space, env.action_space):
        assert isinstance(space, gymnasium.spaces.Box)
        assert space.dtype == np.float32
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    assert np.all(env.action_space.low == -1)
    assert np.all(env.action_space.high == 1)


@pytest.mark.parametrize("env_id", IDS)
def test_an_episode_is_a_function_of_seed_and_actions(env_id):
    def rollout() -> list[object]:
        env = gymnasium.make(env_id)
        env.action_space.seed(3)
        rows: list[object] = [env.reset(seed=7)[0].tobytes()]
        over = False
        while not over:
            obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
            over = terminated or truncated
            rows.append((obs.tobytes(), reward, terminated, info["cost"]))
            assert env.observation_space.contains(obs)
            assert isinstance(reward, float)
            assert isinstance(info["cost"], float)
            assert info["cost"] >= 0
        return rows

    assert rollout() == rollout()


@pytest.mark.parametrize("env_id", IDS)
def test_the_one_door_makes_it(env_id):
    env = make_env(env_id)
    env.reset(seed=0)
    env.close()
