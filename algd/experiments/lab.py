"""The laboratory: figures and a table for a trained run of any environment.

In: a run directory. Out: pngs and table.csv in a folder, the same table on the console. Nothing of
the run is changed.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.calibration import kkt_residual, slackness_residual
from algd.analysis.oscillation import run_oscillation
from algd.experiments.lab_calibration import Foresight, draw_calibration, measure_foresight
from algd.experiments.lab_denoising import draw_scores, draw_trajectories
from algd.experiments.lab_exact import ExactComparison, compare_with_exact
from algd.experiments.lab_landscape import draw_energies, draw_laws
from algd.experiments.lab_multiplier import (
    draw_arena,
    draw_corridor,
    draw_episodes,
    draw_state_bars,
    draw_state_line,
    draw_visited,
    map_arena,
)
from algd.experiments.lab_rollouts import Rollouts, policy_rollouts, random_rollouts
from algd.experiments.lab_states import (
    ModeCount,
    StateView,
    choose_states,
    count_modes,
    view_state,
)
from algd.training.csv_table import read_rows
from algd.training.load import LoadedPolicy, load
from algd.training.run_directory import make_output_directory

Floats = NDArray[np.float64]

_FREE_HALF_SIDE = 1.0  # metres shown around the origin where no layout says more
_SLACKNESS_STATES = 200
_SLACKNESS_ACTIONS = 32


@dataclass(frozen=True)
class Measurement:
    """One row of the table."""

    name: str
    value: float
    unit: str


@dataclass
class LabReport:
    """What a lab wrote."""

    figures: list[Path] = field(default_factory=list)
    table: list[Measurement] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str) -> None:
        """Append a row."""
        self.table.append(Measurement(name, float(value), unit))


def run_lab(
    run_dir: Path,
    out: Path | None = None,
    *,
    policy: str = "latest",
    steps: int = 5_000,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> LabReport:
    """Measure a run, write its figures and table.csv, and print the table.

    Args:
        run_dir: of a run with a checkpoint.
        out: folder of the results; by default run_dir/lab, or run_dir/lab_best_safe.
        policy: ``latest`` or ``best_safe``.
        steps: of the policy, and as many of uniform actions; whole episodes, at least one.
        seed: of episodes and samples.
        say: receives lines of progress and the table.

    Raises:
        UserError: no such run, or matplotlib is missing.
    """
    loaded = load(run_dir, policy=policy)
    probe = AgentEnergy(loaded)
    own_folder = "lab" if policy == "latest" else f"lab_{policy}"
    folder = run_dir / own_folder if out is None else out
    make_output_directory(folder)
    env_id, report = loaded.config.env.id, LabReport()
    say(f"{env_id}, step {loaded.env_step}: running episodes")
    own = policy_rollouts(loaded, steps=steps, seed=seed)
    uniform = random_rollouts(loaded, steps=steps, seed=seed + 1)
    exact = compare_with_exact(loaded, probe)
    views = _views(probe, own, uniform, exact, seed)
    foresight = measure_foresight(probe, own), measure_foresight(probe, uniform)

    say("drawing")
    _draw_states(probe, views, exact, folder, report)
    report.figures += _draw_multiplier(loaded, probe, own, exact, folder, seed)
    report.figures.append(
        draw_calibration(
            *foresight, folder / "calibration.png", threshold=probe.threshold, env_id=env_id
        )
    )
    _tabulate(report, loaded, probe, own, views, foresight, exact)
    oscillation = run_oscillation(read_rows(run_dir / "metrics.csv"))
    logged = "constraint's unit and scaled reward, as logged, per 1,000 updates"
    report.add("oscillation of the multiplier", oscillation.multiplier, logged)
    report.add("oscillation of the episode cost", oscillation.cost, "cost per 1,000 updates")
    write_table(report.table, folder / "table.csv")
    for line in format_table(report.table):
        say(line)
    say(f"figures and table.csv: {folder}")
    return report


def write_table(table: list[Measurement], path: Path) -> None:
    """Write name, value, unit."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["measurement", "value", "unit"])
        writer.writerows([row.name, repr(row.value), row.unit] for row in table)


def format_table(table: list[Measurement]) -> list[str]:
    """Return lines for a console."""
    width = max(len(row.name) for row in table)
    return [f"{row.name:<{width}} {row.value:>12.4g} {row.unit}" for row in table]


