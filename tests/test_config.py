"""Configuration: precedence, kinds, round trips, and one clear line for every mistake."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alam.gaussian import GaussianPolicyConfig
from alam.multiplier import MULTIPLIERS
from alam.multiplier_config import MultiplierConfig, ScalarPIDConfig, StatewiseALaMConfig
from alam.sac import SACAgent
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.release import ReleasePolicyConfig
from algd.errors import ConfigError
from algd.experiments.config import (
    ExperimentConfig,
    config_from_dict,
    dump_yaml,
    load_config,
    load_overrides,
    make_agent,
    to_dict,
)
from algd.experiments.reference import config_reference, field_docs, stored_reference, wrapped
from algd.experiments.schema import (
    all_keys,
    describe_type,
    field_types,
    is_dataclass_type,
    show,
    variants,
)
from algd.experiments.yaml_files import list_presets, parse_yaml, presets_dir, write_yaml


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def mistake(overrides: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([], overrides)
    return str(caught.value)


def file_mistake(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    return str(caught.value)


# ---- precedence and kinds


def test_nothing_given_is_the_default_configuration() -> None:
    assert load_config([]) == ExperimentConfig()


def test_later_files_win_and_the_command_line_wins_over_all(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "seed: 1\ncritics: {discount: 0.9, cost_discount: 0.8}\n")
    second = write(tmp_path / "b.yaml", "seed: 2\ncritics: {discount: 0.95}\n")
    config = load_config([first, second], {"seed": 3})
    assert (config.seed, config.critics.discount, config.critics.cost_discount) == (3, 0.95, 0.8)


def test_a_new_kind_drops_what_earlier_layers_said_of_the_union(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "multiplier: {hidden: [8], learning_rate: 0.5}\n")
    config = load_config([file], {"multiplier.kind": "scalar_pid"})
    assert config.multiplier == ScalarPIDConfig()


def test_a_new_kind_keeps_the_keys_of_its_own_and_of_later_layers(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "multiplier: {multiplier_max: 7.0}\n")
    second = write(tmp_path / "b.yaml", "multiplier: {integral_gain: 2.0, kind: scalar_pid}\n")
    config = load_config([first, second], {"multiplier.interval": 3})
    assert config.multiplier == ScalarPIDConfig(integral_gain=2.0, interval=3)


def test_naming_the_same_kind_again_drops_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "multiplier: {hidden: [8]}\n")
    config = load_config([file], {"multiplier.kind": "statewise_alam"})
    assert config.multiplier == StatewiseALaMConfig(hidden=(8,))


def test_one_key_of_a_group_keeps_the_defaults_its_owner_gives_the_others() -> None:
    """The release holds its temperature raw, other policies relative: one key must not mix them."""
    config = load_config([], {"policy.kind": "release", "policy.temperature.value": 2.0})
    assert isinstance(config.policy, ReleasePolicyConfig)
    assert (config.policy.temperature.mode, config.policy.temperature.value) == ("raw", 2.0)


def test_environment_arguments_accumulate_and_an_empty_mapping_clears_them(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "env: {kwargs: {a: 1, b: 2}}\n")
    assert load_config([file], {"env.kwargs.b": 3}).env.kwargs == {"a": 1, "b": 3}
    assert load_config([file], {"env.kwargs": {}}).env.kwargs == {}


def test_base_files_come_first_and_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases" / "deep.yaml", "seed: 5\nconstraint: {cost_limit: 1.0}\n")
    write(tmp_path / "bases" / "near.yaml", "base: deep.yaml\nseed: 6\n")
    file = write(tmp_path / "run.yaml", "base: [bases/near.yaml]\nconstraint: {unit: raw}\n")
    config = load_config([file])
    assert (config.seed, config.constraint.cost_limit, config.constraint.unit) == (6, 1.0, "raw")


def test_a_base_shared_by_two_files_does_not_undo_the_first(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1\n")
    first = write(tmp_path / "a.yaml", "base: base.yaml\nseed: 2\n")
    second = write(tmp_path / "b.yaml", "base: base.yaml\nconstraint: {cost_limit: 9}\n")
    config = load_config([first, second])
    assert (config.seed, config.constraint.cost_limit) == (2, 9.0)


def test_dotted_keys_nest_as_a_sweep_gives_them() -> None:
    tree = load_overrides({"multiplier.kind": "fixed", "seed": 3, "multiplier.value": 0.5})
    assert tree == {"multiplier": {"kind": "fixed", "value": 0.5}, "seed": 3}
    assert load_overrides({"env": {"id": "X-v0"}, "env.num_envs": 2}) == {
        "env": {"id": "X-v0", "num_envs": 2}
    }


def test_overrides_leave_their_argument_alone() -> None:
    overrides = {"env": {"kwargs": {"a": 1}}, "env.kwargs.b": 2}
    load_config([], overrides)
    assert overrides == {"env": {"kwargs": {"a": 1}}, "env.kwargs.b": 2}


# ---- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("12", 12),
        ("-7", -7),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("off", "off"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2020-01-02", "2020-01-02"),
        ("1e", "1e"),
        ("v1.5", "v1.5"),
        ("module:function", "module:function"),
        ("'3'", "3"),
        ("[64, 64]", [64, 64]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_scalars_are_read_by_the_rules_of_yaml_1_2(text: str, value: object) -> None:
    got = parse_yaml(text, "test")
    assert got == value
    assert type(got) is type(value)


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85")),
    st.sampled_from(["1e5", "off", "null", "0x1", "1_000", "2020-01-01", ".5", "=", "<<", "~", ""]),
)


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
        st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    )
)
def test_written_yaml_reads_back_equal_with_the_same_types(tree: dict[str, Any]) -> None:
    got = parse_yaml(write_yaml(tree), "test")
    assert got == tree
    assert repr(got) == repr(tree)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("seed: 1\ncritics: [1\n", 3, "expected ',' or ']'"),
        ("seed: 1\nseed: 2\n", 2, "key 'seed' is given twice (first on line 1)"),
        ("critics:\n  discount: 1\n  hidden: [8]\n  discount: 0\n", 4, "'discount' is given twice"),
        ("seed: 1\n 2: 3\n", 2, "mapping values are not allowed"),
        ("1: 3\n", 1, "a key must be text, got 1"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases are not supported"),
        ("seed: !!python/object/apply:os.getcwd []\n", 1, "python/object/apply:os.getcwd"),
        ("seed: !!timestamp 2020-01-01\n", 1, "timestamp"),
        ("seed: 1\n---\nseed: 2\n", 2, "but found another document"),
        ("seed: @x\n", 1, "'@' that cannot start any token"),
    ],
)
def test_a_malformed_file_is_one_line_with_file_and_line_number(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    path = write(tmp_path / "bad.yaml", text)
    message = file_mistake(path)
    assert message.startswith(f"{path}:{line}: not valid YAML: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe\x00seed", "not UTF-8 text"),
        (b"seed: \x07\n", "not valid YAML"),
        (b"- 1\n- 2\n", "a configuration file holds keys, got [1, 2]"),
        (b"just text\n", 'a configuration file holds keys, got "just text"'),
        (b"seed: " + b"9" * 5000, "not valid YAML: Exceeds the limit"),
        (b"seed: " + b"[" * 5000, "not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_holds_no_keys_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = file_mistake(path)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config([write(tmp_path / "a.yaml", "# only a comment\n")]) == ExperimentConfig()


def test_a_cycle_of_base_files_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    message = file_mistake(tmp_path / "a.yaml")
    assert f"cycle: {tmp_path}/a.yaml -> {tmp_path}/b.yaml -> {tmp_path}/a.yaml" in message


@pytest.mark.parametrize("base", ["3", "[1]", "{a: b}", "null"])
def test_a_base_that_is_no_file_name_is_refused(tmp_path: Path, base: str) -> None:
    path = write(tmp_path / "a.yaml", f"base: {base}\n")
    assert f"{path}: base must be a file name or a list of file names" in file_mistake(path)


def test_a_missing_base_names_the_file_that_wants_it(tmp_path: Path) -> None:
    write(tmp_path / "common.yaml", "")
    path = write(tmp_path / "a.yaml", "base: comon.yaml\n")
    expected = f"{path}: no file {tmp_path}/comon.yaml; did you mean {tmp_path}/common.yaml?"
    assert file_mistake(path) == expected


def test_a_missing_file_offers_the_nearest_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "point_goal.yaml", "")
    wanted, near = tmp_path / "point_gaol.yaml", tmp_path / "point_goal.yaml"
    expected = f"command line: no file {wanted}; did you mean {near}?"
    assert file_mistake(wanted) == expected


def test_a_directory_is_no_configuration_file(tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory" in file_mistake(tmp_path)


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="'sac_lagg' is neither a file nor a preset; did you mean"
    ):
        load_config(["sac_lagg"])
    with pytest.raises(ConfigError, match="the presets are algd, algd_calibrated, algd_fast"):
        load_config(["zzzzzz"])


def test_a_dotted_key_in_a_file_is_shown_nested(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "policy.schedule.num_train_timesteps: 5\n")
    nested = "policy: {schedule: {num_train_timesteps: 5}}"
    assert f"is not a key, got 5; in a file groups are nested: {nested}" in file_mistake(path)
    path = write(tmp_path / "b.yaml", "policy: {schedule.num_train_timesteps: 5}\n")
    nested = "schedule: {num_train_timesteps: 5}"
    assert f"got 5; in a file groups are nested: {nested}" in file_mistake(path)


# ---- mistakes: the key, what is allowed, the value got, the source


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sede": 1}, "sede is not a key, got 1; did you mean seed?"),
        (
            {"critics.hiden": [64]},
            "critics.hiden is not a key, got [64]; did you mean critics.hidden?",
        ),
        ({"cost_limit": 3}, "cost_limit is not a key, got 3; did you mean constraint.cost_limit?"),
        (
            {"constraint.zzz": None},
            "constraint.zzz is not a key, got null; the keys of constraint are cost_limit, "
            "augmented, penalty_coef, unit, hinge, calibration_rate",
        ),
        (
            {"multiplier.learning_rat": 1.0},
            "multiplier.learning_rat is not a key of multiplier.kind statewise_alam, got 1.0; "
            "did you mean multiplier.learning_rate?",
        ),
        (
            {"multiplier.integral_gain": 1},
            "multiplier.integral_gain is not a key of multiplier.kind statewise_alam, got 1; "
            "it belongs to scalar_pid",
        ),
        (
            {"multiplier.kind": "pid"},
            "multiplier.kind must be one of fixed, scalar_dual, scalar_pid, scalar_adrc, "
            'statewise_dual, statewise_alam, got "pid"; did you mean scalar_pid?',
        ),
        (
            {"multiplier.kind": ["fixed"]},
            "multiplier.kind must be one of fixed, scalar_dual, scalar_pid, scalar_adrc, "
            'statewise_dual, statewise_alam, got ["fixed"]',
        ),
        (
            {"policy.kind": "gausian"},
            'policy.kind must be one of diffusion, release, gaussian, cvpo, got "gausian"; '
            "did you mean gaussian?",
        ),
        (
            {"policy": "gaussian"},
            'policy must be a group of keys, got "gaussian"; write policy.kind to choose one of '
            "diffusion, release, gaussian, cvpo",
        ),
        ({"critics": None}, "critics must be a group of keys, got null"),
        ({"seed": "3"}, 'seed must be a whole number, got "3"'),
        ({"seed": True}, "seed must be a whole number, got true"),
        ({"seed": None}, "seed must be a whole number, got null"),
        ({"seed": 3.0}, "seed must be a whole number, got 3.0 (write 3)"),
        ({"seed": 3.5}, "seed must be a whole number, got 3.5"),
        ({"seed": -1}, "seed must be in [0, 4294967295], got -1"),
        ({"critics.discount": "0.9"}, 'critics.discount must be a finite number, got "0.9"'),
        ({"critics.discount": True}, "critics.discount must be a finite number, got true"),
        ({"critics.discount": 1.5}, "critics.discount must be in [0, 1], got 1.5"),
        ({"critics.discount": math.nan}, "critics.discount must be a finite number, got nan"),
        (
            {"constraint.cost_limit": math.inf},
            "constraint.cost_limit must be a finite number, got inf",
        ),
        (
            {"policy.base_std": -math.inf},
            "policy.base_std must be a finite number or null, got -inf",
        ),
        (
            {"critics.hidden": [8, math.nan]},
            "critics.hidden must be a list, each item a whole number, got [8, NaN]",
        ),
        (
            {"critics.hidden": [64, "64"]},
            'critics.hidden must be a list, each item a whole number, got [64, "64"]',
        ),
        (
            {"preset": "algd"},
            'preset is not a key, got "algd"; a preset or file to build on is named by base',
        ),
        ({"critics.hidden": 64}, "critics.hidden must be a list, each item a whole number, got 64"),
        ({"critics.hidden": []}, "critics.hidden must be one or more positive widths, got ()"),
        (
            {"critics.cost_target": "discount"},
            'critics.cost_target must be one of "discounted", "reachability", got "discount"; '
            "did you mean discounted?",
        ),
        (
            {
                "constraint.calibration_rate": 0.1,
                "constraint.augmented": False,
                "multiplier.kind": "scalar_pid",
                "multiplier.signal": "episode",
            },
            "constraint.calibration_rate needs what reads the threshold: constraint.augmented: "
            "true, or a multiplier that learns from the cost critics; got multiplier.kind "
            "'scalar_pid' with signal 'episode'",
        ),
        (
            {"train.initial_steps": 30},
            "train.initial_updates_per_step and initial_steps go together, got null and 30",
        ),
        (
            {"train.initial_updates_per_step": 2.0},
            "train.initial_updates_per_step and initial_steps go together, got 2.0 and 0",
        ),
        (
            {"constraint.calibration_rate": 0.1, "critics.cost_target": "reachability"},
            "constraint.calibration_rate needs critics.cost_target: discounted; "
            "a reachability critic has the threshold 0",
        ),
        (
            {
                "multiplier.kind": "scalar_dual",
                "multiplier.signal": "episode",
                "critics.cost_target": "reachability",
            },
            "multiplier.signal: episode needs critics.cost_target: discounted; reachability bounds "
            "the risk of every state, which the costs of episodes do not measure",
        ),
        (
            {"constraint.hinge": "batch"},
            "constraint.hinge: batch needs policy.kind: gaussian; it weighs costs by the mean of "
            "the policy's own actions, where a denoising policy asks for those of proposals and "
            "cvpo has no penalty, got 'diffusion'",
        ),
        (
            {
                "policy.kind": "cvpo",
                "multiplier.kind": "fixed",
                "constraint.augmented": False,
                "constraint.hinge": "batch",
            },
            "constraint.hinge: batch needs policy.kind: gaussian; it weighs costs by the mean of "
            "the policy's own actions, where a denoising policy asks for those of proposals and "
            "cvpo has no penalty, got 'cvpo'",
        ),
        (
            {"constraint.augmented": "no"},
            'constraint.augmented must be true or false, got "no"',
        ),
        ({"constraint.augmented": 1}, "constraint.augmented must be true or false, got 1"),
        (
            {"policy.kind": "gaussian", "policy.entropy_coef": "autoo"},
            'policy.entropy_coef must be a finite number or "auto", got "autoo"; '
            "did you mean auto?",
        ),
        (
            {"policy.schedule.kind": "vp", "policy.schedule.sampler": "euler_sde"},
            "policy.schedule.sampler 'euler_sde' needs kind 've', got kind 'vp'",
        ),
        (
            {"multiplier.kind": "scalar_dual", "multiplier.parameterization": "log"},
            "multiplier.initial_value must be > 0 with parameterization 'log', got 0.0 "
            "(the released code starts at 0.6931)",
        ),
        ({"env.num_envs": 0}, "env.num_envs must be >= 1, got 0"),
        ({"env.cost_fn": "f"}, "env.cost_fn must read \"module:function\", got 'f'"),
        ({"env.kwargs": [1]}, "env.kwargs must be a mapping, got [1]"),
        ({"seed": "\ud800"}, "seed holds characters that are not valid text"),
        ({"env.kwargs.x": {"y": "\udcff"}}, "env.kwargs holds characters that are not valid text"),
    ],
)
def test_a_mistake_is_one_line_naming_key_allowed_got_and_source(
    overrides: dict[str, Any], message: str
) -> None:
    assert mistake(overrides) == f"command line: {message}"


def test_the_dual_of_cvpo_reads_a_calibrated_threshold() -> None:
    assert load_config(["cvpo"], {"constraint.calibration_rate": 0.1}).policy.kind == "cvpo"


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "critics: {discount: 1.5}\n")
    assert file_mistake(path) == f"{path}: critics.discount must be in [0, 1], got 1.5"


def test_a_contradiction_between_two_sources_names_both(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "policy: {schedule: {sampler: euler_sde}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([path], {"policy.schedule.kind": "vp"})
    assert str(caught.value).startswith(f"command line and {path}: policy.schedule.sampler")


def test_a_long_value_is_shortened() -> None:
    message = mistake({"seed": "x" * 1000})
    assert message.endswith("x...")
    assert len(message) < 150


@pytest.mark.parametrize("key", ["", ".", "seed.", ".seed", "a..b"])
def test_a_key_with_an_empty_part_is_refused(key: str) -> None:
    assert "is not a key; write group.key" in mistake({key: 1})


def test_a_key_below_a_value_is_refused() -> None:
    assert mistake({"seed": 1, "seed.x": 2}) == "command line: seed.x and seed are both given"
    assert "seed must be a whole number" in mistake({"seed.x": 2})


def test_every_key_refuses_a_value_of_no_type_and_names_itself() -> None:
    """No key anywhere is forgotten by the validation."""
    for kind_of in ("policy", "multiplier"):
        annotation = field_types(ExperimentConfig)[kind_of]
        for member in get_args(get_args(annotation)[0]):
            for key in all_keys(member, (kind_of,)):
                dotted = ".".join(key)
                if key[1:] == ("kind",):
                    continue
                message = mistake({f"{kind_of}.kind": member().kind, dotted: {"no": "such"}})
                assert message.startswith(f"command line: {dotted} must be ")
    for key in all_keys(ExperimentConfig):
        if key[0] in ("policy", "multiplier") or key == ("env", "kwargs"):
            continue
        message = mistake({".".join(key): {"no": "such"}})
        assert message.startswith(f"command line: {'.'.join(key)} must be ")


# ---- round trips

_WIDTHS = st.lists(st.integers(1, 512), min_size=1, max_size=3)
_POSITIVE = st.floats(1e-12, 1e12)
_UNIT = st.floats(0.0, 1.0)
_OPEN_UNIT = st.floats(1e-9, 1.0, exclude_max=True)
_COMMON = {
    "seed": st.integers(0, 2**32 - 1),
    "env.id": st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1),
    "env.kwargs": st.dictionaries(st.text("abc_", min_size=1), _SCALARS, max_size=3),
    "env.cost_fn": st.sampled_from([None, "package.module:function"]),
    "env.max_episode_steps": st.none() | st.integers(1, 10**6),
    "critics.hidden": _WIDTHS,
    "critics.discount": _UNIT,
    "critics.cost_target": st.sampled_from(["discounted", "reachability"]),
    "critics.learning_rate": _POSITIVE,
    "constraint.cost_limit": st.floats(0.0, 1e9) | st.integers(0, 10**9),
    "constraint.augmented": st.booleans(),
    "constraint.penalty_coef": _POSITIVE,
    "train.total_steps": st.integers(1, 10**12),
    "tracking.tags": st.lists(st.sampled_from(["1e5", "off", "~", "a b", "#x"]), max_size=3),
}
_POLICIES = {
    "diffusion": {
        "policy.hidden": _WIDTHS,
        "policy.schedule.sigma_max": st.floats(1.0, 1e6),
        "policy.temperature.value": _POSITIVE,
        "policy.base_std": st.none() | _POSITIVE,
        "policy.chain_steps": st.none() | st.integers(1, 9),
    },
    "release": {"policy.variant": st.sampled_from(["vesde", "ddpm"]), "policy.hidden": _WIDTHS},
    "gaussian": {
        "policy.entropy_coef": st.just("auto") | st.floats(0.0, 10.0),
        "policy.target_entropy": st.none() | st.floats(-100.0, 100.0),
    },
}
_MULTIPLIER_KEYS = {
    "fixed": {"multiplier.value": st.floats(0.0, 1e6)},
    "scalar_dual": {"multiplier.learning_rate": _POSITIVE},
    "scalar_pid": {"multiplier.integral_gain": _POSITIVE},
    "scalar_adrc": {"multiplier.observer_bandwidth": _OPEN_UNIT},
    "statewise_dual": {"multiplier.hidden": _WIDTHS},
    "statewise_alam": {"multiplier.penalty_coef": st.none() | _POSITIVE},
}


@st.composite
def valid_overrides(draw: st.DrawFn) -> dict[str, Any]:
    policy = draw(st.sampled_from(sorted(_POLICIES)))
    multiplier = draw(st.sampled_from(sorted(_MULTIPLIER_KEYS)))
    choices = _COMMON | _POLICIES[policy] | _MULTIPLIER_KEYS[multiplier]
    chosen = draw(st.fixed_dictionaries({}, optional=choices))
    return {"policy.kind": policy, "multiplier.kind": multiplier, **chosen}


@settings(max_examples=60, deadline=None)
@given(valid_overrides())
def test_loading_a_dump_gives_exactly_the_same_configuration(overrides: dict[str, Any]) -> None:
    config = load_config([], overrides)
    text = dump_yaml(config)
    again = config_from_dict(parse_yaml(text, "dump"))
    assert again == config
    assert repr(again) == repr(config)
    assert dump_yaml(again) == text
    assert config_from_dict(to_dict(config)) == config


def test_a_dump_holds_every_key() -> None:
    def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for key, value in tree.items():
            nested = isinstance(value, dict) and (*path, key) != ("env", "kwargs")
            found |= leaves(value, (*path, key)) if nested else {(*path, key)}
        return found

    config = ExperimentConfig()
    dumped = leaves(parse_yaml(dump_yaml(config), "dump"))
    expected = set(all_keys(type(config.policy), ("policy",)))
    expected |= set(all_keys(type(config.multiplier), ("multiplier",)))
    expected |= {
        key for key in all_keys(ExperimentConfig) if key[0] not in ("policy", "multiplier")
    }
    assert dumped == expected


def test_whole_numbers_serve_as_numbers_and_lists_as_tuples() -> None:
    config = load_config([], {"constraint.cost_limit": 10, "critics.hidden": [32, 16]})
    assert (config.constraint.cost_limit, config.critics.hidden) == (10.0, (32, 16))
    assert isinstance(config.constraint.cost_limit, float)


def test_infinity_is_kept_where_keys_are_free() -> None:
    config = load_config([], {"env.kwargs.bound": math.inf})
    assert config_from_dict(parse_yaml(dump_yaml(config), "dump")).env.kwargs == {"bound": math.inf}


# ---- presets and agents


def test_every_preset_loads_dumps_and_has_a_comment() -> None:
    presets = list_presets()
    assert len(presets) >= 12
    for name, comment in presets.items():
        config = load_config([name])
        assert config_from_dict(parse_yaml(dump_yaml(config), name)) == config
        assert 20 < len(comment) < 110, name


def test_the_default_preset_is_the_default() -> None:
    plain = ExperimentConfig()
    as_it_acts = replace(plain.evaluation, mode="stochastic")
    assert load_config(["algd"]) == replace(plain, evaluation=as_it_acts)


@pytest.mark.parametrize(
    ("name", "policy", "multiplier", "augmented"),
    [
        ("algd_point_goal", "diffusion", "statewise_alam", True),
        ("algd_fast", "diffusion", "statewise_alam", True),
        ("algd_scalar", "diffusion", "scalar_dual", True),
        ("algd_plain", "diffusion", "statewise_alam", False),
        ("sac_alam", "gaussian", "statewise_alam", True),
        ("sac", "gaussian", "fixed", False),
        ("sac_lag", "gaussian", "scalar_dual", False),
        ("sac_pid", "gaussian", "scalar_pid", False),
        ("sac_adrc", "gaussian", "scalar_adrc", False),
        ("fac", "gaussian", "statewise_dual", False),
    ],
)
def test_presets_name_their_method(
    name: str, policy: str, multiplier: str, augmented: bool
) -> None:
    config = load_config([name])
    got = (config.policy.kind, config.multiplier.kind, config.constraint.augmented)
    assert got == (policy, multiplier, augmented)


def test_fac_has_its_published_dual_settings() -> None:
    tree = to_dict(load_config(["fac"]))["multiplier"]
    assert (tree["learning_rate"], tree["interval"], tree["signal"]) == (5e-6, 12, "replay")
    assert tree["output"] == "softplus"


def test_sac_is_unconstrained() -> None:
    tree = to_dict(load_config(["sac"]))
    assert tree["multiplier"]["value"] == 0.0
    assert tree["constraint"]["augmented"] is False


def test_a_preset_is_found_by_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(["sac"]).policy.kind == "gaussian"
    write(tmp_path / "sac", "seed: 77\n")
    assert load_config(["sac"]).seed == 77
    assert load_config([presets_dir() / "sac.yaml"]).policy.kind == "gaussian"


def test_presets_of_one_method_can_be_combined() -> None:
    config = load_config(["algd_plain", "algd_scalar"])
    assert (config.constraint.augmented, config.multiplier.kind) == (False, "scalar_dual")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        # Augmentation would stay off, the Gaussian policy as well, and the label say algd.
        (["sac_lag", "algd"], "sac_lag and algd are presets of different methods"),
        (["algd_scalar", "sac_alam"], "algd_scalar and sac_alam are presets of different methods"),
        (["algd_plain", "algd"], "algd is a part of what is given before it"),
        (["sac", "sac"], "sac is a part of what is given before it"),
    ],
)
def test_presets_that_would_mix_under_one_name_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(names)


def test_a_preset_goes_over_a_file_of_another_method(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "policy: {kind: gaussian, entropy_coef: 0.5}\n")
    config = load_config([mine, "algd"])
    assert (config.policy.kind, config.multiplier.kind) == ("diffusion", "statewise_alam")


def test_a_file_may_have_a_preset_as_base(tmp_path: Path) -> None:
    config = load_config([write(tmp_path / "mine.yaml", "base: sac_pid\nseed: 4\n")])
    assert (config.multiplier.kind, config.seed) == ("scalar_pid", 4)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("policy", ["diffusion", "release", "gaussian"])
def test_every_policy_goes_with_every_multiplier(policy: str, multiplier: str) -> None:
    config = load_config(
        [],
        {"policy.kind": policy, "multiplier.kind": multiplier, "policy.hidden": [8], "seed": 11},
    )
    agent = make_agent(config, obs_dim=3, action_dim=2, episode_length=100, device="cpu")
    assert isinstance(agent, SACAgent if policy == "gaussian" else ALGDAgent)
    assert agent.multiplier.config.kind == multiplier or agent.multiplier.law_config.kind
    assert agent.generator.initial_seed() == 11


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        config = load_config(["sac"], {"seed": seed, "policy.hidden": [8]})
        agent = make_agent(config, obs_dim=3, action_dim=2, episode_length=10, device="cpu")
        return torch.cat([p.detach().flatten() for p in agent.policy.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# ---- the reference


def test_the_reference_lists_every_key_with_type_and_default() -> None:
    text = wrapped(stored_reference(), 100)
    for key in all_keys(ExperimentConfig):
        assert f"--{'.'.join(key)}  " in text, key
    flat = " ".join(text.split())
    assert "--critics.num_cost_critics a whole number (default 4)" in flat
    assert '--constraint.hinge one of "sample", "batch" (default "sample")' in flat
    assert "--multiplier.kind one of fixed, scalar_dual, scalar_pid" in flat
    assert "multiplier, with --multiplier.kind=scalar_pid: PID control" in flat
    assert "budget of undiscounted cost per episode" in flat
    assert "Environments stepped together, at least 1." in flat
    assert max(map(len, text.splitlines())) <= 100


def test_the_stored_reference_is_that_of_the_configuration() -> None:
    """After a change: python -m algd.experiments.reference."""
    assert stored_reference() == config_reference(ExperimentConfig)


@dataclass(frozen=True)
class _Documented:
    """A group.

    a: first thing. b, c: two
        things; d: the last.

    Some prose: with a colon.
    """

    a: int = 0
    b: float = 0.5
    c: str | None = None
    d: tuple[int, ...] = ()
    e: dict[str, Any] = field(default_factory=dict)
    """Said below the field."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


