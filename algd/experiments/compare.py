"""Compare groups of runs: `algd compare`.

In: runs. Out: for each environment one row per group, each quantity with its 95 % interval, ready
for tables and figures. The runs of a group are its sample; evaluations of one run are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from algd.analysis.run_statistics import (
    Evaluations,
    RunSummary,
    safety_first_order,
    summarise,
)
from algd.analysis.statistics import (
    UNKNOWN,
    Interval,
    bootstrap_interval,
    mean_interval,
    mean_proportion_interval,
    probability_of_improvement,
    share_interval,
)
from algd.errors import UserError
from algd.experiments.compare_groups import Group, drop_repeated
from algd.experiments.run_data import RunData, Series
from algd.experiments.schema import did_you_mean, nearest

RETURN = "eval/return"
COST = "eval/cost"
VIOLATION_RATE = "eval/violation_rate"
ALL_ENVIRONMENTS = "all environments"
SCALED_BY_ENVIRONMENT = (
    "return",
    "cost",
    "return_given_safe",
    "excess_cost",
    "first_safe_step",
    "return_area",
)


class Quantity(NamedTuple):
    """A column: its key in CSV files, its heading, digits after the point, what it is."""

    key: str
    heading: str
    digits: int
    meaning: str


QUANTITIES = (
    Quantity("return", "return", 2, "last evaluation, interquartile mean over runs"),
    Quantity("cost", "cost", 2, "last evaluation, interquartile mean over runs"),
    Quantity("normalised_cost", "cost/limit", 2, "cost over its limit, interquartile mean"),
    Quantity("p_safe", "P(c<=limit)", 2, "share of runs whose last mean cost is in the limit"),
    Quantity("episodes_within", "episodes in", 2, "share of last evaluation episodes in the limit"),
    Quantity("return_given_safe", "return|safe", 2, "mean return of the runs in the limit"),
    Quantity("training_violations", "train viol.", 2, "share of training episodes over the limit"),
    Quantity("excess_cost", "excess cost", 0, "cost over the limit in training, added up"),
    Quantity("first_safe_step", "first safe", 0, "median step of the first safe evaluation"),
    Quantity("return_area", "area", 2, "mean height of the return curve, interquartile mean"),
    Quantity(
        "p_better",
        "P(better)",
        2,
        "probability that a run beats one of the baseline: safe before unsafe, safe ones by "
        "return, unsafe ones by cost",
    ),
)


@dataclass(frozen=True, eq=False)
class Row:
    """A group and its quantities, by key. summaries: of its runs, in their order."""

    group: Group
    summaries: tuple[RunSummary, ...]
    values: dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows of one environment.

    baseline: label that ``p_better`` refers to, of ``rows[0]`` unless one was asked for; where no
        row has it, ``p_better`` is unknown.
    score: the metric whose last value is the return of all columns. Of another than the return it
        is not known whether more is better, so ``p_better`` is unknown.
    """

    env_id: str
    baseline: str
    score: str
    rows: tuple[Row, ...]


class Usable(NamedTuple):
    """Runs that can be compared, and lines about the others and about unfinished ones."""

    runs: list[RunData]
    notes: list[str]


def compare(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    score: str = RETURN,
    seed: int = 0,
) -> list[Comparison]:
    """Return one comparison per environment, and one over all if there are several.

    Args:
        groups: of usable runs, see ``usable_runs``.
        baseline: label of the group that ``p_better`` refers to; the first of each where None.
        score: metric taken as return. seed: of the bootstrap.

    Raises:
        UserError: no group has the baseline's label.
    """
    labels = dict.fromkeys(group.label for group in groups)
    if baseline is not None and baseline not in labels:
        raise UserError(
            f"--baseline: no group is called {baseline!r}; the groups are: {'; '.join(labels)}"
        )
    summaries = {run: summarise_run(run, score=score) for group in groups for run in group.runs}
    by_environment: dict[str, list[Group]] = {}
    for group in groups:
        by_environment.setdefault(group.env_id, []).append(group)
    comparisons = []
    for env_id, members in by_environment.items():
        strata = {group.label: ([summaries[run] for run in group.runs],) for group in members}
        reference = members[0].label if baseline is None else baseline
        rows = [_row(group, strata, reference, score, seed) for group in members]
        comparisons.append(Comparison(env_id, reference, score, tuple(rows)))
    everywhere = _over_environments(comparisons, seed, baseline)
    return [*comparisons, everywhere] if everywhere is not None else comparisons


def usable_runs(runs: Sequence[RunData], *, score: str = RETURN) -> Usable:
    """Return the runs with evaluations of finite return and cost, each configuration-seed once.

    Raises:
        UserError: no run logs the score, or none can be compared.
    """
    logged = dict.fromkeys(name for run in runs for name in run.metrics)
    if score not in logged:
        raise UserError(f"no run logs the metric {score!r}{did_you_mean(nearest(score, logged))}")
    usable, notes = [], []
    for run in runs:
        if problem := why_not_summarised(run, score=score):
            notes.append(f"skipped {run.name}: {problem}")
        else:
            usable.append(run)
    usable, repeated = drop_repeated(usable)
    for run in usable:
        step = run.metrics[COST].steps[-1]
        if step < run.total_steps:
            notes.append(
                f"note: {run.name} is unfinished: its last evaluation is of step {step} "
                f"of {run.total_steps}"
            )
    if not usable:
        raise UserError(f"no run can be compared: {'; '.join(notes)}")
    return Usable(usable, notes + repeated)


