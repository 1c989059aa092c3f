"""The one door: what it makes, and one clear line for everything it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from algd.environments import rendering, safety_package
from algd.environments.fast import builder, layout, velocity, world
from algd.environments.make import EnvConfig, known_env_ids, make_env
from algd.environments.safety_gymnasium import safety_task_ids
from algd.errors import ConfigError, EnvironmentFault

HERE = "environments.faulty_envs"


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("SafetyPointGaol1-v0", r"is not known; did you mean SafetyPointGoal1-v0"),
        ("SafetyPointGoal1-v1", r"did you mean SafetyPointGoal1-v0"),
        ("safetyhoppervelocity-v1", r"did you mean SafetyHopperVelocity-v1"),
        ("Pendulm-v1", r"did you mean Pendulum-v1"),
        ("AnalyticBandit-v0", r"did you mean AnalyticBandit\d-v0 or Analytic"),
        ("qqqqqqqqqqqq", r"'qqqqqqqqqqqq' is not known$"),
        ("SafetyPointGoal1Vision-v0", r"image observations.*did you mean SafetyPointGoal1-v0"),
        ("SafetyCarButton2Debug-v0", r"steered by keyboard.*did you mean SafetyCarButton2-v0"),
        ("SafetyPointGoal1Gymnasium-v0", r"the plain id.*did you mean SafetyPointGoal1-v0"),
        ("SafetyPointRace1-v0", r"textures of the Race tasks are missing"),
        ("SafetyPointFadingEasy1-v0", r"fade in images only"),
        ("no_such_module:Thing-v0", r"module 'no_such_module' cannot be imported"),
        (f"{HERE}:Countin-v0", r"is not known; did you mean Counting-v0"),
    ],
)
def test_an_id_that_cannot_be_made_is_one_line_with_the_nearest(env_id, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_env(env_id)
    text = str(caught.value)
    assert env_id in text
    assert "\n" not in text
    assert text.count(" or ") <= 2  # at most three suggestions
    assert len(text) < 250


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("DictObservation-v0", r"flat vector.*a Dict with the keys \['pose', 'speed'\]"),
        ("ImageObservation-v0", r"flat vector.*an image of shape \(8, 8, 3\)"),
        ("DiscreteAction-v0", r"must be continuous.*Discrete\(3\)"),
        ("IntegerAction-v0", r"must be real numbers, a Box of floats, got .*int64"),
        ("InfiniteAction-v0", r"bounds must be finite"),
        ("Endless-v0", r"no time limit.*set env\.max_episode_steps"),
    ],
)
def test_spaces_and_limits_that_cannot_be_used_are_refused(env_id, message):
    with pytest.raises(EnvironmentFault, match=message) as caught:
        make_env(f"{HERE}:{env_id}")
    assert "\n" not in str(caught.value)


def test_an_environment_without_a_cost_is_refused_when_made_and_says_how_to_give_one():
    with pytest.raises(EnvironmentFault, match=r'Pendulum-v1: there is no cost.*info\["cost"\]'):
        make_env("Pendulum-v1")
    with pytest.raises(EnvironmentFault, match=r"set env\.cost_fn"):
        make_env(EnvConfig(id=f"{HERE}:Counting-v0", kwargs={"bad": "no cost"}))


def test_a_module_of_this_directory_that_cannot_be_imported_is_told_how(tmp_path, monkeypatch):
    (tmp_path / "my_package_of_a_test").mkdir()
    (tmp_path / "my_module_of_a_test.py").touch()
    monkeypatch.chdir(tmp_path)
    hint = r"; it is in this directory: install it, or set PYTHONPATH=\.$"
    with pytest.raises(ConfigError, match=hint):
        make_env("my_package_of_a_test.envs:Mine-v0")
    with pytest.raises(ConfigError, match=hint):
        make_env(EnvConfig(id="Pendulum-v1", cost_fn="my_module_of_a_test:cost"))
    with pytest.raises(ConfigError, match=r"No module named 'no_such_module'$"):
        make_env("no_such_module:Mine-v0")


@pytest.mark.parametrize(
    ("cost_fn", "message"),
    [
        ("no_such_module:f", r"env\.cost_fn .*'no_such_module' cannot be imported"),
        (f"{HERE}:missing", r"has no function 'missing'"),
        (f"{HERE}:NOT_A_FUNCTION", r"has no function 'NOT_A_FUNCTION'"),
    ],
)
def test_a_cost_function_that_does_not_exist_is_a_configuration_error(cost_fn, message):
    with pytest.raises(ConfigError, match=message):
        make_env(EnvConfig(id="Pendulum-v1", cost_fn=cost_fn))


@pytest.mark.parametrize(
    "env_id", ["SafetyPointGoal1-v0", "SafetyHopperVelocity-v1", "Pendulum-v1"]
)
def test_constructor_arguments_that_do_not_fit_are_named(env_id):
    with pytest.raises(EnvironmentFault, match=r"env\.kwargs \{'colour': 'red'\}.*colour"):
        make_env(EnvConfig(id=env_id, kwargs={"colour": "red"}))


def test_constructor_arguments_reach_the_task():
    elapsed = []
    for kwargs in ({}, {"sim_conf.frameskip_binom_n": 5}):
        env = make_env(EnvConfig(id="SafetyPointGoal0-v0", kwargs=kwargs))
        env.reset(seed=0)
        env.step(np.zeros(2))
        elapsed.append(env._env._builder.task.data.time)
    assert elapsed == pytest.approx([10 * 0.002, 5 * 0.002])
    env = make_env(EnvConfig(id="SafetyHopperVelocity-v1", kwargs={"healthy_reward": 0.0}))
    env.reset(seed=0)
    assert env.step(np.zeros(3))[1] < 0.5  # 1.0 with the default


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, r"env\.id"),
        ({"num_envs": 0}, r"env\.num_envs must be >= 1, got 0"),
        (
            {"vector": "threads"},
            r"env\.vector must be one of \('sync', 'subprocess', 'parallel'\), got threads",
        ),
        ({"max_episode_steps": 0}, r"env\.max_episode_steps must be >= 1, got 0"),
        ({"cost_fn": "just_a_name"}, r'env\.cost_fn must read "module:function"'),
        ({"kwargs": {"render_mode": "human"}}, r"must not hold render_mode"),
    ],
)
def test_impossible_configurations_name_field_and_value(fields, message, no_shape_checks):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**fields)


def test_the_configuration_validates_from_plain_values_and_forbids_unknown_keys():
    adapter = TypeAdapter(EnvConfig)
    config = adapter.validate_python({"id": "Pendulum-v1", "num_envs": 2, "kwargs": {"g": 9.8}})
    assert config == EnvConfig(id="Pendulum-v1", num_envs=2, kwargs={"g": 9.8})
    with pytest.raises(ValidationError, match="num_env"):
        adapter.validate_python({"num_env": 2})


def test_render_modes_other_than_rgb_array_are_refused():
    with pytest.raises(ConfigError, match=r"render_mode must be one of .* got 'human'"):
        make_env("SafetyPointGoal1-v0", render_mode="human")
    with pytest.raises(EnvironmentFault, match=r"Counting-v0 cannot render rgb_array"):
        make_env(f"{HERE}:Counting-v0", render_mode="rgb_array")


def forget_the_package():
    """Import it anew next time, and build anew every class that is made of its classes."""
    for cached in (
        safety_package.load,
        safety_package.untextured_world_class,
        builder.fast_builder_class,
        layout.layout_generator_class,
        velocity.fast_velocity_class,
        world.moved_world_class,
    ):
        cached.cache_clear()


@pytest.mark.parametrize("missing", ["mujoco", "safety_gymnasium"])
def test_a_missing_package_is_one_line_with_the_install_commands(missing, monkeypatch):
    forget_the_package()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EnvironmentFault, match=rf"{missing} is not installed.*--no-deps") as caught:
        make_env("SafetyPointGoal1-v0")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    forget_the_package()
    assert make_env("SafetyPointGoal1-v0").obs_dim == 60


def test_without_an_opengl_backend_rendering_names_the_packages(monkeypatch):
    monkeypatch.setattr(rendering, "_works", lambda backend: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(EnvironmentFault, match=r"neither EGL nor OSMesa.*libegl1.*libosmesa6"):
        make_env("SafetyPointGoal1-v0", render_mode="rgb_array")
    assert rendering.gl_backend() is None
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(EnvironmentFault, match="MUJOCO_GL=nonsense does not work"):
        make_env("SafetyPointGoal1-v0", render_mode="rgb_array")


def test_a_backend_that_is_not_there_is_probed_without_harm():
    assert rendering._works("nonsense") is False


def test_a_backend_is_chosen_before_anything_renders(monkeypatch):
    monkeypatch.setattr(rendering, "_works", lambda backend: backend == "osmesa")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert rendering.gl_backend() == "osmesa"
    assert rendering.require_gl_backend() == "osmesa"
    assert rendering.os.environ["MUJOCO_GL"] == "osmesa"


def test_known_ids_hold_every_family_once():
    ids = known_env_ids()
    assert len(ids) == len(set(ids))
    assert set(safety_task_ids()) < set(ids)
    assert {"Pendulum-v1", "AnalyticBandit1-v0"} < set(ids)


def test_describing_an_environment_imports_nothing_heavy():
    code = (
        "import sys; from algd.environments.make import EnvConfig; EnvConfig();"
        "print([m for m in ('gymnasium', 'mujoco', 'torch', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_an_environment_made_by_a_function_is_rendered_as_it_says():
    with make_env(f"{HERE}:Rendered-v0", render_mode="rgb_array") as env:
        env.reset(seed=0)
        assert env.render().shape == (8, 8, 3)
    with pytest.raises(EnvironmentFault, match=r"Unbounded-v0 cannot render rgb_array, only \[\]"):
        make_env(f"{HERE}:Unbounded-v0", render_mode="rgb_array")


def test_bounds_beyond_float32_are_no_bounds_and_no_warning():
    with make_env(f"{HERE}:Unbounded-v0") as env:
        assert np.isinf(env.observation_space.high).all()