def test_field_descriptions_are_read_where_they_are_declared() -> None:
    assert field_docs(_Documented) == {
        "a": "first thing.",
        "b": "b, c: two things",
        "c": "b, c: two things",
        "d": "the last.",
        "e": "Said below the field.",
    }
    text = wrapped(config_reference(_Documented), 80)
    assert "--c  text or null  (default null)" in text


def test_types_are_described_in_words() -> None:
    words = {name: describe_type(kind) for name, kind in field_types(_Documented).items()}
    assert words == {
        "a": "a whole number",
        "b": "a finite number",
        "c": "text or null",
        "d": "a list, each item a whole number",
        "e": "a mapping",
    }
    assert (show(1e-05), show("a"), show(None), show([1, 2])) == ("1e-05", '"a"', "null", "[1, 2]")


def test_every_configuration_class_forbids_unknown_keys_and_has_a_kind_where_united() -> None:
    classes = {DiffusionPolicyConfig, ReleasePolicyConfig, GaussianPolicyConfig}
    classes |= set(get_args(MultiplierConfig))
    for cls in classes:
        assert cls.__pydantic_config__ == {"extra": "forbid"}
        assert fields(cls)[0].name == "kind"


def undescribed(cls: type, prefix: str = "") -> list[str]:
    docs, missing = field_docs(cls), []
    for name, annotation in field_types(cls).items():
        if kinds := variants(annotation):
            for kind, member in kinds.items():
                missing += undescribed(member, f"{prefix}{name}[{kind}].")
        elif is_dataclass_type(annotation):
            missing += undescribed(annotation, f"{prefix}{name}.")
        elif name not in docs and name != "kind":
            missing.append(prefix + name)
    return missing


def test_every_configuration_key_is_described() -> None:
    assert undescribed(ExperimentConfig) == []
