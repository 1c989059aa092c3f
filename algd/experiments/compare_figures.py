"""Figures of a comparison: learning curves, the plane of return and cost, bars of an ablation.

In: comparisons. Out: PNG and PDF files, three figures per environment. Bands and whiskers are 95 %
intervals over runs, by the estimators of ``algd.analysis.statistics``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from algd.analysis.statistics import bootstrap_band, interquartile_mean, whiskers
from algd.experiments.compare import ALL_ENVIRONMENTS, COST, RETURN, Comparison, Row
from algd.experiments.compare_groups import cut_label
from algd.experiments.figure_style import PALETTE
from algd.experiments.run_data import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
_LIMIT_COLOR = "#B00020"
_DPI = 150
_BAND_RESAMPLES = 4_000
_MOST_POINTS = 200
_LONGEST_LABEL = 50
_TWO_COLUMNS = 30  # letters of the longest label
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
    "savefig.dpi": _DPI,
    "pdf.fonttype": 42,  # letters stay text
    "text.parse_math": False,  # a $ in a label is a $
}


def write_figures(comparisons: Sequence[Comparison], directory: Path) -> list[Path]:
    """Write ``curves``, ``plane`` and ``ablation`` of each environment; return the PNG files."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = []
    several = len(comparisons) > 1
    draw = {"curves": curves_figure, "plane": plane_figure, "ablation": ablation_figure}
    for comparison in comparisons:
        if comparison.env_id == ALL_ENVIRONMENTS:  # returns of different environments have no axis
            continue
        suffix = f"_{re.sub(r'[^A-Za-z0-9]+', '-', comparison.env_id)}" if several else ""
        with matplotlib.rc_context(_STYLE):
            for name, make in draw.items():
                figure = make(comparison)
                FigureCanvasAgg(figure)
                path = directory / f"{name}{suffix}.png"
                figure.savefig(path)
                figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
                written.append(path)
    return written


def curves_figure(comparison: Comparison) -> "Figure":
    """Draw evaluated return and cost over environment steps, with the cost limit."""
    figure, (top, bottom) = _axes(2, 1, figsize=(7.0, 5.6), sharex=True)
    for k, row in enumerate(comparison.rows):
        for axes, name in ((top, comparison.score), (bottom, COST)):
            steps, values = on_common_steps([run.metrics[name] for run in row.group.runs])
            color, dash = _look(k)
            middle = interquartile_mean(values.T)
            axes.plot(steps, middle, color=color, linestyle=dash, label=_label(row, k, len(values)))
            low, high = bootstrap_band([values], resamples=_BAND_RESAMPLES)
            if np.isfinite(low).any():
                axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    _draw_limits(bottom, comparison, vertical=False)
    top.set_ylabel(_score_name(comparison))
    bottom.set_ylabel("cost per episode")
    bottom.set_xlabel("environment steps")
    bottom.set_ylim(bottom=0)
    top.set_title(f"{comparison.env_id}: interquartile mean over runs, 95 % intervals")
    _legend_below(figure, top)
    return figure


def plane_figure(comparison: Comparison) -> "Figure":
    """Draw last return over last cost: runs as dots, groups as crosses, the Pareto front."""
    figure, (axes,) = _axes(1, 1, figsize=(7.0, 5.0))
    limits = {one.cost_limit for row in comparison.rows for one in row.summaries}
    axes.axvspan(0, min(limits), color="#009E73", alpha=0.07, linewidth=0)
    for k, row in enumerate(comparison.rows):
        color, _ = _look(k)
        axes.scatter(
            [one.final_cost for one in row.summaries],
            [one.final_return for one in row.summaries],
            s=14,
            color=color,
            alpha=0.45,
            linewidth=0,
        )
        cost, value = row.values["cost"], row.values["return"]
        axes.errorbar(
            [cost.estimate],
            [value.estimate],
            xerr=whiskers([cost]),
            yerr=whiskers([value]),
            fmt="o",
            color=color,
            label=_label(row, k),
        )
    points = np.array(
        [(row.values["cost"].estimate, row.values["return"].estimate) for row in comparison.rows]
    )
    _draw_limits(axes, comparison, vertical=True)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    if comparison.score == RETURN:  # of other scores more may be worse
        _draw_front(axes, points[pareto_front(points[:, 0], points[:, 1])])
    axes.set_xlabel("cost per episode, last evaluation")
    axes.set_ylabel(f"{_score_name(comparison)}, last evaluation")
    axes.set_title(f"{comparison.env_id}: groups with 95 % intervals, dots are runs")
    _legend_below(figure, axes)
    return figure


