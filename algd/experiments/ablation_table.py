"""The table of an ablation: means with 95 % intervals, and differences from a reference.

In: results of cells. Out: rows in long form, a CSV, Markdown that also serves the console, and
verdicts on the claims made of the augmented energy. Intervals over seeds are Student's, of shares
Wilson's; differences are paired by seed. No correction is made for looking at many of them.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from algd.analysis.statistics import Interval, mean_interval, share_interval
from algd.experiments.ablation_cells import CellResult
from algd.experiments.ablation_measures import CLAIMS, MEASURES, Measure
from algd.experiments.ablation_plan import Axis

_AS_RATIO = ("multiplier_tv", "cost_tv")  # oscillations: told as ratios, too
_KEYS = ("task", "variant", "measure", "seeds")
Verdict = Literal["better", "worse", "no difference", "unknown", "reference"]


@dataclass(frozen=True)
class Row:
    """One measure of one variant on one task.

    value: over ``num_seeds`` seeds. difference: from the reference, over the ``num_pairs`` seeds
    that both have.
    """

    task: str
    variant: str
    measure: Measure
    num_seeds: int
    value: Interval
    num_pairs: int
    difference: Interval
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Mean over the reference's mean on the same seeds; NaN where that is 0 or unknown."""
        base = self.value.estimate - self.difference.estimate
        paired = self.num_pairs == self.num_seeds
        return self.value.estimate / base if paired and base != 0.0 else math.nan


def tabulate(axis: Axis, results: Sequence[CellResult]) -> list[Row]:
    """Return the rows that have at least one value, by task, measure and variant."""
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for result in results:
        for name, value in result.measures.items():
            key = (result.cell.task.name, result.cell.variant.name, name)
            values.setdefault(key, {})[result.cell.seed] = value
    rows = []
    for task in dict.fromkeys(result.cell.task.name for result in results):
        for measure in MEASURES:
            base = values.get((task, axis.reference, measure.name), {})
            for variant in axis.variants:
                found = values.get((task, variant.name, measure.name))
                if found is None:
                    continue
                scores = np.array([found[seed] for seed in sorted(found)])
                pairs = np.array(
                    [found[seed] - base[seed] for seed in sorted(found) if seed in base]
                )
                difference = mean_interval([pairs])
                own = variant.name == axis.reference
                rows.append(
                    Row(
                        task,
                        variant.name,
                        measure,
                        len(scores),
                        share_interval([scores])
                        if measure.is_share
                        else mean_interval([scores], bounds=measure.ends),
                        len(pairs),
                        difference,
                        "reference" if own else _verdict(measure, difference),
                    )
                )
    return rows


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line per row, numbers as Python reads them back."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            [*_KEYS, "mean", "low", "high"]
            + [f"difference_{part}" for part in ("mean", "low", "high")]
            + ["ratio", "verdict"]
        )
        for row in rows:
            value, change = row.value, row.difference
            writer.writerow(
                [row.task, row.variant, row.measure.name, row.num_seeds]
                + [f"{number!r}" for interval in (value, change) for number in interval]
                + [f"{row.ratio!r}", row.verdict]
            )


def markdown(axis: Axis, rows: Sequence[Row], failed: Sequence[CellResult] = ()) -> str:
    """Return a table per task, what failed, and the verdicts; bold differs from the reference."""
    lines = [
        f"# Ablation: {axis.name}",
        "",
        axis.question,
        "",
        f"Mean and 95 % interval over seeds. Reference: {axis.reference}. "
        "**Bold**: the paired difference from the reference excludes 0 (no correction for many "
        "comparisons); (+) better, (-) worse.",
    ]
    missing = {(result.cell.task.name, result.cell.variant.name) for result in failed}
    for task in dict.fromkeys(row.task for row in rows):
        empty = {variant for name, variant in missing if name == task}
        here = [row for row in rows if row.task == task]
        lines += ["", f"## {task}", "", *_task_table(axis, here, empty)]
    if failed:
        lines += ["", "## Failed, and so in no mean above", "", *map(_failure_line, failed)]
    lines += ["", "## Verdicts", "", *verdict_lines(axis, rows)]
    return "\n".join(lines) + "\n"


def _failure_line(result: CellResult) -> str:
    """Say which cell failed, and why."""
    cell = result.cell
    return f"- {cell.task.name}, {cell.variant.name}, seed {cell.seed}: {result.error}"


def verdict_lines(axis: Axis, rows: Sequence[Row]) -> list[str]:
    """Say for each claim and measure which variants beat the reference, and which lose to it."""
    lines = []
    for claim, names in CLAIMS.items():
        lines.append(f"- Claim: {claim} than {axis.reference}")
        told = [row for row in rows if row.measure.name in names and row.verdict != "reference"]
        groups = dict.fromkeys((row.task, row.measure.name) for row in told)
        for task, name in groups:
            here = [row for row in told if row.task == task and row.measure.name == name]
            parts = []
            for verdict in ("better", "worse", "no difference", "unknown"):
                chosen = [row for row in here if row.verdict == verdict]
                if chosen:
                    parts.append(f"{verdict}: {', '.join(_difference_text(r) for r in chosen)}")
            lines.append(f"  - {task}, {here[0].measure.label}: {'; '.join(parts)}")
        if not told:
            lines.append("  - not measured on these tasks")
    return lines


def _task_table(axis: Axis, rows: list[Row], empty: set[str]) -> list[str]:
    """Return a task's table; variants of ``empty`` have a column though nothing be measured."""
    measures = list(dict.fromkeys(row.measure for row in rows))
    told = empty | {row.variant for row in rows}
    variants = [variant.name for variant in axis.variants if variant.name in told]
    cells = {(row.variant, row.measure): row for row in rows}
    most = max(row.num_seeds for row in rows)
    header = ["measure", *variants]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for measure in measures:
        texts = [
            _cell_text(cells[variant, measure], most) if (variant, measure) in cells else ""
            for variant in variants
        ]
        lines.append("| " + " | ".join([measure.label, *texts]) + " |")
    return lines


def _cell_text(row: Row, most_seeds: int) -> str:
    value = row.value
    text = f"{value.estimate:.3g}"
    if not math.isnan(value.low):
        text += f" [{value.low:.3g}, {value.high:.3g}]"
    if row.num_seeds < most_seeds:
        text += f" (n = {row.num_seeds})"
    mark = {"better": " (+)", "worse": " (-)"}.get(row.verdict)
    return text if mark is None else f"**{text}**{mark}"


def _difference_text(row: Row) -> str:
    change = row.difference
    if math.isnan(change.low):
        return row.variant
    times = f", x {row.ratio:.2g}" if row.measure.name in _AS_RATIO else ""
    return f"{row.variant} ({change.estimate:+.2g} [{change.low:.2g}, {change.high:.2g}]{times})"


def _verdict(measure: Measure, difference: Interval) -> Verdict:
    if math.isnan(difference.low):  # one seed, or all of them differ alike
        return "no difference" if difference.estimate == 0.0 else "unknown"
    if difference.low <= 0.0 <= difference.high or measure.better == "neither":
        return "no difference"
    return "better" if (difference.estimate > 0) == (measure.better == "higher") else "worse"
