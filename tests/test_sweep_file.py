"""Sweep files: W&B's format, read as W&B reads it, and one line for what cannot be used.

``wandb_sweeps/schema.json`` is the schema of W&B's sweep engine, package sweeps 0.3.0 (MIT licence,
beside it), file sweeps/config/schema.json, unchanged. wandb itself ships none, and that package
needs numpy < 2, so it cannot be installed here.
"""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

from algd.errors import ConfigError
from algd.experiments.arguments import load_overridden, split_overrides
from algd.experiments.cli import main
from algd.experiments.config import ExperimentConfig
from algd.experiments.sweep_file import read_sweep_file
from algd.experiments.sweep_parameters import read_parameter
from algd.experiments.sweep_plan import SweepPlan, plan_sweep, seeds_of
from algd.experiments.yaml_files import write_yaml
from algd.training.tracking import TrackingConfig

ROOT = Path(__file__).parents[1]
SCHEMA = Path(__file__).parent / "wandb_sweeps" / "schema.json"
BENCHMARK = ROOT / "configs" / "benchmark" / "safety_gymnasium.yaml"
EXAMPLES = [*sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), BENCHMARK]
COMMAND = ["algd", "train", "sac_alam", "--env.id=AnalyticBandit1-v0", "${args}"]
GRID: dict[str, Any] = {
    "method": "grid",
    "command": COMMAND,
    "parameters": {"constraint.penalty_coef": {"values": [0.1, 1.0]}, "seed": {"values": [3, 4]}},
}


def write(directory: Path, tree: dict[str, Any]) -> Path:
    path = directory / "my_sweep.yaml"
    path.write_text(write_yaml(tree))
    return path


