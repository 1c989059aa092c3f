"""Random configurations: valid ones train, invalid ones are one clear line, and nothing else."""

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from faults.tiny_runs import TINY
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from algd.errors import ConfigError, DivergenceError
from algd.experiments.config import ExperimentConfig, load_config
from algd.experiments.schema import variants
from algd.training.trainer import train

# Values that are allowed, edges included, for what is neither a choice among names nor a switch.
ALLOWED: dict[str, list[Any]] = {
    "seed": [0, 7, 2**32 - 1],
    "env.id": ["AnalyticCorridor-v0", "AnalyticBandit1-v0", "AnalyticFinite-v0"],
    "env.num_envs": [1, 2, 3],
    "env.max_episode_steps": [None, 1, 7],
    "policy.hidden": [[4], [8, 8]],
    "critics.hidden": [[4], [8, 8]],
    "multiplier.hidden": [[4], [8, 8]],
    "policy.schedule.num_train_timesteps": [2, 3, 5],
    "policy.schedule.num_inference_steps": [None, 2],
    "policy.schedule.sigma_min": [0.01, 0.05],
    "policy.schedule.sigma_max": [1.0, 2.0],
    "policy.temperature.value": [1e-3, 0.1, 10.0],
    "policy.temperature.probe_states": [1, 4],
    "policy.temperature.probe_actions": [2, 4],
    "policy.temperature.target_entropy": [None, -2.0],
    "policy.embedding_dim": [4, 16],
    "policy.chain_coef": [0.0, 1.0],
    "policy.chain_steps": [None, 0, 1],
    "policy.score_coef": [0.1, 1.0],
    "policy.num_score_samples": [2, 4],
    "policy.base_std": [None, 0.5],
    "policy.score_batch_size": [None, 4],
    "policy.replay_fraction": [0.0, 0.5, 1.0],
    "policy.candidates": [1, 3],
    "policy.update_interval": [1, 2],
    "policy.num_timesteps": [2, 5],
    "policy.learning_rate": [1e-4, 1e-2],
    "policy.entropy_coef": ["auto", 0.0, 0.2],
    "policy.target_entropy": [None, -1.0],
    "critics.num_cost_critics": [1, 2, 4],
    "critics.cost_pessimism": [-0.5, 0.0, 1.0],
    "critics.bootstrap_pessimism": [None, 0.0, 0.5],
    "critics.discount": [0.0, 0.9, 1.0],
    "critics.cost_discount": [0.0, 0.9, 1.0],
    "critics.learning_rate": [1e-4, 1e-2],
    "critics.target_update_rate": [0.005, 1.0],
    "critics.target_update_interval": [1, 3],
    "constraint.cost_limit": [0.0, 0.5, 25.0],
    "constraint.penalty_coef": [0.1, 10.0],
    "multiplier.value": [0.0, 3.0],
    "multiplier.learning_rate": [1e-4, 0.1],
    "multiplier.interval": [1, 5],
    "multiplier.multiplier_max": [0.1, 100.0],
    "multiplier.dual_target_rate": [0.01, 1.0],
    "multiplier.dual_target_interval": [1, 10],
    "multiplier.dual_steps": [1, 2],
    "multiplier.penalty_coef": [None, 2.0],
    "train.learning_starts": [0, 20, 100],
    "train.batch_size": [1, 8],
    "train.buffer_size": [1, 20, 1000],
    "train.updates_per_step": [0.0, 0.3, 1.0, 2.0],
    "train.initial_updates_per_step": [None, 0.0, 2.0],
    "train.initial_steps": [0, 30],
    "train.reward_scale": [0.1, 10.0],
    "train.tail_share": [None, 0.1],
    "train.log_interval": [1, 13],
    "train.checkpoint_interval": [7, 100],
    "train.keep_checkpoints": [1, 3],
    "evaluation.interval": [11, 50],
    "evaluation.episodes": [1, 2],
}
FIXED = {"train.total_steps": 50, "env.vector": "sync", "train.device": "cpu"}
KEPT = ("tracking", "env.fast", "evaluation.video", "env.vector", "train.device")