def summarise_run(run: RunData, *, score: str = RETURN) -> RunSummary:
    """Return the summary of a run that has evaluations of cost and score."""
    costs = run.metrics[COST]
    values = run.metrics[score]
    rates = run.metrics.get(VIOLATION_RATE, Series(costs.steps, np.full(len(costs.steps), np.nan)))
    evaluations = Evaluations(
        costs.steps,
        _at(values, costs.steps),
        costs.values,
        _at(rates, costs.steps),
    )
    episodes = run.episodes.get("cost")
    return summarise(
        evaluations,
        np.zeros(0) if episodes is None else episodes.values,
        cost_limit=run.cost_limit,
        learning_starts=int(run.config.get("train.learning_starts", 0)),
    )


def why_not_summarised(run: RunData, *, score: str = RETURN) -> str:
    """Say why a run has no summary; nothing if it has."""
    for name in (COST, score):
        if name not in run.metrics:
            return f"logs no {name} yet"
        if not np.isfinite(run.metrics[name].values).all():
            return f"{name} is not finite at some step"
    return ""


def _at(series: Series, steps: np.ndarray) -> np.ndarray:
    """Return the newest value at or before each step; the first one before it begins."""
    newest = np.searchsorted(series.steps, steps, side="right") - 1
    return series.values[np.maximum(newest, 0)]


def _over_environments(
    comparisons: Sequence[Comparison], seed: int, baseline: str | None
) -> Comparison | None:
    """Compare the groups that all environments have, by what needs no common scale of returns.

    Each environment is a stratum of its own.
    """
    if len(comparisons) < 2:
        return None
    tables = [{row.group.label: row for row in one.rows} for one in comparisons]
    labels = [label for label in tables[0] if all(label in table for table in tables)]
    if not labels:
        return None
    strata = {label: tuple(table[label].summaries for table in tables) for label in labels}
    reference, score = labels[0] if baseline is None else baseline, comparisons[0].score
    rows = []
    for label in labels:
        runs = tuple(run for table in tables for run in table[label].group.runs)
        row = _row(Group(ALL_ENVIRONMENTS, label, runs), strata, reference, score, seed)
        row.values.update(dict.fromkeys(SCALED_BY_ENVIRONMENT, UNKNOWN))
        rows.append(row)
    return Comparison(ALL_ENVIRONMENTS, reference, score, tuple(rows))


def _row(
    group: Group,
    strata: Mapping[str, Sequence[Sequence[RunSummary]]],
    reference: str,
    score: str,
    seed: int,
) -> Row:
    """Return the row of a group; ``strata`` holds the summaries of each label per environment."""
    mine = strata[group.label]
    values = _quantities(mine, seed)
    is_judged = group.label != reference and score == RETURN
    others = strata.get(reference) if is_judged else None
    values["p_better"] = UNKNOWN if others is None else _p_better(mine, others)
    return Row(group, tuple(one for stratum in mine for one in stratum), values)


def _quantities(strata: Sequence[Sequence[RunSummary]], seed: int) -> dict[str, Interval]:
    def columns(name: str) -> list[np.ndarray]:
        parts = [[getattr(one, name) for one in stratum] for stratum in strata]
        return [np.array(part, dtype=float) for part in parts]

    def defined(name: str) -> list[np.ndarray]:
        return [values[~np.isnan(values)] for values in columns(name)]

    safe = [values > 0 for values in columns("safe")]
    safe_returns = [
        values[keep] for values, keep in zip(columns("final_return"), safe, strict=True)
    ]
    amount = {"seed": seed, "bounds": (0.0, np.inf)}
    first_safe = float(np.median(np.concatenate(columns("first_safe_step"))))
    return {
        "return": bootstrap_interval(columns("final_return"), seed=seed),
        "cost": bootstrap_interval(columns("final_cost"), **amount),
        "normalised_cost": bootstrap_interval(defined("normalised_cost"), **amount),
        "p_safe": mean_proportion_interval([(int(runs.sum()), len(runs)) for runs in safe]),
        "episodes_within": share_interval(defined("episodes_within_limit")),
        "return_given_safe": mean_interval(safe_returns),
        "training_violations": share_interval(defined("training_violations")),
        "excess_cost": bootstrap_interval(columns("excess_cost"), **amount),
        # Of a few runs, some of which never get there, order statistics give no 95 % interval.
        "first_safe_step": Interval(first_safe, np.nan, np.nan),
        "return_area": bootstrap_interval(columns("return_area"), seed=seed),
    }


def _p_better(
    strata: Sequence[Sequence[RunSummary]], baseline: Sequence[Sequence[RunSummary]]
) -> Interval:
    """Return P(better) by the order that puts safety first, inside each environment."""
    ours, theirs = [], []
    for members, others in zip(strata, baseline, strict=True):
        both = [*members, *others]
        order = safety_first_order(
            np.array([one.final_return for one in both]),
            np.array([one.final_cost for one in both]),
            np.array([one.cost_limit for one in both]),
        )
        ours.append(order[: len(members)])
        theirs.append(order[len(members) :])
    return probability_of_improvement(ours, theirs)
