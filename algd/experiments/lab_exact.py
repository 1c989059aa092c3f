"""What the lab compares a run on an analytic task with.

In: a loaded policy and its ``AgentEnergy``. Out: the exact answer at the agent's own temperature,
penalty and hinge, and numbers comparing the two.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alam.multiplier_config import FixedConfig, StatewiseALaMConfig, StatewiseDualConfig
from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.calibration import relative_l1
from algd.analysis.exact_answers import ExactAnswer, ExactTables, exact_tables, solve_exact
from algd.analysis.finite_solution import solve_statewise
from algd.analysis.sampling_error import sampling_error
from algd.environments.analytic_bandit import BanditTask
from algd.environments.analytic_finite import FiniteTask
from algd.experiments.config import ExperimentConfig
from algd.training.load import LoadedPolicy

Floats = NDArray[np.float64]

_ACTIVE = 0.05  # share of the largest multiplier below which a state counts as inactive
_SOLVED = 1e-6  # what the solvers' tolerances leave of a multiplier that is 0
_SAMPLES = 2_000


@dataclass(frozen=True)
class ExactComparison:
    """An agent beside the exact answer at its own temperature.

    tables, answer: the truth. learnt: (S,) the agent's multipliers. relative_l1: of these over the
    active states, NaN where none is active. hard_l1: the same to the state-wise multiplier of the
    deterministic problem, whatever multiplier the agent has; NaN where it is not known.
    total_variation, wasserstein1: of the agent's samples
    to the exact law, mean over states. excess: mean over states of [E cost - limit]_+ / limit under
    the agent's samples and the true cost. slackness: mean of |lambda (E cost - threshold)|, in
    reward.
    worst_excess: the largest over states.
    """

    tables: ExactTables
    answer: ExactAnswer
    learnt: Floats
    relative_l1: float
    hard_l1: float
    total_variation: float
    wasserstein1: float
    excess: float
    worst_excess: float
    slackness: float


def compare_with_exact(loaded: LoadedPolicy, probe: AgentEnergy) -> ExactComparison | None:
    """Solve the run's task exactly, as the agent poses it: with the threshold it has come to.

    None for any other task, where no multiplier meets the constraint or it is fixed, for CVPO,
    whose law has the last policy in it, and for state-wise multipliers that a batch hinge averages.
    """
    config = loaded.config
    tables = exact_tables(
        config.env.id,
        step_limit=probe.threshold,
        cost_discount=config.critics.cost_discount,
        task_limit=config.env.kwargs.get("cost_limit"),
        episode_length=loaded.task["episode_length"],
    )
    posed = config.critics.cost_target == "discounted" and config.policy.kind != "cvpo"
    if tables is None or not posed:
        return None
    multiplier = config.multiplier
    if isinstance(multiplier, FixedConfig):  # its law is not that of the constrained problem
        return None
    statewise = isinstance(multiplier, StatewiseALaMConfig | StatewiseDualConfig)
    # A batch hinge weighs all violations alike, in the end by the multiplier: a plain Lagrangian.
    batch = config.constraint.augmented and config.constraint.hinge == "batch"
    if batch and statewise:
        return None
    penalised = config.constraint.augmented and not batch
    hinge_coef = None
    if isinstance(multiplier, StatewiseALaMConfig) and multiplier.target_hinge == "sample":
        own = multiplier.penalty_coef or config.constraint.penalty_coef
        hinge_coef = own / (probe.reward_scale * probe.unit**2)
    entropy = probe.temperature if config.policy.kind == "gaussian" else 0.0
    try:
        answer = solve_exact(
            tables,
            temperature=probe.temperature,
            penalty_coef=probe.penalty_coef if penalised else None,
            hinge_coef=hinge_coef,
            shared=not statewise,
            discount=config.critics.discount,
            entropy_weight=entropy,
        )
    except ArithmeticError:
        return None
    return _compare(probe, tables, answer, _hard_multiplier(config, tables))


def _hard_multiplier(config: ExperimentConfig, tables: ExactTables) -> Floats:
    """lambda*(s) of the problem without a temperature, NaN where there is no closed form of it."""
    name = config.env.id.removesuffix("-v0")
    limit = config.constraint.cost_limit
    if (
        name.startswith("AnalyticBandit")
        and config.env.kwargs.get("cost_limit", BanditTask.cost_limit) == limit
    ):
        task = BanditTask(action_dim=len(tables.grid), cost_limit=limit)
        return task.optimal_multiplier(tables.obs[:, 0])
    if name == "AnalyticFinite":
        finite = FiniteTask(cost_limit=limit, horizon=tables.horizon)
        return solve_statewise(finite, discount=config.critics.discount).multiplier
    return np.full(len(tables.obs), np.nan)


def _active_l1(learnt: Floats, truth: Floats) -> float:
    """Relative L1 over the states whose multiplier is not all but zero; NaN where there is none."""
    active = truth > max(_ACTIVE * float(truth.max()), _SOLVED)
    return relative_l1(learnt, truth, where=active) if active.any() else float("nan")


def _compare(
    probe: AgentEnergy, tables: ExactTables, answer: ExactAnswer, hard: Floats
) -> ExactComparison:
    learnt = probe.multiplier(tables.obs)
    # Thresholds are limits of a step here: one step each, or a cost discount of 0.
    step_limit = probe.nominal_threshold
    shape = tuple(len(axis) for axis in tables.grid)
    distances, lengths, gaps = [], [], []
    for index, obs in enumerate(tables.obs):
        samples = probe.samples(obs, _SAMPLES, seed=index)
        error = sampling_error(samples, answer.density[index].reshape(shape), tables.grid)
        distances.append(error.total_variation)
        lengths.append(error.wasserstein1)
        gaps.append(_mean_excess(tables, index, samples))
    gap = np.array(gaps)
    over = np.maximum(gap + probe.threshold - step_limit, 0.0) / (step_limit or 1.0)
    return ExactComparison(
        tables=tables,
        answer=answer,
        learnt=learnt,
        relative_l1=_active_l1(learnt, answer.multiplier),
        hard_l1=_active_l1(learnt, hard),
        total_variation=float(np.mean(distances)),
        wasserstein1=float(np.mean(lengths)),
        excess=float(over.mean()),
        worst_excess=float(over.max()),
        slackness=float(np.abs(learnt * gap).mean()),
    )


def _mean_excess(tables: ExactTables, index: int, samples: Floats) -> float:
    """Mean true excess of samples, linear between the nodes of the grid."""
    values = tables.excess[index].reshape([len(axis) for axis in tables.grid])
    if len(tables.grid) == 1:
        return float(np.interp(samples[:, 0], tables.grid[0], values).mean())
    from scipy.interpolate import RegularGridInterpolator

    inside = np.clip(samples, -1.0, 1.0)
    return float(RegularGridInterpolator(tables.grid, values)(inside).mean())
