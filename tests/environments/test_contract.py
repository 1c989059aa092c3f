"""What `CostEnv` promises: rescaled actions, checked numbers, required seeds, honest endings."""

import math
from types import MappingProxyType

import numpy as np
import pytest

from algd.environments.make import EnvConfig, make_env
from algd.errors import EnvironmentFault

COUNTING = "environments.faulty_envs:Counting-v0"


def counting(**kwargs):
    return make_env(EnvConfig(id=COUNTING, kwargs=kwargs))


def test_actions_map_linearly_onto_the_box_and_clip():
    env = counting()
    env.reset(seed=0)
    inner = env._env.unwrapped
    for action, expected in (
        ([0.0, 0.0], [0.0, 5.0]),
        ([-1.0, -1.0], [-2.0, 0.0]),
        ([0.5, 1.0], [1.0, 10.0]),
        ([3.0, -7.0], [2.0, 0.0]),
    ):
        env.reset(seed=0)
        env.step(np.array(action, np.float32))
        assert inner.last_action.tolist() == expected
    assert env.original_action_space.low.tolist() == [-2.0, 0.0]
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    assert env.action_space.dtype == np.float32


def test_a_unit_box_changes_no_bit_of_the_action():
    env = make_env("SafetyPointGoal1-v0")
    action = np.array([0.1, -1e-7], np.float32)
    env.reset(seed=0)
    env.step(action)
    control = env._env._builder.task.data.ctrl
    assert control.tolist() == action.astype(np.float64).tolist()


def test_observations_are_float32_and_info_always_has_a_float_cost():
    env = counting()
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    observation, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert observation.dtype == np.float32
    assert (type(reward), type(info["cost"])) == (float, float)
    assert (reward, info["cost"], terminated, truncated) == (1.0, 0.5, False, False)


def test_the_time_limit_truncates_and_the_task_terminates():
    for ends_at, ending in ((None, (5, False, True)), (2, (2, True, False)), (5, (5, True, True))):
        env = counting(ends_at=ends_at)
        env.reset(seed=0)
        steps, terminated, truncated = 0, False, False
        while not (terminated or truncated):
            _, _, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
            steps += 1
        assert (steps, terminated, truncated) == ending


@pytest.mark.parametrize("bad", ["reward", "cost", "observation"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_names_environment_step_and_quantity(bad, value):
    env = counting(bad=bad, value=value)
    env.reset(seed=11)
    env.step(np.zeros(2, np.float32))
    env.step(np.zeros(2, np.float32))
    message = f"Counting-v0: the {bad} is {value}.* at step 3 of the episode with seed 11"
    with pytest.raises(EnvironmentFault, match=message) as caught:
        env.step(np.zeros(2, np.float32))
    assert "\n" not in str(caught.value)


def test_an_observation_beyond_float32_counts_as_infinite():
    env = counting(bad="observation", value=1e300, at=2)
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    with pytest.raises(EnvironmentFault, match="the observation is inf at index 1"):
        env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("quantity", ["reward", "cost"])
def test_a_number_beyond_float32_is_refused_as_what_it_is(quantity):
    env = counting(bad=quantity, value=1e39, at=2)
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    message = rf"the {quantity} is 1e\+39 at step 2 .*; which float32 does not hold"
    with pytest.raises(EnvironmentFault, match=message):
        env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("malformed", "instead", "message"),
    [
        ("observation", {"a": 1.0}, r"the observation is \{'a': 1.0\}; it must be numbers"),
        ("observation", [[1.0], [1.0, 2.0]], r"the observation is \[.*; it must be numbers"),
        ("observation", "up", "the observation is 'up'; it must be numbers"),
        ("reward", [1.0, 2.0], r"the reward is \[1.0, 2.0\]; it must be one number"),
        ("terminated", np.zeros(2, bool), r"terminated is array.*; it must be true or false"),
        ("truncated", np.zeros(2, bool), r"truncated is array.*; it must be true or false"),
        ("info", None, "info is None; it must be a mapping"),
    ],
)
def test_what_is_not_of_gymnasiums_types_is_named(malformed, instead, message):
    kwargs = {"malformed": malformed, "instead": instead}
    with pytest.raises(EnvironmentFault, match=message.replace("; ", " at step 1 .*; ")) as caught:
        make_env(EnvConfig(id="environments.faulty_envs:Malformed-v0", kwargs=kwargs))
    assert "\n" not in str(caught.value)


def test_an_info_that_cannot_be_written_to_is_read():
    told = MappingProxyType({"cost": 0.25, "more": 1})
    kwargs = {"malformed": "info", "instead": told}
    env = make_env(EnvConfig(id="environments.faulty_envs:Malformed-v0", kwargs=kwargs))
    env.reset(seed=0)
    assert env.step(np.zeros(2, np.float32))[4] == {"cost": 0.25, "more": 1}


def test_cost_fn_sees_what_was_even_where_the_environment_writes_over_it():
    cost_fn = "environments.faulty_envs:distance_and_force"
    costs = []
    for name in ("Counting-v0", "InPlace-v0"):
        env = make_env(EnvConfig(id=f"environments.faulty_envs:{name}", cost_fn=cost_fn))
        env.reset(seed=0)
        costs.append([env.step(np.array([0.5, 0.0], np.float32))[4]["cost"] for _ in range(3)])
    assert costs[0] == costs[1] == [1.0 + 1.0 + 5.0] * 3


def test_a_negative_cost_is_refused():
    env = counting(bad="cost", value=-0.25)
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))
    env.step(np.zeros(2, np.float32))
    with pytest.raises(EnvironmentFault, match=r"the cost is -0\.25 at step 3.*number >= 0"):
        env.step(np.zeros(2, np.float32))


