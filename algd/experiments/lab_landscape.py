"""Figures of energies over actions: slices, laws and their modes.

In: views of a few states. Out: pngs. Of more than two action dimensions the first two are shown,
the others held at the policy's deterministic action; each title says so.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.experiments.figure_style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TWO_COLUMNS,
    new_figure,
    paper_style,
    save,
)
from algd.experiments.lab_states import StateView

Floats = NDArray[np.float64]

ACTION_LABEL = "normalised action {}"
_CONTOURS = 14
_MAX_SHOWN_SAMPLES = 300
_SMALLEST_SHOWN = 0.001
_CLIP_QUANTILE = 0.9  # of the energy: walls of a penalty would flatten everything else


def draw_energies(views: list[StateView], path: Path, *, exact: list[Floats] | None = None) -> Path:
    """Draw the energy without and with the augmentation at each state.

    Args:
        views: states.
        path: of the png.
        exact: the true energy on each view's grid, in the form that the agent samples from, up to
            a constant, where it is known (1-D).
    """
    one_dimensional = len(views[0].grid) == 1
    with paper_style():
        rows = 1 if one_dimensional else 2
        figure, axes = new_figure(TWO_COLUMNS, 2.5 if rows == 1 else 4.4, rows, len(views))
        for column, view in enumerate(views):
            if one_dimensional:
                truth = None if exact is None else exact[column]
                _energy_lines(axes[0, column], view, truth)
                axes[0, column].set_title(state_title(view))
                continue
            for row, name in enumerate(("plain", "augmented")):
                axis = axes[row, column]
                _energy_contours(figure, axis, view, getattr(view, name))
                axis.set_title(
                    f"{name} Lagrangian" + (f"\n{state_title(view)}" if row == 0 else "")
                )
        if one_dimensional:
            axes[0, 0].set_ylabel("energy above its minimum (reward)")
            _legend_below(figure, axes[0, 0])
        else:
            figure.suptitle(
                "White: samples; star: minimum. Energy above its minimum (reward)"
                + slice_note(views[0], of_samples=", but free in samples")
            )
        return save(figure, path)


def draw_laws(views: list[StateView], path: Path, *, exact: list[Floats] | None = None) -> Path:
    """Draw the Boltzmann law of the agent's energy, the policy's samples and the modes.

    Args:
        views: states.
        path: of the png.
        exact: the true law on each view's grid where it is known (1-D).
    """
    with paper_style():
        figure, axes = new_figure(
            TWO_COLUMNS, 2.6 if len(views[0].grid) == 1 else 2.9, 1, len(views)
        )
        for column, (axis, view) in enumerate(zip(axes[0], views, strict=True)):
            if len(view.grid) == 1:
                _law_lines(axis, view, None if exact is None else exact[column])
            else:
                _law_contours(axis, view)
            axis.set_title(_law_title(view))
        if len(views[0].grid) == 1:
            axes[0, 0].set_ylabel("probability density")
        _legend_below(figure, axes[0, 0])
        if len(views[0].grid) > 1:
            figure.suptitle(
                "Boltzmann law of the agent's energy and samples"
                + slice_note(views[0], of_samples=", but free in samples")
            )
        return save(figure, path)


def _legend_below(figure: Any, axis: Any) -> None:
    """Name what one panel shows below all of them, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def state_title(view: StateView) -> str:
    """Name a state by its multiplier, and by the observation where that is one number."""
    where = f"s = {float(view.obs[0]):.2f}, " if len(view.obs) == 1 else ""
    small = view.multiplier < _SMALLEST_SHOWN
    price = f"< {_SMALLEST_SHOWN}" if small else f"= {view.multiplier:.3g}"
    return f"{where}$\\lambda$(s) {price}"


def slice_note(view: StateView, *, of_samples: str = "") -> str:
    """Say what is held fixed in a slice, and of samples that are drawn on it that it is not."""
    held = len(view.mode) - len(view.grid)
    return f"; the other {held} action entries at the mode{of_samples}" if held else ""