def refused(directory: Path, **changes: Any) -> str:
    """Return the message for GRID with changes; None removes a key."""
    tree = {key: value for key, value in (GRID | changes).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        plan(directory, tree)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{directory / 'my_sweep.yaml'}: ")


def plan(directory: Path, tree: dict[str, Any]) -> SweepPlan:
    file = read_sweep_file(write(directory, tree))
    return plan_sweep(file, directory, seeds=seeds_of(file) or [0])


# ---- the same file for W&B


def wandb_violations(tree: Any) -> list[str]:
    checker = jsonschema.FormatChecker()
    checker.checks("float")(lambda value: isinstance(value, float))
    checker.checks("integer")(lambda value: isinstance(value, int))
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft7Validator(schema, format_checker=checker)
    return [error.message for error in validator.iter_errors(tree)]


def test_the_stored_schema_is_that_of_sweeps_0_3_0() -> None:
    digest = hashlib.sha256(SCHEMA.read_bytes()).hexdigest()
    assert digest == "c5976c858506ed6a78c3841c1a762b8e5fcff6e8ce9aff306175d7273651cbd9"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_shipped_sweeps_satisfy_the_schema_of_wandb(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert wandb_violations(tree) == []
    assert wandb_violations(tree | {"parameter": {}}) != []
    read_sweep_file(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_trial_is_what_an_agent_of_wandb_would_run(path: Path, tmp_path: Path) -> None:
    """W&B's own code turns the command and a point of the grid into a command line."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    tree = yaml.safe_load(path.read_text())  # as W&B reads it
    file = read_sweep_file(path)
    plan = plan_sweep(file, tmp_path, seeds=seeds_of(file) or [0])
    for trial in plan.trials:
        point = {**plan.settings[trial.setting].values, "seed": trial.seed}
        sent = create_sweep_command_args({"args": nested(tree["parameters"], point)})
        words = [w for word in tree["command"] for w in replaced(word, sent, tree["program"])]
        start = words.index("algd")
        assert words[start : start + 2] == ["algd", "train"]
        assert without_tracking(train_config(words[start + 2 :])) == without_tracking(trial.config)


def nested(parameters: dict[str, Any], point: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a point as W&B's server sends it: groups as mappings, values under "value"."""

    def value(name: str, fields: dict[str, Any], prefix: str) -> Any:
        if "parameters" in fields:
            below = fields["parameters"].items()
            return {key: value(key, inner, f"{prefix}{name}.") for key, inner in below}
        return point[f"{prefix}{name}"]

    return {name: {"value": value(name, fields, prefix)} for name, fields in parameters.items()}


def replaced(word: str, sent: dict[str, Any], program: str) -> list[str]:
    macros = {"${args}": sent["args"], "${env}": ["/usr/bin/env"], "${program}": [program]}
    return macros.get(word, [word])


def train_config(words: list[str]) -> ExperimentConfig:
    configs, overrides = split_overrides(words)
    return load_overridden(configs, overrides)


def without_tracking(config: ExperimentConfig) -> ExperimentConfig:
    """Leave out group and tags, which W&B sets itself."""
    return dataclasses.replace(config, tracking=TrackingConfig())


def test_a_null_of_wandb_is_null() -> None:
    assert train_config(["sac_alam", "--multiplier.penalty_coef=None"]).multiplier == (
        train_config(["sac_alam", "--multiplier.penalty_coef=null"]).multiplier
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: {min: 1e-4, max: 1.0}", 'a.min: 0.0001 is "1e-4" for W&B, which reads YAML 1.1'),
        ("a: {value: off}", 'a.value: "off" is false for W&B'),
        ("a: {values: [on, x]}", 'a.values: "on" is true for W&B'),
    ],
)
def test_what_wandb_reads_differently_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"method: grid\ncommand: [algd, train, sac, '${{args}}']\nparameters: {{{text}}}"
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep_file(path)
    assert f"parameters.{says}" in str(caught.value)


def test_a_number_that_wandb_takes_for_text_is_no_harm_among_values(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "method: grid\ncommand: [algd, train, sac, '${args}']\n"
        "parameters: {critics.learning_rate: {values: [1e-4, 3e-4]}}"
    )
    file = read_sweep_file(path)
    trials = plan_sweep(file, tmp_path, seeds=[0]).trials
    assert [trial.config.critics.learning_rate for trial in trials] == [1e-4, 3e-4]


# ---- trials


def test_a_grid_holds_every_setting_with_every_seed_once(tmp_path: Path) -> None:
    tree = GRID | {
        "parameters": {
            "constraint.penalty_coef": {"values": [0.1, 1.0]},
            "multiplier": {"parameters": {"dual_steps": {"min": 1, "max": 2}}},
            "train.batch_size": {"value": 32},
            "seed": {"values": [7, 8, 9]},
        }
    }
    trials = plan(tmp_path, tree).trials
    found = [
        (t.config.constraint.penalty_coef, t.config.multiplier.dual_steps, t.config.seed)  # type: ignore[union-attr]
        for t in trials
    ]
    assert len(found) == len(set(found)) == 12
    assert found[:4] == [(0.1, 1, 7), (0.1, 2, 7), (1.0, 1, 7), (1.0, 2, 7)]
    assert {t.config.train.batch_size for t in trials} == {32}
    groups = [t.config.tracking.group for t in trials]
    assert groups[:4] == groups[4:8] == groups[8:]  # the seeds of a setting share one
    assert groups[1] == "my_sweep: penalty_coef=0.1, dual_steps=2"
    assert len(set(groups)) == 4
    assert {t.config.tracking.tags for t in trials} == {("my_sweep",)}
    assert len({t.run_dir for t in trials}) == 12
    assert trials[0].name.startswith("penalty_coef=0.1,dual_steps=1,s7-")


def test_names_of_run_directories_follow_from_the_arguments_alone(tmp_path: Path) -> None:
    names = {trial.name for trial in plan(tmp_path, GRID).trials}
    wider = GRID | {
        "name": "other",
        "parameters": {
            "seed": {"values": [4, 3, 5]},
            "constraint.penalty_coef": {"values": [2.0, 1.0, 0.1]},
        },
    }
    assert names < {trial.name for trial in plan(tmp_path, wider).trials}
    other = GRID | {"command": [*COMMAND[:-1], "--train.batch_size=8", "${args}"]}
    assert names.isdisjoint(trial.name for trial in plan(tmp_path, other).trials)


def test_a_part_of_a_grid_holds_trials_of_the_whole_under_their_names(tmp_path: Path) -> None:
    path = write(tmp_path, GRID)
    file = read_sweep_file(path)
    whole = plan_sweep(file, tmp_path, seeds=[3, 4])
    part = plan_sweep(file, tmp_path, seeds=[3, 4], only={"constraint.penalty_coef": ["1.0"]})
    kept = {t.name for t in whole.trials if t.config.constraint.penalty_coef == 1.0}
    assert {trial.name for trial in part.trials} == kept
    assert 0 < len(kept) < len(whole.trials)
    assert {trial.setting for trial in part.trials} == set(range(len(part.settings)))


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ({"constraint.penalty": ["1.0"]}, "has no parameter 'constraint.penalty'; it varies"),
        ({"seed": ["3"]}, "seeds are chosen by --seeds N"),
        ({"constraint.penalty_coef": ["7"]}, "constraint.penalty_coef must be one of 0.1, 1.0"),
    ],
)
def test_a_part_that_is_not_there_is_one_line(
    tmp_path: Path, only: dict[str, list[str]], says: str
) -> None:
    file = read_sweep_file(write(tmp_path, GRID))
    with pytest.raises(ConfigError, match=re.escape(says)):
        plan_sweep(file, tmp_path, seeds=[3], only=only)


