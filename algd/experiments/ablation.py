"""The grid of an ablation: tasks, and the cells that an axis has on them.

In: an axis (``algd.experiments.ablation_axes``), tasks, seeds. Out: cells. A cell is one task, one
variant, one seed; its directory is a run directory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algd.errors import ConfigError

Overrides = dict[str, Any]

_ENVS_TOGETHER = 8  # one-step episodes are cheap: many of them per update


@dataclass(frozen=True)
class Variant:
    """One setting of an axis.

    group, position: its line and place along x in figures. quick_only: left out on environments,
    whose presets hold keys that it does not have.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    group: str = ""
    position: float | None = None
    quick_only: bool = False


@dataclass(frozen=True)
class Axis:
    """A question and the settings that answer it.

    preset: configuration that the variants depart from. tasks: of the default grid. reference: the
    variant that the others are compared with. updates: gradient steps of a cell.
    """

    name: str
    question: str
    preset: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    reference: str
    updates: int


@dataclass(frozen=True)
class Task:
    """Where a cell is trained. sampler: of an exact energy, no environment. overrides: on top."""

    name: str
    overrides: Overrides = field(default_factory=dict)
    sampler_dim: int = 0


@dataclass(frozen=True)
class Cell:
    """One run of the grid; ``directory`` is its run directory."""

    task: Task
    variant: Variant
    seed: int
    directory: Path
    preset: str
    overrides: Overrides


_FINITE = {
    "env.id": "AnalyticFinite-v0",
    "constraint.cost_limit": 12.5,
    "critics.discount": 0.9,
    "critics.cost_discount": 0.0,
}
# Every collision costs at least 1: half a step of it per episode is as good as none.
_CORRIDOR = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 0.5,
    "critics.discount": 0.97,
    "critics.cost_discount": 0.97,
}
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("bandit", {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.5}),
        Task("islands", {"env.id": "AnalyticIslands1-v0", "constraint.cost_limit": 0.05}),
        Task("finite", _FINITE),
        Task("corridor", _CORRIDOR),
        Task("energy1", sampler_dim=1),
        Task("energy2", sampler_dim=2),
    )
}

# Quick settings for tasks of seconds; the axes change nothing of them.
_QUICK: Overrides = {
    "env.num_envs": _ENVS_TOGETHER,
    "train.updates_per_step": 1.0 / _ENVS_TOGETHER,
    "train.learning_starts": 512,
    "train.batch_size": 128,
    "train.log_interval": 50 * _ENVS_TOGETHER,
    "train.device": "cpu",
    "critics.hidden": [64, 64],
    "critics.num_cost_critics": 2,
    "critics.cost_pessimism": 0.0,  # pessimism would shift every multiplier from the exact one
    "critics.learning_rate": 2e-3,
    "critics.target_update_rate": 0.02,
    "policy.hidden": [64, 64],
    "policy.learning_rate": 2e-3,
}
_QUICK_MULTIPLIER: Overrides = {"multiplier.hidden": [64, 64], "multiplier.learning_rate": 2e-3}
_QUIET: Overrides = {
    "tracking.wandb": "disabled",
    "tracking.progress": False,
    "evaluation.video": False,
}


def find_task(env: str) -> Task:
    """Return a task by its short name, or any environment by its id."""
    if env in TASKS:
        return TASKS[env]
    if not env or env != env.strip():
        raise ConfigError(f"--env must name a task ({', '.join(TASKS)}) or an id, got {env!r}")
    return Task(env, {"env.id": env})


def plan_cells(
    axis: Axis,
    tasks: Sequence[Task],
    *,
    seeds: int,
    directory: Path,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Return the cells of a grid, seeds outermost: an interrupted grid holds whole seeds.

    Args:
        axis: what varies.
        tasks: where.
        seeds: 0 .. seeds - 1.
        directory: the grid's; a cell lies at cells/TASK/VARIANT/seed_K in it.
        preset: replaces the axis's own.
        overrides: on top of everything but the variant.
    """
    cells = []
    for seed in range(seeds):
        for task in tasks:
            chosen = preset or (axis.preset if task.name in TASKS else _preset_of(axis, task))
            for variant in axis.variants:
                if variant.quick_only and task.name not in TASKS:
                    continue
                place = directory / "cells" / _slug(task.name) / _slug(variant.name)
                settings = _base(axis, task) | dict(overrides or {}) | variant.overrides
                kind = settings.get("multiplier.kind", "statewise_alam")
                if task.name in TASKS and kind.startswith("statewise"):
                    settings = _QUICK_MULTIPLIER | settings
                cells.append(
                    Cell(
                        task=task,
                        variant=variant,
                        seed=seed,
                        directory=place / f"seed_{seed}",
                        preset=chosen,
                        overrides=settings | {"seed": seed},
                    )
                )
    return cells


def _base(axis: Axis, task: Task) -> Overrides:
    """Settings of a task: quick ones for those of seconds, the preset's own for any other."""
    if task.name not in TASKS:
        return {**_QUIET, **task.overrides}
    steps = _QUICK["train.learning_starts"] + axis.updates * _ENVS_TOGETHER
    base = {**_QUIET, **_QUICK, **task.overrides, "train.total_steps": steps}
    return base | {"train.checkpoint_interval": steps, "evaluation.interval": steps}


def _preset_of(axis: Axis, task: Task) -> str:
    """Safety-Gymnasium's rewards are small: ALGD has a preset that scales them."""
    scaled = axis.preset == "algd" and task.name.startswith("Safety")
    return "algd_point_goal" if scaled else axis.preset


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)