def label_actions(axis: Any, view: StateView) -> None:
    """Name the axes of a slice of two dimensions."""
    axis.set_xlabel(ACTION_LABEL.format(1))
    axis.set_ylabel(ACTION_LABEL.format(2))
    axis.set_aspect("equal")
    axis.set_xlim(view.grid[0][[0, -1]])
    axis.set_ylim(view.grid[1][[0, -1]])


def _energy_lines(axis: Any, view: StateView, exact: Floats | None) -> None:
    actions = view.grid[0]
    lines = [("plain Lagrangian", view.plain, GREY, "--"), ("augmented", view.augmented, BLUE, "-")]
    if exact is not None:
        lines.append(("exact, in the agent's own form", exact, ORANGE, ":"))
    for label, values, colour, style in lines:
        axis.plot(actions, values - np.nanmin(values), color=colour, linestyle=style, label=label)
    axis.plot(
        view.samples[:60, 0],
        np.zeros(60),
        "|",
        color=GREEN,
        markersize=5,
        label="samples of the policy",
        clip_on=False,
    )
    axis.set_xlabel("normalised action")


def _energy_contours(figure: Any, axis: Any, view: StateView, values: Floats) -> None:
    above = values - values.min()
    shown = np.minimum(above, np.quantile(above, _CLIP_QUANTILE))
    filled = axis.contourf(*view.grid, shown.T, levels=_CONTOURS, cmap="viridis")
    figure.colorbar(filled, ax=axis, shrink=0.85, format="%.2g")
    shown_samples = view.samples[:_MAX_SHOWN_SAMPLES]
    axis.plot(
        shown_samples[:, 0],
        shown_samples[:, 1],
        ".",
        color="white",
        markersize=3,
        markeredgecolor=BLACK,
        markeredgewidth=0.25,
    )
    low = np.unravel_index(values.argmin(), values.shape)
    axis.plot(
        view.grid[0][low[0]],
        view.grid[1][low[1]],
        "*",
        color=ORANGE,
        markersize=8,
        markeredgecolor="white",
    )
    label_actions(axis, view)


def _law_lines(axis: Any, view: StateView, exact: Floats | None) -> None:
    axis.hist(
        view.samples[:, 0],
        bins=60,
        range=(-1, 1),
        density=True,
        color=GREEN,
        alpha=0.35,
        label="samples of the policy",
    )
    axis.plot(view.grid[0], view.density, color=BLUE, label="law of the learnt energy")
    if exact is not None:
        axis.plot(view.grid[0], exact, color=ORANGE, linestyle=":", label="exact law")
    if view.modes is not None:
        for centre, mass in zip(view.modes.centres, view.modes.masses, strict=True):
            height = np.interp(centre[0], view.grid[0], view.density)
            axis.annotate(
                f"{mass:.2f}", (centre[0], height), ha="center", va="bottom", fontsize=6, color=BLUE
            )
    axis.set_xlabel("normalised action")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])


def _law_contours(axis: Any, view: StateView) -> None:
    axis.contourf(*view.grid, view.density.T, levels=_CONTOURS, cmap="Blues")
    shown = view.samples[:_MAX_SHOWN_SAMPLES]
    axis.plot(shown[:, 0], shown[:, 1], ".", color=GREEN, markersize=2, label="samples")
    if view.modes is not None:
        centres = view.modes.centres
        axis.plot(
            centres[:, 0],
            centres[:, 1],
            "*",
            color=ORANGE,
            markersize=8,
            markeredgecolor="white",
            label="modes of the law",
        )
    label_actions(axis, view)


def _law_title(view: StateView) -> str:
    lines = state_title(view)
    if view.modes is None or view.coverage is None or view.error is None:
        return lines
    covered = int(view.coverage.covered.sum())
    distance = view.error
    return (
        f"{lines}\nbasins reached {covered}/{view.modes.num_modes}, "
        f"TV {distance.total_variation:.2f}"
    )
