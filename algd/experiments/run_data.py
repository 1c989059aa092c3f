"""Read run directories back: configuration and recorded rows as typed records.

In: paths of run directories, or of directories that hold some. Out: one ``RunData`` per run, and
one line for each directory that cannot be read. A run that has lost its metrics.csv, or of which
W&B's own directory is all there is, is read from W&B's files. Imports no torch: reading 30 runs
takes a second.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algd.errors import ConfigError, UserError
from algd.experiments.config_values import flatten
from algd.experiments.wandb_runs import is_offline_run, offline_directories, read_offline_run
from algd.experiments.yaml_files import parse_yaml
from algd.training.csv_table import STEP
from algd.training.run_directory import CONFIG_FILE, is_run_dir

METRICS_FILE = "metrics.csv"
EPISODES_FILE = "episodes.csv"
TIMING_FILE = "timing.csv"
_DEEPEST = 4  # levels searched below a directory that is no run itself
_BOOLEANS = {"True": 1.0, "False": 0.0}
_MOST_STEPS = 2.0**53
_MOST_REASONS = 3


class Series(NamedTuple):
    """The recorded values of one column, (N,) each: environment steps, never falling, and values.

    Rows without a value are left out; a recorded NaN stays.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class RunData:
    """What one run directory holds.

    path: the directory. name: tells it from the runs read with it; printable.
    config: the resolved configuration by dotted key.
    metrics: rows of metrics.csv and timing.csv by name. episodes: rows of episodes.csv by name.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Series]
    episodes: Mapping[str, Series]

    @property
    def env_id(self) -> str:
        """Return the id of the environment."""
        return self.config["env.id"]

    @property
    def seed(self) -> int:
        """Return the seed of the run."""
        return self.config["seed"]

    @property
    def cost_limit(self) -> float:
        """Return the budget of undiscounted cost per episode."""
        return float(self.config["constraint.cost_limit"])

    @property
    def total_steps(self) -> int:
        """Return how many environment steps the run was to take."""
        return self.config["train.total_steps"]

    @property
    def last_step(self) -> int:
        """Return the newest environment step that was recorded."""
        return max((int(series.steps[-1]) for series in self.metrics.values()), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether it took its last step and was evaluated there."""
        evaluated = self.metrics.get("eval/cost")
        steps = () if evaluated is None else evaluated.steps
        return len(steps) > 0 and int(steps[-1]) >= self.total_steps


class RunSet(NamedTuple):
    """Runs that could be read, and a line for each directory that could not."""

    runs: list[RunData]
    skipped: list[str]


class _UnreadableRunError(Exception):
    """Why a run directory is skipped."""


def read_runs(paths: Iterable[Path]) -> RunSet:
    """Read run directories, and those below directories that are none themselves.

    A directory named twice is read once. What a kill left unfinished, a last row without its line
    end, is passed over; whatever else is wrong makes the run skipped, with a line that says why.

    Raises:
        UserError: a path does not exist.
    """
    directories, skipped = find_run_dirs(paths)
    names = _names(directories)
    runs: list[RunData] = []
    for directory, name in zip(directories, names, strict=True):
        try:
            runs.append(_read_run(directory, name))
        except _UnreadableRunError as error:
            skipped.append(f"skipped {printable(str(directory))}: {error}")
    return RunSet(runs, skipped)


def require_runs(paths: Iterable[Path]) -> RunSet:
    """Read run directories of which at least one must be readable.

    Raises:
        UserError: none is; the message repeats the reasons.
    """
    found = read_runs(paths)
    if not found.runs:
        reasons = found.skipped[:_MOST_REASONS]
        more = len(found.skipped) - len(reasons)
        raise UserError("; ".join(["no run", *reasons, *([f"and {more} more"] if more else [])]))
    return found


def find_run_dirs(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Return run directories in the order given, and lines about paths without any."""
    found: dict[Path, Path] = {}
    skipped: list[str] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; expected the directory of a run")
        here = list(_search(path)) if path.is_dir() else []
        if not here:
            skipped.append(f"skipped {printable(str(path))}: holds no run")
        for directory in here:
            found.setdefault(directory.resolve(), directory)
    return list(found.values()), skipped


def printable(text: str) -> str:
    """Return text that neither moves a terminal's cursor nor breaks UTF-8."""
    decoded = os.fsencode(text).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in decoded)


def _search(directory: Path, depth: int = 0) -> Iterable[Path]:
    if _holds_run(directory):
        yield directory
    elif depth < _DEEPEST:
        try:
            below = sorted(path for path in directory.iterdir() if path.is_dir())
        except OSError:
            return
        for path in below:
            if path.name.startswith("."):
                continue
            if not path.is_symlink():
                yield from _search(path, depth + 1)
            elif _holds_run(path):  # of other links it is not known where they end
                yield path


def _holds_run(directory: Path) -> bool:
    return (
        is_run_dir(directory) or (directory / METRICS_FILE).is_file() or is_offline_run(directory)
    )


