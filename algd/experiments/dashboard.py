"""What the dashboard shows, as plain data: `algd dashboard`.

In: run directories. Out: a mapping that JSON can hold; nothing in it is markup, and values that
look like secrets are left out. Curves are thinned so that many runs make a small page.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from algd.experiments.compare import (
    ALL_ENVIRONMENTS,
    compare,
    summarise_run,
    why_not_summarised,
)
from algd.experiments.compare_groups import (
    ENVIRONMENT,
    Group,
    drop_repeated,
    group_runs,
    keys_inside_environments,
)
from algd.experiments.compare_tables import headings_and_cells
from algd.experiments.config_values import shown
from algd.experiments.dashboard_media import MediaFile, find_media
from algd.experiments.run_data import RunData, RunSet, Series, find_run_dirs

# Of the page's megabytes the curves may take eight, at 16 characters a point.
_MOST_POINTS = 500_000
_MOST_POINTS_PER_CURVE = 500
_DIGITS = 5
_NEVER = "never"

SourceOf = Callable[[MediaFile], str | None]


def dashboard_data(found: RunSet, source_of: SourceOf) -> dict[str, Any]:
    """Return all that the page shows.

    Args:
        found: runs, at least one, and lines about directories that were skipped.
        source_of: gives the address of a picture or video; None leaves it out.
    """
    runs = found.runs
    groups = group_runs(runs, [ENVIRONMENT])
    labels = {run.path: group.label for group in groups for run in group.runs}
    headings, rows = _group_table(groups)
    curves = max(1, sum(len(run.metrics) for run in runs))
    points = max(2, min(_MOST_POINTS_PER_CURVE, _MOST_POINTS // curves))
    names = sorted({name for run in runs for name in run.metrics})
    return {
        "runs": [_run(run, labels[run.path], points, source_of) for run in runs],
        "groups": rows,
        "group_headings": headings,
        "differing": keys_inside_environments(runs),
        "metrics": names,
        "skipped": found.skipped,
        "live": False,
    }


def _run(run: RunData, label: str, points: int, source_of: SourceOf) -> dict[str, Any]:
    problem = why_not_summarised(run)
    steps, series = _curves(run, points)
    media = find_media(run.path)
    return {
        "name": run.name,
        "env": run.env_id,
        "group": label,
        "seed": run.seed,
        "limit": run.cost_limit,
        "total": run.total_steps,
        "last": run.last_step,
        "problem": problem,
        "summary": None if problem else _summary(run),
        "config": {key: shown(run.config, key) for key in run.config},
        "steps": steps,
        "series": series,
        "pictures": _sources(media.pictures, source_of),
        "videos": _sources(media.videos, source_of),
    }


def _sources(files: Sequence[MediaFile], source_of: SourceOf) -> list[dict[str, str]]:
    named = [(file.name, source_of(file)) for file in files]
    return [{"name": name, "src": source} for name, source in named if source is not None]


def _summary(run: RunData) -> dict[str, Any]:
    values = vars(summarise_run(run)).items()
    return {name: value if isinstance(value, bool) else _number(value) for name, value in values}


def _curves(run: RunData, points: int) -> tuple[list[list[int]], dict[str, tuple[int, list[Any]]]]:
    """Return lists of steps, and for each metric the number of its list and its values."""
    lists: list[list[int]] = []
    numbers: dict[bytes, int] = {}
    series = {}
    for name, curve in run.metrics.items():
        steps, values = thinned(curve, points)
        number = numbers.setdefault(steps.tobytes(), len(lists))
        if number == len(lists):
            lists.append(steps.tolist())
        finite = [value if math.isfinite(value) else math.nan for value in values.tolist()]
        series[name] = (number, [_number(value) for value in finite])
    return lists, series


def thinned(curve: Series, points: int) -> Series:
    """Return at most ``points`` points of a curve: ends, and lows and highs of equal stretches.

    A spike stays, which means would hide. Points that are not finite stay only in curves that are
    short enough as they are.
    """
    if len(curve.steps) <= points:
        return curve
    inner = np.arange(1, len(curve.steps) - 1)
    count = max(1, (points - 2) // 2)
    longer = len(inner) % count  # the first stretches have one point more than the others
    border = longer * (len(inner) // count + 1)
    keep = [np.array([0, len(curve.steps) - 1])]
    for part, rows in ((inner[:border], longer), (inner[border:], count - longer)):
        if not len(part):
            continue
        stretches = part.reshape(rows, -1)
        values = curve.values[stretches]
        finite = np.isfinite(values)
        stretches, values, finite = (x[finite.any(1)] for x in (stretches, values, finite))
        row = np.arange(len(stretches))
        keep += [
            stretches[row, np.where(finite, values, np.inf).argmin(1)],
            stretches[row, np.where(finite, values, -np.inf).argmax(1)],
        ]
    chosen = np.unique(np.concatenate(keep))
    return Series(curve.steps[chosen], curve.values[chosen])


def _group_table(groups: Sequence[Group]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return headings and rows of `algd compare`."""
    evaluated = [run for group in groups for run in group.runs if not why_not_summarised(run)]
    usable, _ = drop_repeated(evaluated)
    parts = [
        replace(group, runs=tuple(run for run in group.runs if run in usable)) for group in groups
    ]
    headings: list[str] = []
    rows = []
    for comparison in compare([part for part in parts if part.runs]):
        if comparison.env_id == ALL_ENVIRONMENTS:
            continue
        headings, cells = headings_and_cells(comparison)
        rows += [
            {"env": comparison.env_id, "label": row.group.label, "cells": texts}
            for row, texts in zip(comparison.rows, cells, strict=True)
        ]
    return headings, rows


def _number(value: float) -> float | int | str | None:
    """Return a number with as many digits as a screen shows; None for NaN."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        return _NEVER
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")


def version_of(paths: Sequence[Path]) -> str:
    """Return text that changes when a file of the runs does."""
    directories, _ = find_run_dirs(paths)
    marks = []
    for directory in directories:
        media = find_media(directory)
        files = [*sorted(directory.glob("*.csv")), directory / "config.yaml"]
        files += [file.path for file in (*media.pictures, *media.videos)]
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            marks.append((str(file), status.st_mtime_ns, status.st_size))
    return hashlib.sha256(repr(marks).encode("utf-8", "surrogateescape")).hexdigest()[:16]
