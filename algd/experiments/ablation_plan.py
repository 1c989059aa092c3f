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
    variant that the others are compared with. updates: gradient steps of a cell. overrides: of
    every cell on the quick tasks; those of a task come before them. x_label: of figures, where the
    variants' names do not say it.
    """

    name: str
    question: str
    preset: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    reference: str
    updates: int
    overrides: Overrides = field(default_factory=dict)
    x_label: str = ""


@dataclass(frozen=True)
class Task:
    """Where a cell is trained.

    overrides: on top of the quick settings. of_kind: the same for keys that only one kind of policy
    or multiplier has, by that kind. sampler_dim: of an exact energy, without environment; 0 for
    environments. length: multiplies the updates of the axis.
    """

    name: str
    overrides: Overrides = field(default_factory=dict)
    of_kind: Mapping[str, Overrides] = field(default_factory=dict)
    sampler_dim: int = 0
    length: int = 1


@dataclass(frozen=True)
class Cell:
    """One run of the grid; ``directory`` is its run directory."""

    task: Task
    variant: Variant
    seed: int
    directory: Path
    presets: tuple[str, ...]
    overrides: Overrides


_FINITE = {
    "env.id": "AnalyticFinite-v0",
    "constraint.cost_limit": 12.5,
    "critics.discount": 0.9,
    "critics.cost_discount": 0.0,
}
# Hard safety: with a limit of 0 a multiplier never falls, and holds the sum of the risks that its
# state was charged. Critics of the probability of a collision charge each state alike, a count of
# steps inside charges early ones more. Episodes are finite and observe their step: undiscounted
# critics pose the problem that the dynamic programme solves. A step moves the mass by 1 cm:
# rectified critics on standardised observations resolve the obstacle's edge, and three layers of
# 128 fit the exact multipliers of algd.analysis.corridor_dual to an AUROC of 0.955 where two reach
# 0.933. The policy cools over some 20,000 updates: multipliers are to foresee uniform actions, of
# which half of the replay is made, and learn it while the policy resembles them.
_CORRIDOR_WIDTHS = [128, 128, 128]
_CORRIDOR = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 0.0,
    "constraint.unit": "raw",
    "critics.hidden": _CORRIDOR_WIDTHS,
    "critics.cost_activation": "relu",
    "critics.cost_target": "reachability",
    "critics.discount": 1.0,
    "critics.cost_discount": 1.0,
    "critics.learning_rate": 2e-3,
    "policy.hidden": _CORRIDOR_WIDTHS,
    "policy.learning_rate": 4e-4,
    "multiplier.multiplier_max": 150.0,
    "train.batch_size": 128,
    "train.updates_per_step": 0.25,
    "train.learning_starts": 160_000,
    "train.final_learning_rate": 0.02,
    "train.normalize_obs": True,
}
_CORRIDOR_NETWORK = {"multiplier.hidden": _CORRIDOR_WIDTHS, "multiplier.output": "squared"}
_CORRIDOR_OF_KIND: dict[str, Overrides] = {
    "gaussian": {
        "policy.entropy_coef": "auto",
        "policy.initial_entropy_coef": 20.0,
        "policy.target_entropy": -3.5,
    },
    "statewise_dual": _CORRIDOR_NETWORK,
    "statewise_alam": _CORRIDOR_NETWORK
    | {
        "multiplier.learning_rate": 2e-3,
        "multiplier.dual_target_interval": 1000,
        "multiplier.penalty_coef": 2.0,
    },
}
# No critic has to keep up: the rate may be high, since it falls to 0 over the training.
_SAMPLER: Overrides = {"policy.hidden": [128, 128], "policy.learning_rate": 2e-3}
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("bandit", {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.5}),
        Task("islands", {"env.id": "AnalyticIslands1-v0", "constraint.cost_limit": 0.05}),
        Task("finite", _FINITE),
        Task("corridor", _CORRIDOR, _CORRIDOR_OF_KIND, length=20),
        Task("energy1", _SAMPLER, sampler_dim=1, length=2),
        Task("energy2", _SAMPLER, sampler_dim=2, length=2),
    )
}

# Quick settings for tasks of seconds; the axes change nothing of them.
_QUICK: Overrides = {
    "env.num_envs": _ENVS_TOGETHER,
    "train.updates_per_step": 1.0 / _ENVS_TOGETHER,
    "train.learning_starts": 512,
    "train.batch_size": 256,
    "train.log_interval": 50 * _ENVS_TOGETHER,
    "train.device": "cpu",
    "critics.hidden": [64, 64],
    "critics.num_cost_critics": 2,
    "critics.cost_pessimism": 0.0,  # pessimism would shift every multiplier from the exact one
    "critics.learning_rate": 1e-3,
    "critics.target_update_rate": 0.02,
    "policy.hidden": [64, 64],
    "policy.learning_rate": 1e-3,
}
_QUICK_MULTIPLIER: Overrides = {"multiplier.hidden": [64, 64], "multiplier.learning_rate": 1e-3}
# Low enough for the multiplier to be within some per cent of that of the hard problem. A denoising
# policy keeps the rule of its preset.
_QUICK_OF_KIND: dict[str, Overrides] = {
    "gaussian": {"policy.entropy_coef": 0.02},
    "statewise_dual": _QUICK_MULTIPLIER,
    "statewise_alam": _QUICK_MULTIPLIER,
}
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
    presets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Return the cells of a grid, seeds outermost: an interrupted grid holds whole seeds.

    Args:
        axis: what varies.
        tasks: where.
        seeds: 0 .. seeds - 1.
        directory: the grid's; a cell lies at cells/TASK/VARIANT/seed_K in it.
        presets: presets or files, later ones winning; they replace the axis's own.
        overrides: on top of everything but the variant.

    Raises:
        ConfigError: an override of what the axis or the tasks set.
    """
    _require_free(axis, tasks, overrides or {})
    cells = []
    for seed in range(seeds):
        for task in tasks:
            chosen = tuple(presets) or (_preset_of(axis, task),)
            for variant in axis.variants:
                if variant.quick_only and task.name not in TASKS:
                    continue
                place = directory / "cells" / task_folder(task) / _slug(variant.name)
                own = dict(overrides or {}) | variant.overrides
                settings = _base(axis, task) | _of_kind(task, chosen, own) | own
                cells.append(
                    Cell(
                        task=task,
                        variant=variant,
                        seed=seed,
                        directory=place / f"seed_{seed}",
                        presets=chosen,
                        overrides=settings | {"seed": seed},
                    )
                )
    return cells


