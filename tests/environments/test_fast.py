"""The fast navigation tasks: the package's numbers, saved states, fallbacks, no growth.

Each comparison steps the fast task and the untouched package side by side. Left to random actions a
robot hardly ever meets its goal, so now and then both robots (or boxes) are put upon it.
"""

import importlib
import json
import pickle
import resource

import numpy as np
import pytest

from algd.environments.fast.world import Poses, moved_world_class, tangible
from algd.environments.make import EnvConfig, make_env
from algd.environments.safety_gymnasium import make_safety_env, safety_task_ids
from algd.environments.safety_package import (
    load,
    mujoco_warnings_logged,
    untextured_world_class,
)

mujoco = importlib.import_module("mujoco")

NAVIGATION = [task_id for task_id in safety_task_ids() if "Velocity" not in task_id]
# Every family, robot and kind of object once; the slow test has all.
SAMPLE = (
    "SafetyPointGoal1-v0",
    "SafetyDoggoGoal2-v0",
    "SafetyCarButton1-v0",
    "SafetyPointButton2-v0",
    "SafetyCarPush1-v0",
    "SafetyRacecarPush2-v0",
    "SafetyPointCircle1-v0",
    "SafetyAntCircle2-v0",
    "SafetyAntRun0-v0",
)
AGREEMENT = 1e-12
# Only the renderer's clipping planes read these statistics of a compiled model.
VISUAL_STATISTICS = ("extent", "center", "meansize")


def fast_and_untouched(env_id, **arguments):
    return [make_safety_env(env_id, fast=fast, **arguments)[0] for fast in (True, False)]


def put_on_goal(env):
    """Move the robot, or the box it pushes, onto the goal."""
    task = env._builder.task
    model, data = task.model, task.data
    body = model.body("push_box" if "push_box" in task._free_geoms else "agent")
    goal = data.body("goal").xpos[:2]
    address = model.jnt_qposadr[body.jntadr[0]]
    if model.jnt_type[body.jntadr[0]] == mujoco.mjtJoint.mjJNT_FREE:
        data.qpos[address : address + 2] = goal
    else:
        matrix = np.empty(9)
        mujoco.mju_quat2Mat(matrix, body.quat)
        data.qpos[address : address + 2] = (goal - body.pos[:2]) @ matrix.reshape(3, 3)[:2, :2]
    mujoco.mj_forward(model, data)


def pickled(env):
    return pickle.loads(pickle.dumps(env))  # noqa: S301 - our own bytes


def random_actions(env, seed):
    generator = np.random.default_rng(seed)
    while True:
        yield generator.uniform(env.action_space.low, env.action_space.high)


def compare(env_id, *, episodes, steps, first_seed=0, goal_every=25):
    """Step both side by side for at least as many episodes and steps; return the goals met."""
    fast, slow = fast_and_untouched(env_id)
    has_goal = any(family in env_id for family in ("Goal", "Button", "Push"))
    worst, goals, seed, taken = 0.0, 0, first_seed, 0
    while seed < first_seed + episodes or taken < steps:
        (ours, _), (theirs, _) = fast.reset(seed=seed), slow.reset(seed=seed)
        assert_same_world(fast, slow)
        worst = max(worst, np.abs(ours - theirs).max())
        for index, action in zip(
            range(steps // episodes), random_actions(fast, seed), strict=False
        ):
            if has_goal and index % goal_every == goal_every - 1:
                put_on_goal(fast)
                put_on_goal(slow)
            ours, theirs = fast.step(action), slow.step(action)
            taken += 1
            worst = max(worst, np.abs(ours[0] - theirs[0]).max(), abs(ours[1] - theirs[1]))
            assert ours[2:] == theirs[2:]
            assert list(ours[4]) == list(theirs[4])
            goals += "goal_met" in ours[4]
            if ours[2] or ours[3]:
                break
        assert_same_world(fast, slow)
        seed += 1
    assert worst <= AGREEMENT
    return goals if has_goal else None


def assert_same_world(fast, slow):
    """Layout, physics and random stream agree to the last bit."""
    ours, theirs = fast._builder.task, slow._builder.task
    assert list(ours.world_info.layout) == list(theirs.world_info.layout)
    for name, place in ours.world_info.layout.items():
        assert (place == theirs.world_info.layout[name]).all()
    assert (ours.data.qpos == theirs.data.qpos).all()
    assert (ours.data.qvel == theirs.data.qvel).all()
    streams = [task.random_generator.random_generator.get_state() for task in (ours, theirs)]
    assert streams[0][2] == streams[1][2]
    assert (streams[0][1] == streams[1][1]).all()


@pytest.mark.parametrize("env_id", SAMPLE)
def test_every_number_is_the_packages(env_id):
    goals = compare(env_id, episodes=2, steps=180)
    assert goals is None or goals >= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds of computing, but many on a machine that others use
@pytest.mark.parametrize("env_id", NAVIGATION)
def test_every_number_is_the_packages_over_a_thousand_steps_and_five_resets(env_id):
    goals = compare(env_id, episodes=5, steps=1000, first_seed=100)
    assert goals is None or goals >= 5


@pytest.mark.parametrize(
    ("env_id", "substeps", "probability"),
    [
        ("SafetyPointGoal1-v0", 4, 1.0),
        ("SafetyPointGoal1-v0", 3, 0.4),
        ("SafetyPointButton1-v0", 2, 0.5),
    ],
)
def test_a_random_number_of_substeps_is_drawn_as_the_package_draws_it(
    env_id, substeps, probability
):
    arguments = {"sim_conf.frameskip_binom_n": substeps, "sim_conf.frameskip_binom_p": probability}
    fast, slow = fast_and_untouched(env_id, kwargs=arguments)
    for env in (fast, slow):
        env.reset(seed=3)
    for _, action in zip(range(30), random_actions(fast, 3), strict=False):
        ours, theirs = fast.step(action), slow.step(action)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=AGREEMENT)
    assert_same_world(fast, slow)


