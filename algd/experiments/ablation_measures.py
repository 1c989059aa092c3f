"""What is measured of every cell of an ablation, and which way is better.

In: a finished run, or a sampler trained on an exact energy. Out: numbers by name; those that do
not apply to a task are left out.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.corridor_rollouts import (
    CorridorEpisodes,
    drive,
    drive_safe_optimum,
    even_starts,
)
from algd.analysis.corridor_solution import solve_corridor
from algd.analysis.density import boltzmann_density, box_grid
from algd.analysis.oscillation import run_oscillation
from algd.analysis.sampling_error import sampling_error
from algd.environments.analytic_corridor import CorridorTask
from algd.environments.analytic_islands import IslandsTask
from algd.experiments.lab_calibration import measure_foresight
from algd.experiments.lab_exact import ExactComparison, compare_with_exact
from algd.experiments.lab_rollouts import policy_rollouts, random_rollouts
from algd.experiments.lab_states import MAX_EXACT_DIM, state_curvature
from algd.training.csv_table import read_rows
from algd.training.load import LoadedPolicy, load

Floats = NDArray[np.float64]

_STATES = 12
_BOX_ACTIONS = 128
_SAMPLES = 2_000
_LAW_POINTS = {1: 401, 2: 61}
_ROLLOUT_STEPS = 1_000
_RANDOM_STEPS = 5_000
_STARTS = 401  # of the corridor: an episode from each
_MIN_ISLAND_SHARE = 0.1  # of the samples, for an island to count as held


@dataclass(frozen=True)
class Measure:
    """name: key. label: heading with its unit. better: which way. ends: of its range.

    is_share: counts how many of some trials did something.
    """

    name: str
    label: str
    better: Literal["higher", "lower", "neither"]
    ends: tuple[float, float] = (-math.inf, math.inf)
    is_share: bool = False


_UNIT, _POSITIVE = (0.0, 1.0), (0.0, math.inf)


def _share(name: str, label: str, better: Literal["higher", "lower"]) -> Measure:
    return Measure(name, label, better, _UNIT, is_share=True)


MEASURES: tuple[Measure, ...] = (
    Measure("curvature", "smallest Hessian eigenvalue (reward/action²)", "higher"),
    Measure("curvature_plain", "the same without augmentation", "neither"),
    _share("convex", "convex share of the box", "higher"),
    Measure("tv_law", "TV to the law of the learnt energy", "lower", _UNIT),
    Measure("tv_exact", "TV to the exact law", "lower", _UNIT),
    Measure("w1_exact", "W1 to the exact law (action)", "lower", _POSITIVE),
    Measure("multiplier_l1", "multiplier, relative L1 at its temperature", "lower", _POSITIVE),
    Measure("multiplier_hard_l1", "multiplier, relative L1 to λ*(s)", "lower", _POSITIVE),
    Measure("slackness", "slackness residual (reward)", "lower", _POSITIVE),
    Measure("multiplier_tv", "multiplier oscillation (per 1,000 updates)", "lower", _POSITIVE),
    Measure("cost_tv", "cost oscillation (cost per 1,000 updates)", "lower", _POSITIVE),
    Measure("excess", "cost over the limit, mean of states (of it)", "lower", _POSITIVE),
    _share("violations", "episodes over the limit", "lower"),
    _share("training_violations", "episodes over the limit in training", "lower"),
    Measure("return", "return (reward per episode)", "higher"),
    Measure("of_optimum", "return, share of the safe optimum", "higher"),
    Measure("mode_of_optimum", "the same, deterministic policy", "higher"),
    _share("mode_violations", "deterministic episodes over the limit", "lower"),
    _share("best_passage", "episodes through the passage of the optimum", "higher"),
    Measure("cost", "cost (per episode)", "neither", _POSITIVE),
    _share("both_islands", "states holding both islands", "higher"),
    _share("infeasible", "infeasible samples", "lower"),
    Measure("auroc", "AUROC of the multiplier, uniform actions", "higher", _UNIT),
    Measure("cpu_seconds", "training (CPU s)", "lower", _POSITIVE),
)

# The four claims that the papers make of the augmented energy, and what decides each.
CLAIMS: dict[str, tuple[str, ...]] = {
    "better conditioned": ("curvature", "convex"),
    "samples better": ("tv_exact", "tv_law", "w1_exact"),
    "oscillates less": ("multiplier_tv", "cost_tv"),
    "violates less": ("excess", "violations", "infeasible", "training_violations"),
}


def measure_run(run_dir: Path) -> dict[str, float]:
    """Measure a finished run of any environment."""
    loaded = load(run_dir)
    probe = AgentEnergy(loaded)
    limit = loaded.config.constraint.cost_limit
    own = policy_rollouts(loaded, steps=_ROLLOUT_STEPS, seed=loaded.config.seed)
    exact = compare_with_exact(loaded, probe)
    obs = own.obs if exact is None else exact.tables.obs
    rows = np.linspace(0, len(obs) - 1, min(_STATES, len(obs))).astype(int)
    oscillation = run_oscillation(read_rows(run_dir / "metrics.csv"))
    found = {
        "return": float(own.episode_returns.mean()),
        "cost": float(own.episode_costs.mean()),
        "violations": float((own.episode_costs > limit).mean()),
        "training_violations": _training_violations(run_dir, limit),
        "multiplier_tv": oscillation.multiplier,
        "cost_tv": oscillation.cost,
    }
    found |= _landscape(probe, obs[rows])
    found |= _law(probe, obs[rows])
    if exact is not None:
        found |= _exact(exact)
    if loaded.config.env.id.startswith("AnalyticIslands"):
        found |= _islands(loaded, probe)
    if loaded.config.env.id.startswith("AnalyticCorridor"):
        found |= _corridor(loaded)
    if exact is None:
        uniform = random_rollouts(loaded, steps=_RANDOM_STEPS, seed=loaded.config.seed + 1)
        foresight = measure_foresight(probe, uniform)
        if foresight is not None:
            found["auroc"] = foresight.multiplier_auroc
    return {name: value for name, value in found.items() if np.isfinite(value)}


def measure_sampler(samples: Floats, density: Floats, grid: tuple[Floats, ...]) -> dict[str, float]:
    """Measure samples (n, A) of a policy trained on an exact energy."""
    error = sampling_error(samples, density, grid)
    return {"tv_exact": error.total_variation, "w1_exact": error.wasserstein1}


def _training_violations(run_dir: Path, limit: float) -> float:
    costs = np.array([float(row["cost"]) for row in read_rows(run_dir / "episodes.csv")])
    return float((costs > limit).mean()) if len(costs) else float("nan")


def _landscape(probe: AgentEnergy, obs: NDArray[np.float32]) -> dict[str, float]:
    """Curvature over the box of actions: of the energy in use, and of the plain one."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (_BOX_ACTIONS, probe.action_dim))
    augmented = probe.agent.constraint.config.augmented
    smallest, plain, convex = [], [], []
    for row in obs:
        both = state_curvature(probe, row, actions)
        used = both.augmented if augmented else both.plain
        smallest.append(float(used.min()))
        plain.append(float(both.plain.min()))
        convex.append(float((used >= 0).double().mean()))
    return {
        "curvature": float(np.mean(smallest)),
        "curvature_plain": float(np.mean(plain)),
        "convex": float(np.mean(convex)),
    }