def test_a_sweep_varies_the_preset(tmp_path: Path) -> None:
    command = ["algd", "train", "--env.id=AnalyticBandit1-v0", "${args}"]
    tree = GRID | {"command": command, "parameters": {"base": {"values": ["sac_lag", "fac"]}}}
    first, second = plan(tmp_path, tree).trials
    assert first.config.multiplier.kind == "scalar_dual"
    assert second.config.multiplier.kind == "statewise_dual"
    assert first.name.startswith("base=sac_lag,")


def test_groups_too_long_for_wandb_are_cut_and_stay_apart(tmp_path: Path) -> None:
    tree = GRID | {
        "name": "x" * 150,
        "parameters": {"seed": {"value": 0}, "train.batch_size": {"values": [8, 16]}},
    }
    first, second = (t.config.tracking.group for t in plan(tmp_path, tree).trials)
    assert first is not None
    assert second is not None
    assert len(first) == len(second) == 128
    assert first != second


def test_what_file_and_command_say_of_tracking_wins(tmp_path: Path) -> None:
    tree = GRID | {
        "project": "mine",
        "command": [*COMMAND[:-1], "--tracking.group=ours", "${args}"],
    }
    tracking = plan(tmp_path, tree).trials[0].config.tracking
    assert (tracking.project, tracking.group, tracking.tags) == ("mine", "ours", ("my_sweep",))


def test_random_settings_repeat_and_grow_with_run_cap(tmp_path: Path) -> None:
    tree = {
        "method": "random",
        "run_cap": 4,
        "command": COMMAND,
        "parameters": {"constraint.penalty_coef": {"min": 0.1, "max": 2.0}},
    }
    few = [s.values for s in plan(tmp_path, tree).settings]
    again = [s.values for s in plan(tmp_path, tree).settings]
    more = [s.values for s in plan(tmp_path, tree | {"run_cap": 6}).settings]
    assert few == again == more[:4]
    assert len({s["constraint.penalty_coef"] for s in more}) == 6
    other = tree | {"parameters": {"constraint.penalty_coef": {"min": 0.1, "max": 3.0}}}
    assert [s.values for s in plan(tmp_path, other).settings] != few


def test_a_grid_stops_at_run_cap(tmp_path: Path) -> None:
    assert len(plan(tmp_path, GRID | {"run_cap": 1}).settings) == 1