@pytest.mark.parametrize("env_id", ["SafetyPointGoal1-v0", "SafetyPointButton0-v0"])
def test_a_simulation_that_mujoco_restarts_is_restarted_alike(env_id):
    with mujoco_warnings_logged():
        fast, slow = fast_and_untouched(env_id)
        for env in (fast, slow):
            env.reset(seed=1)
            env.step(np.ones(2))
            env._builder.task.data.qvel[:] = 1e7
            mujoco.mj_forward(env._builder.task.model, env._builder.task.data)
            env._builder.task.reward_conf.reward_clip = None
            env.step(np.ones(2))
            env.step(np.ones(2))
    assert fast._builder.task.data.warning.number.sum() > 0
    assert_same_world(fast, slow)


@pytest.mark.parametrize(
    ("env_id", "seeds"), [("SafetyPointGoal2-v0", 12), ("SafetyCarButton1-v0", 3)]
)
def test_layouts_and_the_stream_after_them_are_the_packages(env_id, seeds):
    fast, slow = fast_and_untouched(env_id)
    for seed in range(seeds):
        for env in (fast, slow):
            env.reset(seed=1000 + seed)
        assert_same_world(fast, slow)


@pytest.mark.parametrize(
    "env_id",
    [
        "SafetyPointButton2-v0",
        "SafetyCarPush2-v0",
        "SafetyRacecarGoal2-v0",
        "SafetyDoggoCircle2-v0",
        "SafetyAntRun0-v0",
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_a_moved_model_has_the_bits_of_a_compiled_one(env_id, seen):
    fast, slow = fast_and_untouched(env_id)
    task = fast._builder.task
    task.world = moved_world_class(textured=seen)(task.agent, task._obstacles)
    fast.reset(seed=1)  # compiled with another layout than the one compared
    fast.reset(seed=2)
    slow.reset(seed=2)
    config = slow._builder.task.world.config  # as compiled, before the goal was moved
    package = load().world.World if seen else untextured_world_class()
    compiled = package(slow._builder.task.agent, slow._builder.task._obstacles)
    compiled.rebuild(config if seen else tangible(config), state=False)
    ours, theirs = task.model, compiled.model
    if "goal" in config["geoms"]:
        theirs.body("goal").pos[:] = slow._builder.task.model.body("goal").pos
    assert (ours.nbody == slow._builder.task.model.nbody) == (
        seen or tangible(config)["geoms"].keys() == config["geoms"].keys()
    )
    arrays = [
        name
        for name in dir(theirs)
        if not name.startswith("_") and isinstance(getattr(theirs, name), np.ndarray)
    ]
    assert len(arrays) > 200
    different = [name for name in arrays if (getattr(ours, name) != getattr(theirs, name)).any()]
    assert different == []
    assert ours.stat.meaninertia == theirs.stat.meaninertia
    assert ours.stat.meanmass == theirs.stat.meanmass
    numbers = [name for name in dir(theirs.stat) if not name.startswith("_")]
    assert set(numbers) == {"meaninertia", "meanmass", *VISUAL_STATISTICS}


def test_a_task_that_renders_shows_what_the_package_shows():
    frames = []
    for env in fast_and_untouched("SafetyCarButton1-v0", render_mode="rgb_array"):
        for seed in (5, 6):  # the second layout is the one to be seen
            env.reset(seed=seed)
        env.step(np.ones(2))
        put_on_goal(env)
        env.step(np.ones(2))
        frames.append(env.render().astype(int))
        env.close()
    assert frames[0].std() > 20
    assert np.abs(frames[0] - frames[1]).mean() < 0.05


@pytest.mark.parametrize(
    "env_id",
    ["SafetyPointGoal1-v0", "SafetyCarButton1-v0", "SafetyDoggoPush1-v0", "SafetyPointRun0-v0"],
)
@pytest.mark.parametrize("how", ["state", "pickle"])
def test_a_saved_task_continues_bit_for_bit(env_id, how):
    env, _ = make_safety_env(env_id)
    env.reset(seed=8)
    actions = random_actions(env, 8)
    for _, action in zip(range(25), actions, strict=False):
        env.step(action)
    if "Run" not in env_id:
        put_on_goal(env)
        assert env.step(next(actions))[4]["goal_met"]
    if how == "pickle":
        other = pickled(env)
    else:
        state = env.get_state()
        other, _ = make_safety_env(env_id)
        other.set_state(state)
    for index, action in zip(range(30), actions, strict=False):
        if index == 10 and "Run" not in env_id:
            put_on_goal(env)
            put_on_goal(other)
        ours, theirs = env.step(action), other.step(action)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:] == theirs[1:]
    assert_same_world(env, other)
    assert env.reset(seed=9)[0].tobytes() == other.reset(seed=9)[0].tobytes()


def test_going_back_to_a_state_repeats_what_followed():
    env, _ = make_safety_env("SafetyPointButton1-v0")
    env.reset(seed=4)
    state = env.get_state()
    futures = []
    for _ in range(2):
        env.set_state(state)
        futures.append([env.step(action)[:2] for action in np.eye(2)[[0, 1, 0, 0, 1]]])
        put_on_goal(env)
        futures[-1].append(env.step(np.zeros(2))[:2])
    for ours, theirs in zip(*futures, strict=True):
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1] == theirs[1]


