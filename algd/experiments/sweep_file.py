"""Sweep files: W&B's own format, as far as a sweep without W&B's server goes.

In: a YAML file that `wandb sweep` takes as well. Out: a validated ``SweepFile``. A command that
runs `algd train` stands for the configuration that all trials share. What only W&B's server can do
(bayes, early_terminate) is refused by name rather than passed over.

The format: https://docs.wandb.ai/models/sweeps/define-sweep-configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from algd.errors import ConfigError
from algd.experiments.schema import did_you_mean, nearest, show
from algd.experiments.sweep_command import TrainCommand, read_command
from algd.experiments.sweep_parameters import Parameter, read_parameter
from algd.experiments.yaml_files import parse_yaml, read_utf8

Goal = Literal["minimize", "maximize"]

_METHODS = ("grid", "random")
_GOALS = ("minimize", "maximize")
_KEYS = (
    "name",
    "description",
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "run_cap",
    "project",
    "entity",
)
# W&B's bookkeeping, without a meaning here.
_IGNORED = ("apiVersion", "kind", "controller")
_SERVER_ONLY = ("early_terminate", "scheduler", "metrics", "job", "image_uri")
_MAX_DEPTH = 8


@dataclass(frozen=True)
class Metric:
    """The name under which runs log what is looked for, and whether low or high is good."""

    name: str
    goal: Goal


@dataclass(frozen=True)
class SweepFile:
    """A sweep, as its file describes it.

    path: of the file. name: of the sweep; W&B groups its runs under it.
    command: what all trials share. parameters: by dotted key of the configuration, in file order.
    metric: None where the file names none. run_cap: settings at most.
    tracking: where W&B files the runs: ``project`` and ``entity``, if given.
    """

    path: Path
    name: str
    command: TrainCommand
    method: Literal["grid", "random"]
    parameters: Mapping[str, Parameter]
    metric: Metric | None
    run_cap: int | None
    tracking: Mapping[str, str]


def read_sweep_file(path: Path) -> SweepFile:
    """Return the sweep of a file.

    Raises:
        ConfigError: one line that names the file, the key, what is allowed and what came.
    """
    tree = _read_tree(path)
    source = str(path)
    _require_known_keys(tree, source)
    method = tree.get("method")
    if method not in _METHODS:
        raise ConfigError(
            f"{source}: method must be {' or '.join(_METHODS)}, got {show(method)}"
            + ("; bayes needs W&B's server (wandb sweep)" if method == "bayes" else "")
        )
    run_cap = tree.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise ConfigError(f"{source}: run_cap must be a whole number >= 1, got {show(run_cap)}")
    if method == "random" and run_cap is None:
        raise ConfigError(f"{source}: method random needs run_cap: how many settings to draw")
    parameters = _read_parameters(tree.get("parameters"), source)
    if method == "grid":
        _require_listable(parameters, source)
    program = _text(tree, "program", source) or "algd"
    return SweepFile(
        path=path,
        name=_text(tree, "name", source) or path.stem,
        command=read_command(
            tree.get("command"), program, source, varies_base="base" in parameters
        ),
        method=method,
        parameters=parameters,
        metric=_read_metric(tree.get("metric"), source),
        run_cap=run_cap,
        tracking={key: text for key in ("project", "entity") if (text := _text(tree, key, source))},
    )


def _read_tree(path: Path) -> dict[str, Any]:
    text = read_utf8(path)
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{path}: a sweep file holds keys, got {show(tree)}")
    _require_same_for_wandb(tree, yaml.safe_load(text), (), str(path))
    return tree


def _require_same_for_wandb(ours: Any, theirs: Any, key: tuple[str, ...], source: str) -> None:
    """Refuse what W&B, which reads YAML 1.1, would take for something else: 3e-4, off, 1_000.

    Text that it makes of a number is no harm among values: both write it on a command line.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict) and list(ours) == list(theirs):
        for name, value in ours.items():
            _require_same_for_wandb(value, theirs[name], (*key, name), source)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for value, other in zip(ours, theirs, strict=True):
            _require_same_for_wandb(value, other, key, source)
    elif type(ours) is not type(theirs) or ours != theirs:
        if key and key[-1] in ("value", "values") and isinstance(theirs, str):
            return
        hint = "write 3.0e-4 for 3e-4" if isinstance(theirs, str) else "put text into quotes"
        raise ConfigError(
            f"{source}: {'.'.join(key) or 'the file'}: {show(ours)} is {show(theirs)} for W&B, "
            f"which reads YAML 1.1; {hint}"
        )


def _require_known_keys(tree: Mapping[str, Any], source: str) -> None:
    for key, value in tree.items():
        if key in _SERVER_ONLY:
            raise ConfigError(
                f"{source}: {key} works with W&B's server only; leave it out or use `wandb sweep`"
            )
        if key not in _KEYS and key not in _IGNORED:
            hint = did_you_mean(nearest(key, _KEYS)) or f"; the keys are {', '.join(_KEYS)}"
            raise ConfigError(
                f"{source}: {key} is not a key of a sweep file, got {show(value)}{hint}"
            )


def _text(tree: Mapping[str, Any], key: str, source: str) -> str | None:
    value = tree.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ConfigError(f"{source}: {key} must be text, got {show(value)}")
    return value


def _read_metric(given: Any, source: str) -> Metric | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ConfigError(f"{source}: metric must hold name and goal, got {show(given)}")
    unknown = [key for key in given if key not in ("name", "goal")]
    if unknown:
        raise ConfigError(f"{source}: metric.{unknown[0]} is not a key; metric holds name and goal")
    goal = given.get("goal", "minimize")  # W&B's default
    if goal not in _GOALS:
        raise ConfigError(f"{source}: metric.goal must be {' or '.join(_GOALS)}, got {show(goal)}")
    return Metric(given["name"], goal)


def _read_parameters(given: Any, source: str) -> dict[str, Parameter]:
    if not isinstance(given, dict) or not given:
        raise ConfigError(
            f"{source}: parameters must name what varies, as in parameters: "
            f"{{seed: {{values: [0, 1]}}}}, got {show(given)}"
        )
    parameters: dict[str, Parameter] = {}
    _collect(given, (), parameters, f"{source}: parameters")
    return parameters


def _collect(
    given: Mapping[str, Any], group: tuple[str, ...], found: dict[str, Parameter], source: str
) -> None:
    """Add the parameters of a group; nested groups join their names with dots."""
    for name, fields in given.items():
        path = (*group, name)
        here = f"{source}.{name}"
        key = ".".join(path)
        if not isinstance(fields, dict):
            word = "values" if isinstance(fields, list) else "value"
            raise ConfigError(
                f"{here} must hold value, values or min and max, got {show(fields)}; "
                f"write {name}: {{{word}: {show(fields)}}}"
            )
        if "parameters" in fields:
            below = fields["parameters"]
            if len(fields) > 1 or not isinstance(below, dict) or not below:
                raise ConfigError(f"{here}: parameters must stand alone and name parameters")
            if len(path) > _MAX_DEPTH:
                raise ConfigError(f"{here}: nested too deeply")
            _collect(below, path, found, f"{here}.parameters")
        elif key in found:
            raise ConfigError(f"{here}: {key} is given twice, nested and with dots")
        else:
            found[key] = read_parameter(key, fields, here)


def _require_listable(parameters: Mapping[str, Parameter], source: str) -> None:
    for key, parameter in parameters.items():
        if parameter.grid() is None:
            raise ConfigError(
                f"{source}: parameters.{key}: a grid cannot list the values of "
                f"{parameter.distribution}; write values, or use method: random"
            )