# ---- distributions


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"value": 3}, [3]),
        ({"values": [1, "a", None]}, [1, "a", None]),
        ({"min": 2, "max": 5}, [2, 3, 4, 5]),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, [0, 0.25, 0.5, 0.75]),
        ({"min": 0.0, "max": 1.0}, None),
        ({"distribution": "normal"}, None),
        ({"values": [1, 2], "probabilities": [0.5, 0.5]}, None),
    ],
)
def test_a_grid_lists_what_wandb_lists(fields: dict[str, Any], values: list[Any] | None) -> None:
    assert read_parameter("x", fields, "x").grid() == values


@pytest.mark.parametrize(
    ("fields", "median", "spread"),
    [
        ({"min": 1.0, "max": 3.0}, 2.0, (1.2, 2.8)),
        ({"distribution": "log_uniform", "min": 0.0, "max": 2.0}, math.e, (1.221, 6.050)),
        ({"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}, 0.1, (0.0158, 0.631)),
        ({"distribution": "inv_log_uniform", "min": 0.0, "max": 2.0}, 1 / math.e, (0.1653, 0.8187)),
        ({"distribution": "inv_log_uniform_values", "min": 0.01, "max": 1}, 0.1, (0.0158, 0.631)),
        ({"distribution": "normal", "mu": 5, "sigma": 2}, 5.0, (2.437, 7.563)),
        ({"distribution": "log_normal", "mu": 1.0}, math.e, (0.7546, 9.792)),
        (
            {"distribution": "beta", "a": 2, "b": 1},
            math.sqrt(0.5),
            (math.sqrt(0.1), math.sqrt(0.9)),
        ),
    ],
    ids=lambda value: value.get("distribution", "uniform") if isinstance(value, dict) else None,
)
def test_draws_have_the_quantiles_of_their_law(
    fields: dict[str, Any], median: float, spread: tuple[float, float]
) -> None:
    """Median, tenth and ninetieth percentile in closed form."""
    parameter = read_parameter("x", fields, "x")
    random = np.random.default_rng(0)
    draws = [parameter.draw(random) for _ in range(20_000)]
    np.testing.assert_allclose(np.quantile(draws, 0.5), median, rtol=0.05)
    np.testing.assert_allclose(np.quantile(draws, [0.1, 0.9]), spread, rtol=0.06)


def test_discrete_draws_have_their_probabilities() -> None:
    random = np.random.default_rng(0)
    weighted = read_parameter("x", {"values": ["a", "b"], "probabilities": [0.2, 0.8]}, "x")
    share = np.mean([weighted.draw(random) == "b" for _ in range(5_000)])
    assert abs(share - 0.8) < 0.02
    whole = read_parameter("x", {"min": 1, "max": 3}, "x")
    assert {whole.draw(random) for _ in range(100)} == {1, 2, 3}
    steps = read_parameter("x", {"distribution": "q_normal", "sigma": 3.0, "q": 2}, "x")
    assert all(value % 2 == 0 and type(value) is int for value in map(steps.draw, [random] * 50))


# ---- bad input: one line each


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parametres": {}}, "parametres is not a key of a sweep file, got {}; did you mean param"),
        ({"method": "bayes"}, 'method must be grid or random, got "bayes"; bayes needs W&B'),
        ({"method": None}, "method must be grid or random, got null"),
        ({"method": "random"}, "method random needs run_cap"),
        ({"run_cap": 0}, "run_cap must be a whole number >= 1, got 0"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate works with W&B's server"),
        ({"metric": {"goal": "maximize"}}, "metric must hold name and goal"),
        ({"metric": {"name": "a", "goal": "max"}}, "metric.goal must be minimize or maximize"),
        ({"metric": {"name": "a", "gaol": "x"}}, "metric.gaol is not a key"),
        ({"name": ""}, 'name must be text, got ""'),
        ({"parameters": None}, "parameters must name what varies"),
        ({"parameters": {}}, "parameters must name what varies"),
        ({"command": None}, "command is missing; write command: [algd, train"),
        ({"command": ["python", "train.py", "${args}"]}, "command must run `algd train`"),
        ({"command": ["algd", "train", "sac"]}, "command must hold ${args} once"),
        ({"command": ["algd", "train", "${args}"]}, "command names no preset or file"),
        ({"command": [*COMMAND, "${args_json}"]}, "command holds ${args_json}"),
        ({"command": [*COMMAND, "--run-dir=x"]}, "command must leave out --run-dir=x"),
        ({"command": [*COMMAND, "--seed=7"]}, "leave out --seed: list seeds under parameters.seed"),
        ({"command": [*COMMAND, "${envvar:NO_SUCH}"]}, "command: the variable NO_SUCH is not set"),
        (
            {"command": ["algd", "train", "sacc", "${args}"]},
            "'sacc' is neither a file nor a preset",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_file_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in refused(tmp_path, **changes)


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        (0.1, "must hold value, values or min and max, got 0.1; write x: {value: 0.1}"),
        ({}, "a parameter needs value, values, min and max, or nested parameters, got {}"),
        ({"values": []}, "values is empty, so the sweep has no trial"),
        ({"values": 3}, "values must be a list, got 3"),
        ({"values": [1, 2, 1]}, "values holds 1 twice"),
        ({"values": [1, 1.0]}, "values holds 1.0 twice"),
        ({"values": [1], "value": 1}, "values is not a field of constant; did you mean value?"),
        ({"min": 1, "max": 2.0}, "min and max must both be whole numbers or both have a decimal"),
        ({"min": 3, "max": 2}, "min must be < max, got 3 and 2"),
        ({"min": 1}, "a parameter needs value, values, min and max"),
        ({"min": 0, "max": 10**9}, "lists more than 100000 values"),
        ({"distribution": "unifrom", "min": 0.0, "max": 1.0}, "did you mean uniform"),
        ({"distribution": "uniform", "min": 0.0}, "uniform needs max"),
        ({"distribution": "log_uniform_values", "min": 0.0, "max": 1.0}, "must be > 0, got 0.0"),
        ({"distribution": "normal", "sigma": -1.0}, "sigma must be >= 0, got -1.0"),
        ({"distribution": "q_normal", "q": 0}, "q must be > 0, got 0"),
        ({"distribution": "normal", "mu": "a"}, 'mu must be a finite number, got "a"'),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "must be one per value with sum 1"),
        ({"min": 0.0, "max": 1.0}, "a grid cannot list the values of uniform"),
        ({"parameters": {}}, "parameters must stand alone and name parameters"),
        ({"values": [1]}, "x is not a key"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_one_line(tmp_path: Path, parameter: Any, says: str) -> None:
    assert says in refused(tmp_path, parameters={"x": parameter})


def test_a_value_that_the_configuration_refuses_stops_the_sweep_before_it_starts(
    tmp_path: Path,
) -> None:
    message = refused(tmp_path, parameters={"train.batch_size": {"values": [16, 0]}})
    assert "batch_size must be >= 1, got 0" in message


def test_a_key_given_nested_and_dotted_is_refused(tmp_path: Path) -> None:
    twice = {
        "train.batch_size": {"value": 1},
        "train": {"parameters": {"batch_size": {"value": 2}}},
    }
    assert "train.batch_size is given twice, nested and with dots" in refused(
        tmp_path, parameters=twice
    )


def test_a_seed_without_listed_values_is_refused(tmp_path: Path) -> None:
    seed = {"seed": {"min": 0.0, "max": 9.0}}
    assert "parameters.seed must list its values" in refused(
        tmp_path, method="random", run_cap=2, parameters=seed
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.yaml"], "nowhere.yaml: cannot be read: No such file or directory"),
        ([], "the following arguments are required: FILE"),
        (["x.yaml", "--address=a"], "--address goes with --on ray"),
        (["x.yaml", "--only=a"], "must be KEY=VALUE, got 'a'"),
        (["x.yaml", "--seeds=0"], "must be a whole number >= 1, got '0'"),
        (["x.yaml", "--retries=-1"], "must be a whole number >= 0, got '-1'"),
        (["x.yaml", "--on=slurm"], "invalid choice: 'slurm'"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]