def test_a_state_holds_plain_values_and_arrays_alone():
    env, _ = make_safety_env("SafetyPointButton1-v0")
    env.reset(seed=4)

    def plain(value):
        return value.tolist() if isinstance(value, np.ndarray) else f"{type(value)}"

    json.dumps(env.get_state(), default=plain, allow_nan=False)
    assert "<class" not in json.dumps(env.get_state(), default=plain)


def test_states_are_refused_where_they_mean_nothing():
    env, _ = make_safety_env("SafetyPointGoal1-v0")
    with pytest.raises(RuntimeError, match="reset the environment"):
        env.get_state()
    env.reset(seed=0)
    other, _ = make_safety_env("SafetyPointGoal2-v0")
    with pytest.raises(ValueError, match="task_id 'SafetyPointGoal1-v0'"):
        other.set_state(env.get_state())
    slow, _ = make_safety_env("SafetyPointGoal1-v0", fast=False)
    slow.reset(seed=0)
    for call in (slow.get_state, lambda: slow.set_state({}), lambda: pickle.dumps(slow)):
        with pytest.raises(TypeError, match="fast=True"):
            call()


def test_a_task_that_was_never_reset_pickles():
    env, twin = make_env("SafetyPointGoal1-v0"), pickled(make_env("SafetyPointGoal1-v0"))
    assert env.reset(seed=3)[0].tobytes() == twin.reset(seed=3)[0].tobytes()


def test_fast_false_and_unusual_observations_take_the_untouched_package():
    builder = load().builder.Builder
    assert type(make_env(EnvConfig(fast=False))._env._builder) is builder
    assert type(make_env(EnvConfig())._env._builder) is not builder
    env, _ = make_safety_env("SafetyPointGoal1-v0", kwargs={"observation_flatten": False})
    assert type(env._builder) is builder


def test_poses_hold_the_agent_first_and_mocaps_apart():
    config = {
        "agent_xy": [1.0, 2.0],
        "agent_rot": np.pi,
        "free_geoms": {"box": {"pos": [3.0, 4.0, 5.0], "rot": 0.0}},
        "geoms": {},
        "mocaps": {"ghost": {"pos": [6.0, 7.0, 8.0], "rot": np.pi / 2}},
    }
    poses = Poses.of(config, 0.1)
    np.testing.assert_allclose(
        poses.bodies, [[1, 2, 0.1, 0, 0, 0, 1], [3, 4, 5, 1, 0, 0, 0]], atol=1e-15
    )
    half = np.sqrt(0.5)
    np.testing.assert_allclose(poses.mocaps, [[6, 7, 8, half, 0, 0, half]])


def test_an_ended_episode_must_be_reset_before_the_next_step():
    env, _ = make_safety_env("SafetyPointGoal1-v0", max_episode_steps=1)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[3]
    with pytest.raises(AssertionError, match="reset the environment"):
        env.step(np.zeros(2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_resets_leave_memory_as_it_was():
    env, _ = make_safety_env("SafetyPointGoal1-v0")

    def peak_after(first, last):
        for seed in range(first, last):
            env.reset(seed=seed)
            env.step(np.zeros(2))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak_after(0, 500)
    assert peak_after(500, 10_500) - before < 2_000  # kB