def choices(cls: type, prefix: str = "") -> dict[str, list[Any]]:
    """Return the allowed values of every key of a group that a random configuration varies."""
    found: dict[str, list[Any]] = {}
    for name, kind in get_type_hints(cls, include_extras=False).items():
        key = f"{prefix}{name}"
        if name.startswith("__") or key.startswith(KEPT) or name == "kind":
            continue
        if key in ALLOWED:
            found[key] = ALLOWED[key]
        elif kind is bool:
            found[key] = [False, True]
        elif get_origin(kind) is Literal:
            found[key] = list(get_args(kind))
        elif dataclasses.is_dataclass(kind):
            found |= choices(kind, f"{key}.")
    return found


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a policy, a multiplier, and up to eight more keys."""
    hints = get_type_hints(ExperimentConfig)
    groups: dict[str, type] = {}
    drawn: dict[str, Any] = {}
    for group, kind in hints.items():
        members = variants(kind)
        if members:
            drawn[f"{group}.kind"] = draw(st.sampled_from(sorted(members)))
            groups[group] = members[drawn[f"{group}.kind"]]
        elif dataclasses.is_dataclass(kind):
            groups[group] = kind
    found: dict[str, list[Any]] = {"seed": ALLOWED["seed"]}
    for group, kind in groups.items():
        found |= choices(kind, f"{group}.")
    for key in draw(st.lists(st.sampled_from(sorted(found)), max_size=8, unique=True)):
        drawn[key] = draw(st.sampled_from(found[key]))
    if drawn.get("train.tail_share") is not None:
        drawn["train.normalize_obs"] = True  # refused without
    small = {key: [8] for key in found if key.endswith(".hidden")}
    base = {k: v for k, v in TINY.items() if k.split(".")[0] not in ("policy", "multiplier")}
    return base | small | drawn | FIXED


def check_trains(changes: dict[str, Any]) -> None:
    said = ""
    try:
        config = load_config([], changes)
        with tempfile.TemporaryDirectory() as directory:
            train(config, Path(directory) / "run")
    except ConfigError as error:  # two keys that exclude each other
        said = str(error)
    except DivergenceError as error:  # a learning rate of 0.1 may
        said = str(error)
        assert "not finite at step" in said, said
    assert "\n" not in said


SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "database": None,
}


@settings(max_examples=12, **SETTINGS)
@given(overrides())
def test_a_random_configuration_trains_50_steps(changes: dict[str, Any]) -> None:
    check_trains(changes)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=500, **SETTINGS)
@given(overrides())
def test_500_random_configurations_train_50_steps(changes: dict[str, Any]) -> None:
    check_trains(changes)


# ---- invalid ones


def all_keys() -> dict[str, Any]:
    """Return every key with its declared type."""
    found: dict[str, Any] = {}

    def walk(cls: type, prefix: str) -> None:
        for name, kind in get_type_hints(cls, include_extras=False).items():
            if name.startswith("__"):
                continue
            members = list(variants(kind).values()) or [kind]
            for member in members:
                if dataclasses.is_dataclass(member):
                    walk(member, f"{prefix}{name}.")
                else:
                    found[f"{prefix}{name}"] = kind

    walk(ExperimentConfig, "")
    return found


KEYS = all_keys()
NUMBERS = [key for key, kind in KEYS.items() if float in (kind, *get_args(kind))]
WHOLE = [
    key for key, kind in KEYS.items() if int in (kind, *get_args(kind)) and key != "env.kwargs"
]
NEVER_A_NUMBER = ["x", [[1]], {"a": 1}, True, float("nan")]


@st.composite
def invalid(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an override that no configuration may accept."""
    how = draw(st.sampled_from(["unknown", "not_a_number", "fraction", "negative", "typo"]))
    if how == "unknown":
        group = draw(st.sampled_from(["", "env.", "train.", "critics.", "constraint."]))
        return {group + draw(st.text("abcdefgh_", min_size=9, max_size=12)): 1}
    if how == "typo":
        key = draw(st.sampled_from(sorted(KEYS)))
        cut = draw(st.integers(len(key) - 3, len(key) - 1))
        changed = key[:cut] + key[cut + 1 :] + "q"
        assume(changed not in KEYS)
        return {changed: 1}
    if how == "fraction":
        return {draw(st.sampled_from(sorted(WHOLE))): draw(st.sampled_from([1.5, "1", 1e300]))}
    if how == "negative":
        group = ["train.", "evaluation.", "env.num", "critics.num", "critics.learning"]
        keys = [k for k in [*WHOLE, *NUMBERS] if k.startswith(tuple(group))]
        return {draw(st.sampled_from(sorted(keys))): draw(st.sampled_from([-1, -(10**12)]))}
    key = draw(st.sampled_from(sorted({*NUMBERS, *WHOLE})))
    return {key: draw(st.sampled_from(NEVER_A_NUMBER))}


KINDS = list(itertools.product(("diffusion", "release", "gaussian"), ("scalar_pid", "fixed")))


@settings(max_examples=500, **SETTINGS)
@given(invalid(), st.sampled_from(KINDS))
def test_500_invalid_configurations_are_one_line_each(
    changes: dict[str, Any], kinds: tuple[str, str]
) -> None:
    (key,) = changes
    with pytest.raises(ConfigError) as refused:
        load_config([], {"policy.kind": kinds[0], "multiplier.kind": kinds[1]} | changes)
    message = str(refused.value)
    assert "\n" not in message
    assert key.rpartition(".")[2] in message