def _views(
    probe: AgentEnergy,
    own: Rollouts,
    uniform: Rollouts,
    exact: ExactComparison | None,
    seed: int,
) -> list[StateView]:
    """Look at three states: of the exact answer's where there is one, else of those visited."""
    obs = np.concatenate([own.obs, uniform.obs]) if exact is None else exact.tables.obs
    chosen = choose_states(obs, probe.multiplier(obs))
    return [view_state(probe, row, seed=seed) for row in chosen]


def _draw_states(
    probe: AgentEnergy,
    views: list[StateView],
    exact: ExactComparison | None,
    folder: Path,
    report: LabReport,
) -> None:
    energies, laws = _exact_curves(probe, views, exact)
    report.figures.append(draw_energies(views, folder / "energy.png", exact=energies))
    report.figures.append(draw_laws(views, folder / "modes.png", exact=laws))
    if probe.denoises:
        report.figures.append(draw_trajectories(probe, views, folder / "denoising.png"))
        report.figures.append(draw_scores(probe, views, folder / "score.png"))


def _exact_curves(
    probe: AgentEnergy, views: list[StateView], exact: ExactComparison | None
) -> tuple[list[Floats] | None, list[Floats] | None]:
    """Energies and laws of the exact answer on the views' grids, for one action dimension."""
    if exact is None or len(exact.tables.grid) != 1:
        return None, None
    energies, laws = [], []
    for view in views:
        index = int(np.abs(exact.tables.obs - view.obs).sum(1).argmin())
        density = np.interp(view.grid[0], exact.tables.grid[0], exact.answer.density[index])
        laws.append(density)
        energies.append(-probe.temperature * np.log(np.maximum(density, 1e-300)))
    # Far out the density underflows: nothing is drawn there.
    return [np.where(e < 600 * probe.temperature, e, np.nan) for e in energies], laws


def _draw_multiplier(
    loaded: LoadedPolicy,
    probe: AgentEnergy,
    own: Rollouts,
    exact: ExactComparison | None,
    folder: Path,
    seed: int,
) -> list[Path]:
    env_id, path = loaded.config.env.id, folder / "multiplier.png"
    if env_id.startswith("AnalyticCorridor"):
        return [draw_corridor(probe, path), _episodes(probe, own, folder, env_id)]
    if env_id.startswith("AnalyticFinite"):
        answer = None if exact is None else exact.answer.multiplier
        obs = np.eye(loaded.obs_dim, dtype=np.float32)
        return [draw_state_bars(probe, path, env_id=env_id, obs=obs, exact=answer)]
    if env_id.startswith("Analytic"):
        pair = None if exact is None else (_first(exact.tables.obs), exact.answer.multiplier)
        return [draw_state_line(probe, path, env_id=env_id, exact=pair)]
    figures = [_episodes(probe, own, folder, env_id)]
    if own.positions is None:
        return figures
    found = map_arena(probe, loaded.config.env, seed=seed)
    if found is None:
        side = _FREE_HALF_SIDE
        figures.append(draw_visited(probe, own, path, half_side=side, env_id=env_id))
    else:
        figures.append(draw_arena(probe, found, own, path, env_id=env_id))
    return figures


def _episodes(probe: AgentEnergy, own: Rollouts, folder: Path, env_id: str) -> Path:
    return draw_episodes(probe, own, folder / "episodes.png", env_id=env_id)


def _first(obs: NDArray[np.float32]) -> Floats:
    return obs[:, 0].astype(np.float64)


