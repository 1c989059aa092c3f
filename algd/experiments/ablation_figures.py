"""Figures of an ablation: measures over the variants, and the error of score targets.

In: rows of the table. Out: pngs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from algd.analysis.statistics import whiskers
from algd.experiments.ablation_plan import Axis
from algd.experiments.ablation_table import Row
from algd.experiments.figure_style import (
    BLACK,
    GREY,
    ONE_COLUMN,
    ORANGE,
    PALETTE,
    TWO_COLUMNS,
    new_figure,
    paper_style,
    save,
)

_PANEL_HEIGHT = 1.5
_GROUP_COLOURS = tuple(colour for colour in PALETTE if colour != ORANGE)  # of the goals
_SHOWN = {
    "conditioning and sampling": ("curvature", "convex", "tv_law", "tv_exact", "w1_exact"),
    "multiplier": ("multiplier_l1", "multiplier_hard_l1", "slackness", "multiplier_tv", "auroc"),
    "safety": ("excess", "violations", "training_violations", "infeasible", "cost_tv"),
    "outcome": ("return", "of_optimum", "both_islands", "cpu_seconds"),
}
# What this project set itself, by measure and task; drawn where it applies.
_GOALS = {
    ("tv_exact", "energy1"): 0.10,
    ("tv_exact", "energy2"): 0.15,
    ("multiplier_l1", "bandit"): 0.10,
    ("multiplier_l1", "finite"): 0.10,
    ("of_optimum", "corridor"): 0.95,
    ("violations", "corridor"): 0.01,
    ("auroc", "corridor"): 0.95,
    ("both_islands", "islands"): 0.95,
    ("infeasible", "islands"): 0.01,
}


def draw_ablation(axis: Axis, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw measures (rows) by task (columns): 95 % intervals, the reference, and goals."""
    figures = []
    for title, names in _SHOWN.items():
        chosen = [row for row in rows if row.measure.name in names]
        if not chosen:
            continue
        name = f"{axis.name}_{title.replace(' ', '_')}.png"
        figures.append(_draw_panels(axis, chosen, title, folder / name))
    return figures


def draw_score_errors(errors: Sequence[tuple[str, int, Any]], path: Path, *, dim: int) -> Path:
    """Draw the relative squared error of score targets over the noise level.

    Args:
        errors: (estimator, samples, ``ScoreError``).
        path: of the png.
        dim: of the law, named in the title.
    """
    kinds = list(dict.fromkeys(kind for kind, _, _ in errors))
    with paper_style():
        figure, axes = new_figure(TWO_COLUMNS, 2.5, 1, len(kinds))
        for axis, kind in zip(axes[0], kinds, strict=True):
            own = [(count, error) for name, count, error in errors if name == kind]
            for place, (count, error) in enumerate(own):
                colour = PALETTE[place % len(PALETTE)]
                axis.loglog(error.sigmas, error.total, color=colour, label=f"{count} samples")
                axis.loglog(error.sigmas, error.squared_bias, ":", color=colour, linewidth=0.8)
            axis.axhline(0.1, color=GREY, linewidth=0.8, linestyle="--")
            axis.set_title(kind)
            axis.set_xlabel(r"noise level $\sigma$ (latent)")
            axis.set_ylim(1e-4, 300)
        axes[0, 0].set_ylabel("squared error / E|score|²")
        axes[0, -1].legend(loc="upper left", fontsize=6, ncols=2)
        figure.suptitle(
            f"Score targets against the exact score, two modes in {dim}-D "
            "(dotted: squared bias; dashed: 0.1)"
        )
        return save(figure, path)


def _draw_panels(axis: Axis, rows: Sequence[Row], title: str, path: Path) -> Path:
    tasks = list(dict.fromkeys(row.task for row in rows))
    measures = list(dict.fromkeys(row.measure for row in rows))
    with paper_style():
        width = ONE_COLUMN if len(tasks) == 1 else TWO_COLUMNS
        height = 0.9 + _PANEL_HEIGHT * len(measures)
        figure, axes = new_figure(width, height, len(measures), len(tasks))
        for across, task in enumerate(tasks):
            for down, measure in enumerate(measures):
                panel = axes[down, across]
                here = [row for row in rows if row.task == task and row.measure == measure]
                _draw_panel(axis, panel, here, last=down == len(measures) - 1)
                if down == 0:
                    panel.set_title(task)
                if across == 0:
                    panel.set_ylabel(_wrapped(measure.label), fontsize=6.5)
        named: dict[str, Any] = {}
        for panel in axes.flat:
            handles, labels = panel.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        columns = min(len(named), 2 if width == ONE_COLUMN else 4)
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=max(columns, 1)
        )
        gap = "\n" if width == ONE_COLUMN else " "
        figure.suptitle(f"{axis.name}: {title}{gap}(95 % intervals over seeds)")
        return save(figure, path)


def _draw_panel(axis: Axis, panel: Any, rows: Sequence[Row], *, last: bool) -> None:
    if not rows:
        panel.text(0.5, 0.5, "not measured", ha="center", va="center", transform=panel.transAxes)
        panel.set_xticks([])
        panel.set_yticks([])
        return
    by_name = {row.variant: row for row in rows}
    places = {
        variant.name: float(index) if variant.position is None else variant.position
        for index, variant in enumerate(axis.variants)
    }
    groups = list(dict.fromkeys(variant.group for variant in axis.variants))
    for index, group in enumerate(groups):
        members = [v for v in axis.variants if v.group == group and v.name in by_name]
        if not members:
            continue
        names = [v.name for v in members]
        on_a_scale = len(members) > 1 and all(v.position is not None for v in members)
        values = [by_name[name].value for name in names]
        shift = 0.08 * (index - 0.5 * (len(groups) - 1))
        panel.errorbar(
            [places[name] + shift for name in names],
            [value.estimate for value in values],
            yerr=whiskers(values),
            fmt="o-" if on_a_scale else "s",
            markersize=3,
            linewidth=0.8,
            capsize=2,
            color=_GROUP_COLOURS[index % len(_GROUP_COLOURS)],
            label=group or "mean over seeds",
        )
    reference = by_name.get(axis.reference)
    if reference is not None:
        panel.axhline(
            reference.value.estimate,
            color=BLACK,
            linewidth=0.6,
            linestyle=":",
            label=f"reference: {axis.reference}",
        )
    goal = _GOALS.get((rows[0].measure.name, rows[0].task))
    if goal is not None:
        panel.axhline(goal, color=ORANGE, linewidth=0.8, linestyle="--", label="goal")
    _label_variants(axis, panel, places, last=last)


def _label_variants(axis: Axis, panel: Any, places: dict[str, float], *, last: bool) -> None:
    """Name each place along x once; where several groups share it, by what they share."""
    names: dict[float, str] = {}
    for variant in axis.variants:
        text = variant.name
        if variant.group and text.startswith(variant.group):
            text = text[len(variant.group) :].strip()
        names.setdefault(places[variant.name], text)
    panel.set_xticks(list(names))
    if last:
        panel.set_xticklabels(list(names.values()), rotation=45, ha="right")
        panel.set_xlabel(axis.x_label)
    else:
        panel.set_xticklabels([])


def _wrapped(label: str) -> str:
    """Break a label once, near its middle."""
    words, lines = label.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > 16:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