def ablation_figure(comparison: Comparison) -> "Figure":
    """Draw one bar per group for return and cost, in the order of the groups."""
    rows = comparison.rows
    height = 1.6 + 0.42 * len(rows)
    figure, (left, right) = _axes(1, 2, figsize=(9.0, height), sharey=True)
    places = np.arange(len(rows))
    for axes, key in ((left, "return"), (right, "cost")):
        intervals = [row.values[key] for row in rows]
        axes.barh(
            places,
            [interval.estimate for interval in intervals],
            xerr=whiskers(intervals),
            color=[_look(k)[0] for k in range(len(rows))],
            alpha=0.8,
            height=0.65,
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "0.2"},
        )
        axes.grid(visible=False, axis="y")
    names = [row.group.label == comparison.baseline for row in rows]
    left.set_yticks(
        places,
        [
            f"{_label(row, k)}{' (baseline)' if is_baseline else ''}"
            for k, (row, is_baseline) in enumerate(zip(rows, names, strict=True))
        ],
    )
    left.invert_yaxis()
    if True in names:
        baseline = rows[names.index(True)].values["return"].estimate
        left.axvline(baseline, color="0.3", linewidth=1, linestyle=":")
    _draw_limits(right, comparison, vertical=True)
    left.set_xlabel(f"{_score_name(comparison)}, last evaluation")
    right.set_xlabel("cost per episode, last evaluation")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.5 / height), frameon=False)
    figure.suptitle(f"{comparison.env_id}: interquartile mean over runs, 95 % intervals")
    return figure


def pareto_front(costs: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Return indices of the points that no other beats in cost and return, by rising cost."""
    front: list[int] = []
    for k in np.lexsort((-returns, costs)):
        if not front or returns[k] > returns[front[-1]]:
            front.append(int(k))
    return np.array(front, dtype=int)


def on_common_steps(curves: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (T,) as far as at least half of the curves go, and their values there, (n, T).

    Curves that end earlier, as those of crashed runs, are left out. Between its own points a curve
    is a straight line.
    """
    last = sorted(int(curve.steps[-1]) for curve in curves)[(len(curves) - 1) // 2]
    curves = [curve for curve in curves if curve.steps[-1] >= last]
    first = max(int(curve.steps[0]) for curve in curves)
    own = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = own[(own >= first) & (own <= last)]
    if len(steps) == 0:
        steps = np.array([last])
    if len(steps) > _MOST_POINTS:
        steps = np.linspace(steps[0], steps[-1], _MOST_POINTS)
    return steps, np.stack([np.interp(steps, curve.steps, curve.values) for curve in curves])


def _axes(rows: int, columns: int, **options: Any) -> tuple["Figure", list["Axes"]]:
    """Return a figure and its axes without touching pyplot's global state."""
    from matplotlib.figure import Figure

    share = {key: options.pop(key) for key in ("sharex", "sharey") if key in options}
    figure = Figure(**options)
    return figure, list(np.ravel(figure.subplots(rows, columns, **share)))


def _draw_limits(axes: "Axes", comparison: Comparison, *, vertical: bool) -> None:
    draw = axes.axvline if vertical else axes.axhline
    for limit in sorted({one.cost_limit for row in comparison.rows for one in row.summaries}):
        draw(
            limit, color=_LIMIT_COLOR, linestyle="--", linewidth=1.2, label=f"cost limit {limit:g}"
        )


def _draw_front(axes: "Axes", front: np.ndarray) -> None:
    """Draw the border of what the front dominates, out to the frame."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    axes.step(
        [front[0, 0], *front[:, 0], right],
        [bottom, *front[:, 1], front[-1, 1]],
        where="post",
        color="0.4",
        linewidth=1,
        linestyle=":",
        label="Pareto front",
    )
    axes.set_xlim(right=right)
    axes.set_ylim(bottom=bottom)


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    handles: dict[str, Any] = {}
    for one in [axes, *figure.axes]:
        handles |= dict(zip(*reversed(one.get_legend_handles_labels()), strict=True))
    longest = max(map(len, handles))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=2 if longest < _TWO_COLUMNS else 1,
        frameon=False,
    )


def _look(k: int) -> tuple[str, str]:
    return PALETTE[k % len(PALETTE)], _DASHES[k // len(PALETTE) % len(_DASHES)]


def _label(row: Row, k: int, drawn: int | None = None) -> str:
    """Return the label of group k and its number of runs; of how many if not all are drawn.

    A label that is cut has the number of its row in the table.
    """
    runs = len(row.group.runs)
    label = cut_label(row.group.label, k + 1, _LONGEST_LABEL)
    return f"{label} (n = {runs if drawn in (None, runs) else f'{drawn} of {runs}'})"


def _score_name(comparison: Comparison) -> str:
    return comparison.score.removeprefix("eval/") + " per episode"