def _tabulate(
    report: LabReport,
    loaded: LoadedPolicy,
    probe: AgentEnergy,
    own: Rollouts,
    views: list[StateView],
    foresight: tuple[Foresight | None, Foresight | None],
    exact: ExactComparison | None,
) -> None:
    limit = loaded.config.constraint.cost_limit
    costs = own.episode_costs
    report.add("environment step", loaded.env_step, f"{loaded.which} policy")
    report.add("return, stochastic policy", own.episode_returns.mean(), "reward per episode")
    report.add("cost, stochastic policy", costs.mean(), f"cost per episode, limit {limit:g}")
    report.add("episodes over the limit", (costs > limit).mean(), f"share of {len(costs)}")
    report.add("temperature", probe.temperature, "reward")
    _tabulate_multiplier(report, probe, own)
    augmented = loaded.config.constraint.augmented
    form = f"rho {probe.penalty_coef:.3g}" + ("" if augmented else ", which this agent has not")
    _tabulate_states(report, views, form)
    _tabulate_modes(report, count_modes(probe, own.obs))
    for name, seen in zip(("policy", "uniform actions"), foresight, strict=True):
        if seen is None:
            continue
        report.add(f"violation ahead, {name}", seen.violated.mean(), "share of steps")
        report.add(f"AUROC of the multiplier, {name}", seen.multiplier_auroc, "1 is perfect")
        report.add(f"AUROC of the cost critic, {name}", seen.critic_auroc, "1 is perfect")
        report.add(f"rank correlation of the multiplier, {name}", seen.multiplier_rank, "")
    if foresight[0] is not None:
        calibration = foresight[0].calibration
        report.add("cost critic, bias", calibration.bias, "cost")
        report.add("cost critic, RMSE", calibration.root_mean_square_error, "cost")
        report.add("cost critic, slope", calibration.slope, "1 is calibrated")
        report.add("cost critic, rank correlation", calibration.rank_correlation, "")
    if exact is not None:
        report.add("exact: multiplier, relative L1", exact.relative_l1, "over active states")
        report.add("hard problem: multiplier, relative L1", exact.hard_l1, "over active states")
        report.add("exact: total variation of samples", exact.total_variation, "0 to 1")
        report.add("exact: Wasserstein-1 of samples", exact.wasserstein1, "action")
        report.add("exact: mean excess cost", exact.excess, "of the limit")
        report.add("exact: largest excess cost", exact.worst_excess, "of the limit")
        report.add("exact: slackness residual", exact.slackness, "reward")


def _tabulate_multiplier(report: LabReport, probe: AgentEnergy, own: Rollouts) -> None:
    price = probe.multiplier(own.obs)
    report.add("multiplier, mean over visited states", price.mean(), "reward per cost")
    report.add("multiplier, largest", price.max(), "reward per cost")
    rows = np.linspace(0, len(own.obs) - 1, min(_SLACKNESS_STATES, len(own.obs))).astype(int)
    excess = np.array(
        [_mean_q_cost(probe, own.obs[row], seed=int(row)) - probe.threshold for row in rows]
    )
    report.add("violation by the critic", (excess > 0).mean(), "share of visited states")
    report.add(
        "slackness residual by the critic", slackness_residual(price[rows], excess), "reward"
    )
    report.add(
        "KKT residual by the critic",
        kkt_residual(price[rows], excess, penalty_coef=probe.penalty_coef),
        f"reward per cost, at rho {probe.penalty_coef:.3g}",
    )


def _mean_q_cost(probe: AgentEnergy, obs: NDArray[np.float32], *, seed: int) -> float:
    actions = probe.samples(obs, _SLACKNESS_ACTIONS, seed=seed)
    return float(probe.q_cost(np.tile(obs, (len(actions), 1)), actions).mean())


def _tabulate_states(report: LabReport, views: list[StateView], form: str) -> None:
    plain = np.concatenate([view.curvature.plain.numpy() for view in views])
    augmented = np.concatenate([view.curvature.augmented.numpy() for view in views])
    added = np.concatenate([view.curvature.added.numpy() for view in views])
    unit = "reward per action^2, at samples"
    report.add("smallest curvature, plain", plain.mean(), unit)
    report.add("smallest curvature, augmented", augmented.mean(), f"{unit}; {form}")
    report.add("curvature the penalty adds, largest", added.mean(), f"{unit}; {form}")
    report.add("convex, plain", (plain >= 0).mean(), "share of samples")
    report.add("convex, augmented", (augmented >= 0).mean(), f"share of samples; {form}")
    errors = [view.error for view in views if view.error is not None]
    if errors:
        report.add(
            "total variation to the law of the learnt energy",
            float(np.mean([error.total_variation for error in errors])),
            f"exact samples show {np.mean([error.floor for error in errors]):.3f}",
        )
        report.add(
            "Wasserstein-1 to the law of the learnt energy",
            float(np.mean([error.wasserstein1 for error in errors])),
            "action",
        )


def _tabulate_modes(report: LabReport, count: ModeCount | None) -> None:
    if count is None:
        return
    visited = f"share of {count.num_states} visited states"
    report.add("several modes in the law of the learnt energy", count.several, visited)
    basins = "share of their basins"
    report.add("modes reached by samples, where there are several", count.reached, basins)
