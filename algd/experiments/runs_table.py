"""The runs under some directories as a table for the terminal.

In: runs, filters, a column to sort by. Out: rows of text, or one line about what cannot be asked.
Imports no torch, so that the answer comes at once.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import NamedTuple

from algd.errors import ConfigError
from algd.experiments.config_values import shown
from algd.experiments.run_data import RunData
from algd.experiments.schema import did_you_mean, nearest
from algd.experiments.text_table import aligned
from algd.training.run_lock import writer_of

COLUMNS = ("run", "env", "agent", "seed", "step", "return", "cost", "state")
_RIGHT = frozenset(COLUMNS.index(name) for name in ("seed", "step", "return", "cost"))
# Short names of the table for what runs record.
_METRICS = {"return": "eval/return", "cost": "eval/cost"}
_STATES = ("running", "finished", "crashed")
_TEXTS = ("run", "env", "agent", "seed", "state")


class Filter(NamedTuple):
    """A column of the table or a configuration key, and the text it must match (*, ?, [...])."""

    key: str
    pattern: str


def parse_filter(text: str) -> Filter:
    """Return the filter that "key=value" stands for; ValueError otherwise."""
    key, equals, pattern = text.partition("=")
    if not key or not equals:
        raise ValueError(f"must read KEY=VALUE, got {text!r}")
    return Filter(key, pattern)


def state_of(run: RunData) -> str:
    """Return ``running`` while a process writes the run, else ``finished`` or ``crashed``.

    A run that was stopped before its last step counts as crashed: both are continued alike.
    """
    if writer_of(run.path) is not None:
        return "running"
    return "finished" if run.is_finished else "crashed"


def agent_of(run: RunData) -> str:
    """Return the kinds of policy and multiplier: "gaussian statewise_alam"."""
    return f"{run.config.get('policy.kind', '?')} {run.config.get('multiplier.kind', '?')}"


def select_runs(runs: Sequence[RunData], filters: Sequence[Filter]) -> list[RunData]:
    """Return the runs that match every filter.

    Raises:
        ConfigError: a key that neither the table nor any run has.
    """
    keys = {*_TEXTS, *(key for run in runs for key in run.config)}
    for wanted in filters:
        if wanted.key not in keys:
            near = nearest(wanted.key, keys) or nearest(wanted.key.rpartition(".")[2], keys)
            hint = did_you_mean(near) or f"; the columns are {', '.join(_TEXTS)}"
            raise ConfigError(f"--filter: {wanted.key} is not a key of any run{hint}")
        if wanted.key == "state" and not fnmatch.filter(_STATES, wanted.pattern):
            raise ConfigError(
                f"--filter: state must be one of {', '.join(_STATES)}, got {wanted.pattern!r}"
            )
    return [run for run in runs if all(_matches(run, wanted) for wanted in filters)]


def sort_runs(runs: Sequence[RunData], key: str, *, descending: bool) -> list[RunData]:
    """Return the runs by a column of the table or by the last value of a metric.

    Runs without a value come last.

    Raises:
        ConfigError: a metric that no run has logged.
    """
    if key in _TEXTS and key != "seed":
        return sorted(runs, key=lambda run: _text(run, key), reverse=descending)
    logged = {name for run in runs for name in run.metrics}
    name = _METRICS.get(key, key)
    if name not in logged and key not in ("seed", "step"):
        near = nearest(key, [*COLUMNS, *logged])
        hint = did_you_mean(near) or f"; the columns are {', '.join(COLUMNS)}"
        raise ConfigError(f"--sort: {key} is logged by no run{hint}")
    numbers = {run.path: _number(run, name) for run in runs}
    sign = -1.0 if descending else 1.0
    known = [run for run in runs if not math.isnan(numbers[run.path])]
    unknown = [run for run in runs if math.isnan(numbers[run.path])]
    return sorted(known, key=lambda run: sign * numbers[run.path]) + unknown


def table_of(runs: Sequence[RunData]) -> str:
    """Return the table, one line per run below the header."""
    rows = [
        (
            *(_text(run, name) for name in COLUMNS[:4]),
            f"{run.last_step}/{run.total_steps}",
            *(_shown_number(_number(run, name)) for name in _METRICS.values()),
            state_of(run),
        )
        for run in runs
    ]
    return "\n".join(aligned([COLUMNS, *rows], right=_RIGHT))


def _matches(run: RunData, wanted: Filter) -> bool:
    """Compare as text, and as numbers where both are: 25 matches 25.0."""
    value = _text(run, wanted.key) if wanted.key in _TEXTS else shown(run.config, wanted.key)
    if fnmatch.fnmatchcase(value, wanted.pattern):
        return True
    try:
        return float(value) == float(wanted.pattern)
    except ValueError:
        return False


def _text(run: RunData, name: str) -> str:
    if name == "state":
        return state_of(run)
    texts = {"run": run.name, "env": run.env_id, "agent": agent_of(run), "seed": str(run.seed)}
    return texts[name]


def _number(run: RunData, name: str) -> float:
    if name == "seed":
        return float(run.seed)
    if name == "step":
        return float(run.last_step)
    return float(run.metrics[name].values[-1]) if name in run.metrics else math.nan


def _shown_number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
