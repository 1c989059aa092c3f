"""Runs one axis of the ablation to its table and figures.

In: an axis, tasks, a folder. Out: the folder: cells/, table.csv, table.md, figures; the table and
the verdicts on the console.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from algd.errors import ConfigError
from algd.experiments.ablation_axes import AXES
from algd.experiments.ablation_cells import (
    CellResult,
    finished_cells,
    require_trainable,
    run_cells,
)
from algd.experiments.ablation_plan import (
    TASKS,
    Axis,
    Cell,
    Task,
    find_task,
    plan_cells,
    task_folder,
)
from algd.experiments.ablation_table import markdown, tabulate, write_csv
from algd.training.run_directory import make_output_directory
from algd.training.run_lock import RunLock

_SCORE_SAMPLES = (2, 4, 8, 16, 32, 64)
_SCORE_POINTS, _SCORE_REPEATS = 128, 32
_ESTIMATORS = ("target", "denoising", "mixed")


def ablate(
    axis_name: str,
    directory: Path,
    *,
    envs: Sequence[str] = (),
    variants: Sequence[str] = (),
    seeds: int = 5,
    jobs: int = 1,
    presets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> list[CellResult]:
    """Run, or finish, the grid of an axis and write its table and figures.

    Args:
        axis_name: of ``AXES``.
        directory: of the grid; an earlier one there is continued.
        envs: short names of tasks or ids of environments; by default the axis's own tasks.
        variants: names of the settings to run; by default all of the axis.
        seeds: per variant and task.
        jobs: cells at a time.
        presets: presets or files, later ones winning; they replace the axis's own.
        overrides: configuration keys of every cell.
        say: receives lines.

    Raises:
        UserError: no such variant, or the folder holds other settings.
    """
    from algd.experiments.ablation_figures import draw_ablation
    from algd.experiments.figure_style import paper_style

    with paper_style():  # says at once where matplotlib is missing
        axis = _part(AXES[axis_name], variants)
    tasks = [find_task(env) for env in dict.fromkeys(envs or axis.tasks)]
    cells = plan_cells(
        axis, tasks, seeds=seeds, directory=directory, presets=presets, overrides=overrides
    )
    require_trainable(cells)
    say(f"{axis.name}: {axis.question}")
    say(f"{len(cells)} cells: {len(axis.variants)} variants, {len(tasks)} tasks, {seeds} seeds")
    make_output_directory(directory)
    with RunLock(directory):  # two grids over one folder would start the same cells
        results = run_cells(cells, jobs=jobs, updates=axis.updates, say=say)
    tasks, earlier = _earlier(axis_name, tasks, cells, directory, presets, overrides)
    names = {result.cell.variant.name for result in (*results, *earlier)}
    axis = _part(AXES[axis_name], sorted(names))
    rows = tabulate(axis, [*results, *earlier])
    write_csv(rows, directory / "table.csv")
    text = markdown(axis, rows, [result for result in results if result.error])
    (directory / "table.md").write_text(text, encoding="utf-8")
    figures = draw_ablation(axis, rows, directory)
    if axis.name == "estimator":
        figures += _score_errors(directory, _sampler_dims(tasks))
    say(text)
    say(f"table.csv, table.md and {len(figures)} figures: {directory}")
    return results


def _part(axis: Axis, names: Sequence[str]) -> Axis:
    """Keep the named variants, in the axis's order; all of them where none is named."""
    known = [variant.name for variant in axis.variants]
    for name in names:
        if name not in known:
            raise ConfigError(f"--variant must be one of {', '.join(known)}, got {name!r}")
    kept = tuple(variant for variant in axis.variants if not names or variant.name in names)
    return replace(axis, variants=kept)


def _earlier(
    axis_name: str,
    tasks: Sequence[Task],
    cells: Sequence[Cell],
    directory: Path,
    presets: Sequence[str],
    overrides: Mapping[str, Any] | None,
) -> tuple[list[Task], list[CellResult]]:
    """Return the tasks of the folder, and what earlier calls finished there with these settings.

    So the table and figures of a part hold the whole.
    """
    axis, folder = AXES[axis_name], directory / "cells"
    # A variant that sets what is overridden cannot have been run with the override.
    free = [v.name for v in axis.variants if not v.overrides.keys() & (overrides or {}).keys()]
    axis = _part(axis, free)
    known = [*tasks, *(task for task in TASKS.values() if task not in tasks)]
    there = [task for task in known if task in tasks or (folder / task_folder(task)).is_dir()]
    names = [path.name.partition("_")[2] for path in folder.glob("*/*/seed_*")]
    numbers = [int(name) for name in names if name.isdecimal()]
    planned = plan_cells(
        axis,
        there,
        seeds=max(numbers, default=-1) + 1,
        directory=directory,
        presets=presets,
        overrides=overrides,
    )
    mine = {cell.directory for cell in cells}
    earlier = [cell for cell in planned if cell.directory not in mine]
    found = finished_cells(earlier, updates=axis.updates)
    held = {result.cell.task.name for result in found}
    return [task for task in there if task in tasks or task.name in held], found


def _sampler_dims(tasks: Sequence[Task]) -> list[int]:
    return sorted({task.sampler_dim for task in tasks if task.sampler_dim})


def _score_errors(directory: Path, dims: Sequence[int]) -> list[Path]:
    """Measure every estimator against the exact score, no training involved."""
    from algd.analysis.score_error import TwoModeLaw, score_error
    from algd.diffusion.schedule import ScheduleConfig
    from algd.experiments.ablation_figures import draw_score_errors

    figures = []
    with (directory / "score_error.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["action_dim", "estimator", "samples", "sigma", "squared_bias", "variance", "total"]
        )
        for dim in dims:
            errors = []
            for kind in _ESTIMATORS:
                for count in _SCORE_SAMPLES:
                    error = score_error(
                        TwoModeLaw(action_dim=dim),
                        ScheduleConfig(),
                        kind,
                        num_samples=count,
                        num_points=_SCORE_POINTS,
                        num_repeats=_SCORE_REPEATS,
                    )
                    errors.append((kind, count, error))
                    columns = (error.sigmas, error.squared_bias, error.variance, error.total)
                    writer.writerows(
                        [dim, kind, count, *map(float, row)] for row in zip(*columns, strict=True)
                    )
            figures.append(
                draw_score_errors(errors, directory / f"score_error_{dim}d.png", dim=dim)
            )
    return figures