def _names(directories: Sequence[Path]) -> list[str]:
    """Return the shortest paths that tell the directories apart from their common parent."""
    resolved = [directory.resolve() for directory in directories]
    if not resolved:
        return []
    common = Path(os.path.commonpath([path.parent for path in resolved]))
    return [printable(str(path.relative_to(common))) for path in resolved]


def _read_run(directory: Path, name: str) -> RunData:
    if is_offline_run(directory):
        return _read_offline(directory, name, [directory])
    offline = [] if (directory / METRICS_FILE).exists() else offline_directories(directory)
    if offline:
        return _read_offline(directory, name, offline)
    config = _read_config(directory / CONFIG_FILE)
    metrics = read_table(directory / METRICS_FILE)
    timing = read_table(directory / TIMING_FILE)
    episodes = read_table(directory / EPISODES_FILE)
    if not metrics:
        raise _UnreadableRunError(f"{METRICS_FILE} holds no row yet")
    return RunData(directory, name, config, {**timing, **metrics}, episodes)


def _read_offline(directory: Path, name: str, offline: Sequence[Path]) -> RunData:
    """Read what W&B has of a run."""
    try:
        run = read_offline_run(offline)
    except ValueError as error:
        raise _UnreadableRunError(str(error)) from error
    if not run.rows:
        raise _UnreadableRunError("W&B has no row of it")
    config = _checked(flatten(run.config), "the configuration that W&B has")
    return RunData(directory, name, config, _series(run.rows), _series(run.episodes))


def _series(rows: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    columns: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != STEP:
                columns.setdefault(printable(name), []).append((row[STEP], value))
    arrays = {name: np.array(pairs).T for name, pairs in columns.items()}
    return {name: Series(pair[0].astype(np.int64), pair[1]) for name, pair in arrays.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(_read_text(path), CONFIG_FILE)
    except ConfigError as error:
        raise _UnreadableRunError(str(error)) from error
    if tree is None:
        raise _UnreadableRunError(f"{CONFIG_FILE} is missing or empty")
    if not isinstance(tree, dict):
        raise _UnreadableRunError(f"{CONFIG_FILE} holds no keys")
    return _checked(flatten(tree), CONFIG_FILE)


def _checked(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a configuration that has the keys every reader of runs needs."""
    limit = config.get("constraint.cost_limit")
    is_limit = isinstance(limit, int | float) and math.isfinite(limit) and limit >= 0
    needed = [
        ("env.id", isinstance(config.get("env.id"), str), "text"),
        ("seed", type(config.get("seed")) is int, "a whole number"),
        ("train.total_steps", type(config.get("train.total_steps")) is int, "a whole number"),
        ("constraint.cost_limit", is_limit, "a number >= 0"),
    ]
    for key, holds, wanted in needed:
        if not holds:
            got = config.get(key, "nothing")
            raise _UnreadableRunError(f"{source}: {key} must be {wanted}, got {got!r}")
    try:  # what cannot be written anywhere
        json.dumps(config, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise _UnreadableRunError(f"{source} holds text that is no Unicode: {error}") from error
    return config


def read_table(path: Path) -> dict[str, Series]:
    """Return the columns of a CSV file; nothing where the file does not exist."""
    text = _read_text(path)
    # Without its line end the last row is one that is just being written, or that a kill cut off.
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]), strict=True)
    try:
        header, *rows = list(lines) or [[]]
    except csv.Error as error:
        raise _UnreadableRunError(f"{path.name}: {error}") from error
    if not header:
        return {}
    if STEP not in header or len(set(header)) < len(header):
        raise _UnreadableRunError(f"{path.name}: the first line must name each column once, {STEP}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise _UnreadableRunError(
                f"{path.name}:{number}: {len(row)} fields in a row, expected {len(header)}"
            )
    if not rows:
        return {}
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    steps = _numbers(path, STEP, columns.pop(STEP))
    in_order = np.diff(steps, prepend=0.0) >= 0
    if not (in_order & (steps <= _MOST_STEPS)).all():  # false for NaN, too
        raise _UnreadableRunError(f"{path.name}: {STEP} must be counts that never fall")
    table = {}
    for name, texts in columns.items():
        present = np.array([text != "" for text in texts])
        if present.any():
            values = _numbers(path, name, [text for text in texts if text])
            table[printable(name)] = Series(steps[present].astype(np.int64), values)
    return table


def _numbers(path: Path, name: str, texts: Sequence[str]) -> np.ndarray:
    try:
        return np.array([_BOOLEANS[text] if text in _BOOLEANS else float(text) for text in texts])
    except ValueError as error:
        raise _UnreadableRunError(f"{path.name}: {name}: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise _UnreadableRunError(f"{path.name}: not UTF-8 text") from error
    except OSError as error:
        raise _UnreadableRunError(f"{path.name}: cannot be read: {error.strerror}") from error