def _require_free(axis: Axis, tasks: Sequence[Task], overrides: Mapping[str, Any]) -> None:
    """Refuse an override that would not reach a run, or would make it another than its name says.

    Raises:
        ConfigError: naming the key and what sets it.
    """
    for variant in axis.variants:
        for key in overrides:
            if key in variant.overrides:
                raise ConfigError(
                    f"--{key}: the axis {axis.name} sets it itself ({variant.name}: "
                    f"{variant.overrides[key]}); choose among its settings with --variant"
                )
    for key in overrides:
        if key == "env.id":
            raise ConfigError("--env.id: the grid sets it itself; use --env")
        if key.startswith("train.") and all(task.sampler_dim for task in tasks):
            names = ", ".join(task.name for task in tasks)
            raise ConfigError(f"--{key}: nothing of train is read by {names}, which train no agent")


def _of_kind(task: Task, presets: Sequence[str], own: Overrides) -> Overrides:
    """Settings that only the cell's kind of policy and multiplier know."""
    from algd.experiments.config import load_config

    if task.name not in TASKS:
        return {}
    plain = load_config(presets)
    found: Overrides = {}
    for part, kind in (("policy", plain.policy.kind), ("multiplier", plain.multiplier.kind)):
        name = own.get(f"{part}.kind", kind)
        found |= _QUICK_OF_KIND.get(name, {}) | task.of_kind.get(name, {})
    return found


def _base(axis: Axis, task: Task) -> Overrides:
    """Settings of a task: quick ones for those of seconds, the preset's own for any other."""
    if task.name not in TASKS:
        return {**_QUIET, **task.overrides}
    base = {**_QUIET, **_QUICK, **axis.overrides, **task.overrides}
    updates = axis.updates * task.length
    steps = base["train.learning_starts"] + round(updates / base["train.updates_per_step"])
    times = ("train.total_steps", "train.checkpoint_interval", "evaluation.interval")
    return base | dict.fromkeys(times, steps)


def _preset_of(axis: Axis, task: Task) -> str:
    """Safety-Gymnasium's rewards are small: ALGD has a preset that scales them."""
    scaled = axis.preset == "algd" and task.name.startswith("Safety")
    return "algd_point_goal" if scaled else axis.preset


def task_folder(task: Task) -> str:
    """Return the name of the folder that holds a task's cells."""
    return _slug(task.name)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)
