"""The fast velocity tasks: the package's numbers to the last bit, and saved states."""

import json
import pickle

import numpy as np
import pytest

from algd.environments.safety_gymnasium import make_safety_env, safety_task_ids

VELOCITY = [task_id for task_id in safety_task_ids() if "Velocity" in task_id]
# What changes which numbers a step reads.
ARGUMENTS = [
    ("SafetyAntVelocity-v1", {"use_contact_forces": True}),
    ("SafetyAntVelocity-v1", {"terminate_when_unhealthy": False, "healthy_z_range": (0.5, 0.7)}),
    ("SafetyHopperVelocity-v1", {"terminate_when_unhealthy": False}),
    ("SafetyWalker2dVelocity-v0", {"exclude_current_positions_from_observation": False}),
    ("SafetySwimmerVelocity-v1", {"exclude_current_positions_from_observation": False}),
    ("SafetyHumanoidVelocity-v1", {"terminate_when_unhealthy": False}),
]


def compare(env_id, *, episodes, steps, first_seed=0, **arguments):
    """Step both side by side, episode after episode, for at least as many of both."""
    fast, slow = [make_safety_env(env_id, fast=fast, **arguments)[0] for fast in (True, False)]
    assert type(fast._inner) is not type(slow._inner)
    seed, taken = first_seed, 0
    while seed < first_seed + episodes or taken < steps:
        ours, theirs = fast.reset(seed=seed), slow.reset(seed=seed)
        assert ours[0].tobytes() == theirs[0].tobytes()
        generator = np.random.default_rng(seed)
        for _ in range(steps // episodes):
            action = generator.uniform(fast.action_space.low, fast.action_space.high)
            # The policy's actions come in the box's own type, whose sums have other last bits.
            action = action.astype(fast.action_space.dtype)
            ours, theirs = fast.step(action), slow.step(action)
            taken += 1
            assert ours[0].dtype == theirs[0].dtype
            assert ours[0].tobytes() == theirs[0].tobytes()
            assert ours[1:] == theirs[1:]
            assert list(ours[4]) == list(theirs[4])
            if ours[2]:
                break
        seed += 1
    return taken


@pytest.mark.parametrize("env_id", VELOCITY)
def test_every_number_is_the_packages(env_id):
    compare(env_id, episodes=3, steps=300)


@pytest.mark.parametrize(("env_id", "arguments"), ARGUMENTS)
def test_every_number_is_the_packages_with_other_arguments(env_id, arguments):
    compare(env_id, episodes=1, steps=200, kwargs=arguments)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("env_id", VELOCITY)
def test_every_number_is_the_packages_over_a_thousand_steps_and_five_resets(env_id):
    assert compare(env_id, episodes=5, steps=5000, first_seed=100) >= 1000


def test_a_robot_whose_state_is_not_finite_has_fallen():
    for fast in (True, False):
        for env_id in ("SafetyAntVelocity-v1", "SafetyHopperVelocity-v1"):
            env, _ = make_safety_env(env_id, fast=fast)
            env.reset(seed=0)
            assert env._inner.is_healthy
            env._inner.data.qvel[-1] = np.nan
            assert not env._inner.is_healthy


@pytest.mark.parametrize("env_id", VELOCITY)
@pytest.mark.parametrize("how", ["state", "pickle"])
def test_a_saved_task_continues_bit_for_bit(env_id, how):
    env, _ = make_safety_env(env_id)
    env.reset(seed=8)
    generator = np.random.default_rng(8)
    actions = generator.uniform(
        env.action_space.low, env.action_space.high, (40, env._inner.model.nu)
    )
    for action in actions[:10]:
        env.step(action)
    if how == "pickle":
        other = pickle.loads(pickle.dumps(env))  # noqa: S301 - our own bytes
    else:
        other, _ = make_safety_env(env_id)
        other.set_state(env.get_state())
    for action in actions[10:]:
        ours, theirs = env.step(action), other.step(action)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:] == theirs[1:]
    # Without a seed the next episode follows from the stream.
    assert env.reset()[0].tobytes() == other.reset()[0].tobytes()


def test_states_are_plain_and_refused_where_they_mean_nothing():
    env, _ = make_safety_env("SafetyHopperVelocity-v1")
    with pytest.raises(RuntimeError, match="reset the environment"):
        env.get_state()
    env.reset(seed=0)

    def plain(value):
        return value.tolist() if isinstance(value, np.ndarray) else f"{type(value)}"

    assert "<class" not in json.dumps(env.get_state(), default=plain, allow_nan=False)
    other, _ = make_safety_env("SafetyAntVelocity-v1")
    with pytest.raises(ValueError, match="agent 'Hopper', must be 'Ant'"):
        other.set_state(env.get_state())
