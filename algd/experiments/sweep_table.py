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

import numpy as np

from algd.analysis.statistics import UNKNOWN, Interval, mean_interval, share_interval
from algd.errors import ConfigError
from algd.experiments.run_data import RunData, read_runs
from algd.experiments.schema import did_you_mean, nearest
from algd.experiments.sweep_file import Metric, SweepFile
from algd.experiments.sweep_plan import Setting, SweepPlan, as_text
from algd.experiments.text_table import aligned
from algd.training.durable_files import replace_durably
from algd.training.evaluation import EvaluationResult

_EVALUATION = ("eval/return", "eval/cost", "eval/violation_rate")
_SHARE = "eval/violation_rate"
_BOUNDS = {"eval/cost": (0.0, math.inf)}
_NO_BOUNDS = (-math.inf, math.inf)
_SHOWN_NAMES = 12  # of the metrics that runs log


@dataclass(frozen=True)
class Row:
    """One setting: how many of its seeds are complete, and the estimate of every metric."""

    setting: Setting
    complete: int
    seeds: int
    estimates: dict[str, Interval]


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
        return min(rows, key=lambda row: sign * row.estimates[name].estimate)

    def write_csv(self, path: Path) -> None:
        """Write one line per setting; an unknown number is an empty field."""
        bounds = [name + end for name in self.metrics for end in ("", "/low", "/high")]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.varied, "complete", "seeds", *bounds])
        for row in self.rows:
            values = [as_text(row.setting.values[key]) for key in self.varied]
            numbers = [
                "" if math.isnan(number) else repr(number)
                for name in self.metrics
                for number in row.estimates.get(name, UNKNOWN)
            ]
            writer.writerow([*values, row.complete, row.seeds, *numbers])
        replace_durably(path, text.getvalue().encode())

    def text(self) -> str:
        """Return the table for a terminal; the best row bears a star."""
        best = self.best()
        header = [*self.varied, "seeds", *(f"{name} (95%)" for name in self.metrics)]
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
        return estimate is not None and not math.isnan(estimate.estimate)


def make_table(plan: SweepPlan) -> SweepTable:
    """Return the table over the trials that are complete."""
    complete = [trial for trial in plan.trials if trial.is_complete]
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
            name: share_interval([np.array(values)])
            if name == _SHARE
            else mean_interval([np.array(values)], bounds=_BOUNDS.get(name, _NO_BOUNDS))
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


def require_known_metric(file: SweepFile) -> None:
    """Refuse a metric of evaluations that there is none of, before anything is trained.

    Raises:
        ConfigError: naming those there are.
    """
    if file.metric is None or not file.metric.name.startswith("eval/"):
        return  # what training logs depends on the agent
    name, known = file.metric.name, list(EvaluationResult((0.0,), (0.0,), (1,)).metrics(0.0))
    if name not in known:
        hint = did_you_mean(nearest(name, known)) or f"; they are {', '.join(known)}"
        raise ConfigError(f"{file.path}: metric.name {name!r} is no metric of evaluations{hint}")


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


def _shown(value: Interval | None) -> str:
    if value is None or math.isnan(value.estimate):
        return "-"
    if math.isnan(value.low):
        return f"{value.estimate:.3f}"
    return f"{value.estimate:.3f} [{value.low:.3f}, {value.high:.3f}]"
