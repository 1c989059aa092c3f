"""Every supported Safety-Gymnasium task: its numbers, its independence of history, its frames."""

import json
import logging
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from algd.environments import rendering
from algd.environments.make import EnvConfig, make_env
from algd.environments.safety_gymnasium import make_safety_env, safety_task_ids
from algd.environments.safety_package import load

NAVIGATION = [env_id for env_id in safety_task_ids() if "Velocity" not in env_id]
FAMILIES = ("SafetyPointButton1-v0", "SafetyCarGoal2-v0", "SafetyAntPush1-v0")

# (observation, action) sizes by the published task pages of Safety-Gymnasium.
SIZES = {
    "SafetyPointGoal1-v0": (60, 2),
    "SafetyCarGoal1-v0": (72, 2),
    "SafetyRacecarGoal1-v0": (60, 2),
    "SafetyDoggoGoal1-v0": (104, 12),
    "SafetyAntGoal1-v0": (88, 8),
    "SafetyPointButton1-v0": (76, 2),
    "SafetyPointCircle1-v0": (28, 2),
    "SafetyHalfCheetahVelocity-v1": (17, 6),
    "SafetyHumanoidVelocity-v1": (376, 17),
}
# Velocity limits by the same pages, v1; the cost is 1 above them and 0 below.
VELOCITY_LIMITS = {
    "SafetyAntVelocity-v1": 2.6222,
    "SafetyHalfCheetahVelocity-v1": 3.2096,
    "SafetyHopperVelocity-v1": 0.7402,
    "SafetyHumanoidVelocity-v1": 1.4149,
    "SafetySwimmerVelocity-v1": 0.2282,
    "SafetyWalker2dVelocity-v1": 2.3415,
}


def trajectory(env, seed, steps, *, render_every=0):
    """Play random actions, and the next episodes where one ends; return all numbers as bytes."""
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    parts = [observation.tobytes()]
    for step in range(steps):
        action = generator.uniform(-1, 1, env.action_dim).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        parts.append(observation.tobytes() + np.array([reward, info["cost"]]).tobytes())
        parts.append(bytes([terminated, truncated]))
        if render_every and step % render_every == 0:
            env.render()
        if terminated or truncated:
            parts.append(env.reset(seed=seed + step + 1)[0].tobytes())
    return b"".join(parts)


def test_the_ids_are_those_of_the_package():
    ids = safety_task_ids()
    assert len(ids) == len(set(ids)) == 5 * 13 + 6 * 2
    assert {"SafetyPointGoal0-v0", "SafetyAntCircle2-v0", "SafetyRacecarRun0-v0"} < set(ids)


@pytest.mark.parametrize("env_id", safety_task_ids())
def test_an_episode_depends_on_nothing_but_its_seed_and_actions(env_id, capfd):
    env = make_env(env_id)
    assert env.max_episode_steps == (500 if "Circle" in env_id or "Run" in env_id else 1000)
    first = trajectory(env, seed=3, steps=60)
    trajectory(env, seed=4, steps=10)
    assert trajectory(env, seed=3, steps=60) == first
    env.close()
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", safety_task_ids())
def test_a_thousand_random_steps_and_frames(env_id, capfd):
    env = make_env(env_id)
    plain = trajectory(env, seed=0, steps=1000)
    env.close()
    shown = make_env(env_id, render_mode="rgb_array")
    assert trajectory(shown, seed=0, steps=1000, render_every=250) == plain
    shown.close()
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


