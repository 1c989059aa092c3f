"""The result of a sweep: mean and interval over seeds of the last evaluation, per setting.

In: the plan and its run directories. Out: a ``SweepTable`` as CSV and as text. It is a function of
the metrics.csv files alone, hence the same however often the sweep was interrupted.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from algd.errors import ConfigError
from algd.experiments.run_data import RunData, read_runs
from algd.experiments.schema import did_you_mean, nearest
from algd.experiments.sweep_child import is_complete
from algd.experiments.sweep_file import Metric
from algd.experiments.sweep_plan import Setting, SweepPlan, as_text
from algd.experiments.text_table import aligned
from algd.training.durable_files import replace_durably

CONFIDENCE = 0.95
_EVALUATION = ("eval/return", "eval/cost", "eval/violation_rate")
_ENDS = {"eval/cost": (0.0, math.inf), "eval/violation_rate": (0.0, 1.0)}  # of metrics with any
_SHOWN_NAMES = 12  # of the metrics that runs log


class Estimate(NamedTuple):
    """Mean over seeds and its interval; NaN bounds where one seed alone allows none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One setting: how many of its seeds are complete, and the estimate of every metric."""

    setting: Setting
    complete: int
    seeds: int
    estimates: dict[str, Estimate]


@dataclass(frozen=True)
class SweepTable:
    """Rows in the order of the plan.

    varied: keys that differ between settings. metrics: names of the columns. goal: what the sweep
    looks for, None where its file does not say. logged: every name that some run has recorded.
    skipped: lines about runs that cannot be read.
    """

    varied: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    goal: Metric | None
    logged: tuple[str, ...]
    skipped: tuple[str, ...]

    def best(self) -> Row | None:
        """Return the row with the best mean of the metric."""
        rows = [row for row in self.rows if self.goal is not None and self._known(row)]
        if self.goal is None or not rows:
            return None
        name, sign = self.goal.name, -1.0 if self.goal.goal == "maximize" else 1.0
        return min(rows, key=lambda row: sign * row.estimates[name].mean)

    def write_csv(self, path: Path) -> None:
        """Write one line per setting; an unknown number is an empty field."""
        bounds = [name + end for name in self.metrics for end in ("", "/low", "/high")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.varied, "complete", "seeds", *bounds])
        for row in self.rows:
            values = [as_text(row.setting.values[key]) for key in self.varied]
            missing = Estimate(math.nan, math.nan, math.nan)
            numbers = [
                "" if math.isnan(number) else repr(number)
                for name in self.metrics
                for number in row.estimates.get(name, missing)
            ]
            writer.writerow([*values, row.complete, row.seeds, *numbers])
        replace_durably(path, text.getvalue().encode())

    def text(self) -> str:
        """Return the table for a terminal; the best row bears a star."""
        best = self.best()
        header = [*self.varied, "seeds", *(f"{name} ({CONFIDENCE:.0%})" for name in self.metrics)]
        lines = [header]
        for row in self.rows:
            values = [as_text(row.setting.values[key]) for key in self.varied]
            numbers = [_shown(row.estimates.get(name)) for name in self.metrics]
            lines.append([*values, f"{row.complete}/{row.seeds}", *numbers])
        marks = [" ", *("*" if row is best else " " for row in self.rows)]
        return "\n".join(
            f"{mark} {line}".rstrip() for mark, line in zip(marks, aligned(lines), strict=True)
        )

    def _known(self, row: Row) -> bool:
        estimate = None if self.goal is None else row.estimates.get(self.goal.name)
        return estimate is not None and not math.isnan(estimate.mean)


def make_table(plan: SweepPlan) -> SweepTable:
    """Return the table over the trials that are complete."""
    complete = [trial for trial in plan.trials if is_complete(trial.run_dir)]
    found = read_runs(trial.run_dir for trial in complete)
    runs = {run.path: run for run in found.runs}
    metrics = _EVALUATION
    if plan.file.metric is not None:
        metrics = tuple(dict.fromkeys((plan.file.metric.name, *metrics)))
    rows = []
    for number, setting in enumerate(plan.settings):
        mine = [trial for trial in plan.trials if trial.setting == number]
        done = [runs[trial.run_dir] for trial in mine if trial.run_dir in runs]
        estimates = {
            name: estimate(values, ends=_ENDS.get(name, (-math.inf, math.inf)))
            for name in metrics
            if (values := last_values(done, name))
        }
        rows.append(Row(setting, len(done), len(mine), estimates))
    varied = tuple(
        key
        for key in plan.settings[0].values
        if len({as_text(setting.values[key]) for setting in plan.settings}) > 1
    )
    logged = sorted({name for run in found.runs for name in run.metrics})
    goal = plan.file.metric
    return SweepTable(varied, metrics, tuple(rows), goal, tuple(logged), tuple(found.skipped))


def require_metric(table: SweepTable, source: Path) -> None:
    """Refuse a metric that no run has logged; without any run there is nothing to say.

    Raises:
        ConfigError: naming what they log.
    """
    if table.goal is None or not table.logged or table.goal.name in table.logged:
        return
    name, logged = table.goal.name, table.logged
    listed = ", ".join(logged[:_SHOWN_NAMES]) + (", ..." if len(logged) > _SHOWN_NAMES else "")
    hint = did_you_mean(nearest(name, logged)) or f"; they log {listed}"
    raise ConfigError(f"{source}: metric.name {name!r} is logged by no run{hint}")


def last_values(runs: Sequence[RunData], name: str) -> list[float]:
    """Return the last recorded value of a metric in each run that has one."""
    return [float(run.metrics[name].values[-1]) for run in runs if name in run.metrics]


def estimate(
    values: Sequence[float], *, ends: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """Return the mean and its Student interval at ``CONFIDENCE``, cut at the metric's ``ends``."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = student_quantile(count - 1) * math.sqrt(variance / count)
    return Estimate(mean, max(mean - half, ends[0]), min(mean + half, ends[1]))


def student_quantile(degrees: int) -> float:
    """Return t with P(|T| <= t) = ``CONFIDENCE`` for T of Student's law with whole degrees."""
    low, high = 0.0, 1.0
    while _student_inside(high, degrees) < CONFIDENCE:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _student_inside(middle, degrees) < CONFIDENCE else (low, middle)
        )
    return (low + high) / 2


def _student_inside(t: float, degrees: int) -> float:
    """Return P(|T| <= t), a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * total)


def _shown(value: Estimate | None) -> str:
    if value is None or math.isnan(value.mean):
        return "-"
    if math.isnan(value.low):
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