def test_what_the_environment_raises_becomes_one_line_with_its_place():
    env = counting(bad="step")
    env.reset(seed=2)
    env.step(np.zeros(2, np.float32))
    env.step(np.zeros(2, np.float32))
    with pytest.raises(EnvironmentFault, match=r"step raised IndexError: out of range \(.*faulty_"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(EnvironmentFault, match="reset raised OSError: no such scene"):
        counting(bad="reset")


def test_an_action_that_is_not_finite_is_the_agents_fault_and_reaches_no_physics():
    env = counting()
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=r"the agent's action is \[0.0, nan\] at step 1"):
        env.step(np.array([0.0, math.nan], np.float32))
    assert env._env.unwrapped.steps == 0


def test_an_action_of_another_shape_is_refused():
    env = counting()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action has shape \(2,\), got \(3,\)"):
        env.step(np.zeros(3, np.float32))


def test_reset_without_a_seed_is_refused():
    with pytest.raises(ValueError, match="reset needs a seed"):
        counting().reset()


def test_cost_fn_sees_the_environments_own_units_and_replaces_that_of_info():
    cost_fn = "environments.faulty_envs:pendulum_cost"
    env = make_env(EnvConfig(id="Pendulum-v1", cost_fn=cost_fn))
    env.reset(seed=0)
    assert env.step(np.array([0.4], np.float32))[4]["cost"] == 0.0  # torque 0.8
    assert env.step(np.array([0.6], np.float32))[4]["cost"] == 1.0  # torque 1.2
    for env_id in (COUNTING, "SafetyPointGoal1-v0"):
        env = make_env(EnvConfig(id=env_id, cost_fn="environments.faulty_envs:twice_and_one"))
        plain = make_env(EnvConfig(id=env_id))
        for one in (env, plain):
            one.reset(seed=0)
        action = np.zeros(2, np.float32)
        told = plain.step(action)[4]["cost"]
        assert env.step(action)[4]["cost"] == 2.0 * told + 1.0


def test_max_episode_steps_replaces_the_limit_of_every_kind():
    for env_id, steps in (
        (COUNTING, 3),
        ("SafetyPointGoal0-v0", 4),
        ("SafetyHopperVelocity-v1", 2),
    ):
        env = make_env(EnvConfig(id=env_id, max_episode_steps=steps))
        assert env.max_episode_steps == steps
        env.reset(seed=0)
        endings = [env.step(np.zeros(env.action_dim, np.float32))[2:4] for _ in range(steps)]
        assert endings == [(False, False)] * (steps - 1) + [(False, True)]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((8, 8, 4), np.uint8), r"render returned a frame of shape \(8, 8, 4\)"),
        (np.zeros((8, 8, 3)), "render returned array"),
        (None, "render returned None"),
        ([[0]], r"render returned \[\[0\]\]"),
    ],
)
def test_a_frame_that_no_video_can_hold_is_named(monkeypatch, frame, message):
    env = counting()
    env.reset(seed=3)
    monkeypatch.setattr(env._env.unwrapped, "render", lambda: frame)
    monkeypatch.setattr(env, "_env", env._env.unwrapped)
    with pytest.raises(EnvironmentFault, match=message):
        env.render()