@pytest.mark.parametrize("env_id", safety_task_ids())
def test_every_task_renders_the_robot(env_id):
    env = make_env(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 10  # a blank frame has 0
    env.close()


@pytest.mark.parametrize("env_id", [*FAMILIES, "SafetyHopperVelocity-v1"])
def test_rendering_and_textures_change_no_bit_and_survive_resets(env_id):
    plain, shown = make_env(env_id), make_env(env_id, render_mode="rgb_array")
    for seed in (0, 1):
        expected = trajectory(plain, seed=seed, steps=40)
        assert trajectory(shown, seed=seed, steps=40, render_every=10) == expected
    shown.reset(seed=0)
    early = shown.render()
    shown.reset(seed=1)
    other = shown.render()
    shown.reset(seed=0)
    again = shown.render()
    assert (early != other).any()
    if "Velocity" not in env_id:  # its camera moves smoothly from where the last episode left it
        assert (early == again).all()
    shown.close()
    shown.close()


def test_leaving_the_skybox_out_saves_memory_and_keeps_five_hundred_steps():
    plain, shown = (
        make_env("SafetyPointGoal1-v0"),
        make_env("SafetyPointGoal1-v0", render_mode="rgb_array"),
    )
    assert trajectory(plain, seed=7, steps=500) == trajectory(shown, seed=7, steps=500)
    small, large = (env._env._builder.task.model.nbuffer for env in (plain, shown))
    assert small < large / 100


def test_two_environments_side_by_side_do_not_touch_each_other():
    alone = trajectory(make_env("SafetyCarButton1-v0"), seed=5, steps=50)
    one, other = make_env("SafetyCarButton1-v0"), make_env("SafetyCarButton1-v0")
    trajectory(other, seed=6, steps=20)
    assert trajectory(one, seed=5, steps=50) == alone
    assert trajectory(other, seed=5, steps=50) == alone


@pytest.mark.parametrize(("env_id", "sizes"), SIZES.items())
def test_sizes_are_the_published_ones(env_id, sizes):
    env = make_env(env_id)
    assert (env.obs_dim, env.action_dim) == sizes


@pytest.mark.parametrize(("env_id", "limit"), VELOCITY_LIMITS.items())
def test_a_velocity_task_costs_one_above_its_limit(env_id, limit):
    env = make_env(env_id)
    assert env._env._inner._velocity_threshold == limit
    generator = np.random.default_rng(0)
    env.reset(seed=0)
    for step in range(100):
        _, _, terminated, _, info = env.step(generator.uniform(-1, 1, env.action_dim))
        speed = info["x_velocity"]
        if "Ant" in env_id or "Humanoid" in env_id:
            speed = np.hypot(speed, info["y_velocity"])
        assert info["cost"] == float(speed > limit)
        if terminated:
            env.reset(seed=step)


@pytest.mark.parametrize("fast", [True, False])
def test_a_hazard_costs_one_within_its_radius_and_nothing_outside(fast):
    env = make_env(EnvConfig(id="SafetyPointGoal1-v0", fast=fast))
    env.reset(seed=0)
    task = env._env._builder.task
    assert env.step(np.zeros(2))[4]["cost"] == 0.0
    for distance, cost in ((0.19, 1.0), (0.21, 0.0), (0.0, 1.0)):  # its radius is 0.2
        place = task.world_info.layout["hazard0"] + np.array([distance, 0.0])
        task.model.body("agent").pos[:2] += place - task.agent.pos[:2]
        assert env.step(np.zeros(2))[4]["cost"] == cost


def test_falling_over_terminates_and_the_step_limit_truncates():
    hopper = make_env("SafetyHopperVelocity-v1")
    hopper.reset(seed=0)
    endings = []
    while not endings or endings[-1] == (False, False):
        endings.append(hopper.step(np.ones(3))[2:4])
    assert endings[-1] == (True, False)
    assert len(endings) < 1000
    point = make_env("SafetyPointCircle0-v0")
    point.reset(seed=0)
    endings = [point.step(np.zeros(2))[2:4] for _ in range(500)]
    assert endings == [(False, False)] * 499 + [(False, True)]


@pytest.mark.parametrize("fast", [True, False])
def test_a_goal_that_finds_no_place_truncates_instead_of_terminating(monkeypatch, fast):
    env = make_env(EnvConfig(id="SafetyPointGoal1-v0", fast=fast))
    env.reset(seed=0)
    task = env._env._builder.task
    resampling_error = load().builder.ResamplingError

    def no_place():
        raise resampling_error("Failed to generate goal")

    task.goal.size = 100.0  # reached from everywhere
    monkeypatch.setattr(task, "update_world", no_place)
    _, _, terminated, truncated, info = env.step(np.zeros(2))
    assert (terminated, truncated) == (False, True)
    assert info["goal_placement_failed"]


def test_a_layout_in_violation_is_replaced_by_the_next_derived_one(monkeypatch):
    env, _ = make_safety_env("SafetyPointGoal1-v0")
    honest, seeds = env._builder.reset, []

    def first_fails(*, seed, options):
        seeds.append(seed)
        assert len(seeds) > 1, "World has starting cost!"
        return honest(seed=seed)

    monkeypatch.setattr(env._builder, "reset", first_fails)
    replaced, _ = env.reset(seed=9)
    derived = int(np.random.SeedSequence([9, 1]).generate_state(1)[0])
    assert seeds == [9, derived]
    assert (replaced == make_safety_env("SafetyPointGoal1-v0")[0].reset(seed=derived)[0]).all()


def test_upstream_prints_go_to_the_log(caplog, capsys):
    with caplog.at_level(logging.INFO):
        load().builder.print("Warning: reward was outside of range!")
    assert caplog.messages == ["Warning: reward was outside of range!"]
    assert capsys.readouterr().out == ""


def test_importing_leaves_nothing_behind():
    code = """
import dataclasses, json, sys, mujoco, gymnasium, numpy
before = set(gymnasium.registry), dataclasses.dataclass, mujoco.get_mju_user_warning()
from algd.environments.make import EnvConfig, make_env
make_env("SafetyHalfCheetahVelocity-v1").reset(seed=0)
make_env("SafetyAntGoal1-v0").reset(seed=0)
after = set(gymnasium.registry), dataclasses.dataclass, mujoco.get_mju_user_warning()
print(json.dumps([before == after, [m for m in sys.modules if "safety_gymnasium" in m]]))
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert json.loads(result.stdout) == [
        True,
        ["algd.environments.safety_gymnasium"],
    ]


def test_an_unclosed_renderer_ends_the_program_silently():
    code = """
from algd.environments.make import EnvConfig, make_env
env = make_env("SafetyHopperVelocity-v1", render_mode="rgb_array")
env.reset(seed=0)
env.render()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_a_backend_works_on_this_machine():
    assert rendering.gl_backend() in rendering.OFFSCREEN_BACKENDS


def test_the_package_objects_are_gymnasium_environments():
    env, steps = make_safety_env("SafetyPointRun0-v0")
    assert isinstance(env, gymnasium.Env)
    assert steps == 500