def _law(probe: AgentEnergy, obs: NDArray[np.float32]) -> dict[str, float]:
    """Distance of samples to the Boltzmann law of the agent's own energy: the sampler's error."""
    dim = probe.action_dim
    if dim > MAX_EXACT_DIM:
        return {}
    grid = box_grid(dim, _LAW_POINTS[dim])
    distances = []
    for row in obs:
        density = boltzmann_density(
            lambda actions, row=row: probe.energy(row, actions), grid, probe.temperature
        )
        samples = probe.samples(row, _SAMPLES)
        distances.append(sampling_error(samples, density, grid).total_variation)
    return {"tv_law": float(np.mean(distances))}


def _exact(exact: ExactComparison) -> dict[str, float]:
    return {
        "tv_exact": exact.total_variation,
        "w1_exact": exact.wasserstein1,
        "multiplier_l1": exact.relative_l1,
        "multiplier_hard_l1": exact.hard_l1,
        "slackness": exact.slackness,
        "excess": exact.excess,
    }


def _corridor(loaded: LoadedPolicy) -> dict[str, float]:
    """Return and collisions from starts all over the corridor, beside the safe optimum."""
    task = CorridorTask()
    solution = solve_corridor(task)

    def episodes(*, deterministic: bool) -> CorridorEpisodes:
        generator = torch.Generator().manual_seed(loaded.config.seed)

        def act(obs: NDArray[np.float32]) -> NDArray[np.floating]:
            known = loaded.normalizer.normalize(obs)
            return loaded.agent.act(known, generator=generator, deterministic=deterministic)

        return drive(task, act, even_starts(_STARTS))

    own, mode = episodes(deterministic=False), episodes(deterministic=True)
    best = drive_safe_optimum(solution, own.starts)
    limit = loaded.config.constraint.cost_limit
    return {
        "return": float(own.returns.mean()),
        "cost": float(own.collisions.mean()),
        "violations": own.violation_rate(limit),
        "of_optimum": own.share_of_optimum(solution),
        "mode_of_optimum": mode.share_of_optimum(solution),
        "mode_violations": mode.violation_rate(limit),
        "best_passage": float((own.above == best.above).mean()),
    }


def _islands(loaded: LoadedPolicy, probe: AgentEnergy) -> dict[str, float]:
    """Whether samples hold both feasible islands, where there are two, and how many lie outside."""
    limit = loaded.config.env.kwargs.get("cost_limit", IslandsTask.cost_limit)
    task = IslandsTask(action_dim=probe.action_dim, cost_limit=limit)
    held, outside = [], []
    for state in np.linspace(0.3, 0.95, _STATES):
        samples = probe.samples(np.array([state], dtype=np.float32), _SAMPLES)
        feasible = task.feasible(state, samples)
        left = (feasible & (samples[:, 0] < 0)).mean()
        right = (feasible & (samples[:, 0] > 0)).mean()
        held.append(min(left, right) >= _MIN_ISLAND_SHARE)
        outside.append(1.0 - feasible.mean())
    return {"both_islands": float(np.mean(held)), "infeasible": float(np.mean(outside))}
