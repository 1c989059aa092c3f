"""Figures of the reverse chain: paths of samples over the landscape, and the score it follows.

In: an ``AgentEnergy`` of a denoising policy and views of a few states. Out: pngs.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.density import grid_points
from algd.experiments.figure_style import (
    BLUE,
    ORANGE,
    TWO_COLUMNS,
    new_figure,
    paper_style,
    save,
)
from algd.experiments.lab_landscape import label_actions, slice_note, state_title
from algd.experiments.lab_states import StateView, embed

Floats = NDArray[np.float64]

_PATHS_1D, _PATHS_2D = 40, 12
_SCORE_SPAN = 2.5  # of the latent u: tanh(2.5) = 0.987
_SCORE_NODES = {1: 201, 2: 15}
_QUADRATURE = {1: 801, 2: 121}  # nodes of the latent grid for the exact noised score
_QUADRATURE_SPAN = 4.0
_CONTOURS = 14
# Nodes around each point where the noise is finer than that grid, in units of the noise.
_LOCAL_NODES = np.linspace(-5.0, 5.0, 21)
_POINTS_AT_ONCE = 20


def draw_trajectories(probe: AgentEnergy, views: list[StateView], path: Path) -> Path:
    """Draw actions along the reverse chain, noisiest first, over the law or the energy."""
    with paper_style():
        figure, axes = new_figure(TWO_COLUMNS, 2.4, 1, len(views))
        for axis, view in zip(axes[0], views, strict=True):
            if len(view.grid) == 1:
                _paths_over_steps(axis, view, probe.trajectories(view.obs, _PATHS_1D))
            else:
                _paths_over_plane(figure, axis, view, probe.trajectories(view.obs, _PATHS_2D))
            axis.set_title(state_title(view))
        if len(views[0].grid) == 1:
            axes[0, 0].set_ylabel("normalised action")
            figure.suptitle("Denoising: paths (lines) and the law of the learnt energy (shade)")
        else:
            figure.suptitle(
                "Denoising over the energy (reward): from the prior (open) to the action (full)"
                + slice_note(views[0])
            )
        return save(figure, path)


def draw_scores(probe: AgentEnergy, views: list[StateView], path: Path) -> Path:
    """Draw the learnt score at three noise levels beside that of the agent's own noised law.

    Shown is sigma^2 * score, the shift that full denoising would make, in units of the latent.
    Beyond two action dimensions the exact score is not available and only the learnt one is drawn.
    """
    levels = sorted({0, len(probe.sigmas) // 2, len(probe.sigmas) - 1})
    flat = len(views[0].grid) == 1
    with paper_style():
        shown = views if flat else views[-1:]
        columns = len(shown) if flat else len(levels)
        figure, axes = new_figure(TWO_COLUMNS, 2.5 if flat else 3.0, 1, columns)
        if flat:
            for axis, view in zip(axes[0], shown, strict=True):
                _score_lines(axis, probe, view, levels)
                axis.set_title(state_title(view))
            axes[0, 0].set_ylabel(r"$\sigma^2\,\times$ score (latent)")
            axes[0, 0].legend(loc="best", fontsize=6)
        else:
            for axis, level in zip(axes[0], levels, strict=True):
                _score_arrows(axis, probe, shown[0], level)
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
            figure.suptitle(f"Score field, {state_title(shown[0])}" + slice_note(shown[0]))
        return save(figure, path)


def noised_score(probe: AgentEnergy, view: StateView, latent: Floats, level: int) -> Floats | None:
    """Score (P, A) of the agent's noised Boltzmann law at latents (P, A), by quadrature.

    None where the action has more than two dimensions.
    """
    dim = probe.action_dim
    if dim not in _QUADRATURE:
        return None
    axis = np.linspace(-_QUADRATURE_SPAN, _QUADRATURE_SPAN, _QUADRATURE[dim])
    alpha, sigma = probe.alphas[level], probe.sigmas[level]
    if sigma < 1.5 * (axis[1] - axis[0]):
        return _finely_noised_score(probe, view, latent, level)
    nodes = grid_points((axis,) * dim)
    log_clean = _log_clean(probe, view, nodes)
    square = np.square(latent[:, None] - alpha * nodes).sum(-1)
    log_weight = log_clean - 0.5 * square / sigma**2
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return (alpha * weight @ nodes - latent) / sigma**2


def _finely_noised_score(probe: AgentEnergy, view: StateView, latent: Floats, level: int) -> Floats:
    """Return the same by nodes of their own around each latent: E[noise | latent] / sigma."""
    alpha, sigma = probe.alphas[level], probe.sigmas[level]
    noise = grid_points((_LOCAL_NODES,) * probe.action_dim)
    scores = []
    for first in range(0, len(latent), _POINTS_AT_ONCE):
        points = latent[first : first + _POINTS_AT_ONCE]
        nodes = (points[:, None] + sigma * noise) / alpha
        log_clean = _log_clean(probe, view, nodes.reshape(-1, probe.action_dim))
        log_weight = log_clean.reshape(nodes.shape[:2]) - 0.5 * np.square(noise).sum(-1)
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        scores.append(weight @ noise / weight.sum(1, keepdims=True) / sigma)
    return np.concatenate(scores)


def _log_clean(probe: AgentEnergy, view: StateView, latent: Floats) -> Floats:
    """Log-density of the clean latent, up to a constant."""
    energy = probe.energy(view.obs, np.tanh(latent))
    # log(1 - tanh^2) without cancellation.
    jacobian = 2.0 * (np.log(2.0) - np.abs(latent) - np.log1p(np.exp(-2.0 * np.abs(latent))))
    return jacobian.sum(-1) - energy / probe.temperature


def _paths_over_steps(axis: Any, view: StateView, paths: Floats) -> None:
    steps = np.arange(len(paths))
    width = len(paths) - 1
    shade = np.tile(view.density[:, None], (1, 2))
    axis.imshow(
        shade,
        extent=(-0.3, width + 0.3, -1, 1),
        origin="lower",
        aspect="auto",
        cmap="Blues",
        alpha=0.8,
    )
    axis.plot(steps, paths[:, :, 0], color=ORANGE, linewidth=0.5, alpha=0.7)
    axis.plot(np.full(paths.shape[1], width), paths[-1, :, 0], ".", color="black", markersize=2)
    axis.set_xlabel("reverse steps taken")
    axis.set_ylim(-1, 1)


def _paths_over_plane(figure: Any, axis: Any, view: StateView, paths: Floats) -> None:
    above = view.own - view.own.min()
    shown = np.minimum(above, np.quantile(above, 0.9))
    filled = axis.contourf(*view.grid, shown.T, levels=_CONTOURS, cmap="viridis")
    figure.colorbar(filled, ax=axis, shrink=0.7, format="%.2g")
    # White lines with a dark rim stand out from either end of the colours.
    axis.plot(paths[:, :, 0], paths[:, :, 1], color="black", linewidth=1.1, alpha=0.6)
    axis.plot(paths[:, :, 0], paths[:, :, 1], color="white", linewidth=0.6)
    axis.plot(
        paths[0, :, 0], paths[0, :, 1], "o", markersize=3, color="white", mec="black", mew=0.5
    )
    axis.plot(paths[-1, :, 0], paths[-1, :, 1], "o", markersize=3, color=ORANGE)
    label_actions(axis, view)


def _score_lines(axis: Any, probe: AgentEnergy, view: StateView, levels: list[int]) -> None:
    latent = np.linspace(-_SCORE_SPAN, _SCORE_SPAN, _SCORE_NODES[1])[:, None]
    for place, level in enumerate(levels):
        sigma = probe.sigmas[level]
        points = probe.alphas[level] * latent
        colour = (BLUE, "#009E73", ORANGE)[place]
        learnt = probe.score(view.obs, points, level)[:, 0] * sigma**2
        axis.plot(latent, learnt, color=colour, label=rf"learnt, $\sigma$ = {sigma:.2g}")
        exact = noised_score(probe, view, points, level)
        if exact is not None:
            axis.plot(latent, exact[:, 0] * sigma**2, ":", color=colour, label="law of the energy")
    axis.axhline(0.0, color="black", linewidth=0.4)
    axis.set_xlabel(r"latent $u_t / \alpha_t$, action = tanh(u)")


def _score_arrows(axis: Any, probe: AgentEnergy, view: StateView, level: int) -> None:
    line = np.linspace(-_SCORE_SPAN, _SCORE_SPAN, _SCORE_NODES[2])
    plane = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    centre = np.arctanh(np.clip(view.mode, -0.999, 0.999))
    points = embed(plane, centre) * probe.alphas[level]
    sigma = probe.sigmas[level]
    fields = [("learnt", probe.score(view.obs, points, level), BLUE)]
    exact = noised_score(probe, view, points, level)
    if exact is not None:
        fields.insert(0, ("law of the learnt energy", exact, ORANGE))
    longest = max(np.linalg.norm(field[:, :2], axis=1).max() for _, field, _ in fields)
    for label, field, colour in fields:
        shift = field[:, :2] / longest
        axis.quiver(
            plane[:, 0], plane[:, 1], shift[:, 0], shift[:, 1], color=colour, scale=12, label=label
        )
    axis.set_title(rf"$\sigma$ = {sigma:.2g}, longest shift {longest * sigma**2:.2g}")
    axis.set_xlabel("latent 1")
    axis.set_ylabel("latent 2")
    axis.set_aspect("equal")
