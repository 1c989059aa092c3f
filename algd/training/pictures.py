"""Pictures of what an agent holds of the states it is in: energy landscapes, multiplier map.

In: an agent and normalised observations. Out: RGB arrays with axes and units, and the multipliers.
Made to be cheap beside an evaluation: two batched passes over the critics and two small figures.
Energies are in reward, multipliers in reward per unit of the cost critic, actions in [-1, 1].
"""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from algd.experiments.config import TrainedAgent

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]

_QUANTILES = (0.1, 0.5, 0.95)  # of the multiplier: the states whose landscape is drawn
_SLICE_POINTS = {1: 201, 2: 31}
_CONTOURS = 12
_CLIP_QUANTILE = 0.9  # of the energy: walls of a penalty would flatten everything else
_DPI = 100
_PRICE = "multiplier (reward per unit of cost critic)"


class Landscape(NamedTuple):
    """Energies on a slice of actions at a few states.

    line: (P,) values of each shown action entry. energy: (V, P) or (V, P, P), in reward above its
    minimum, entry 0 first. mode: (V, A) deterministic actions, where the slice lies.
    multiplier: (V,).
    """

    line: Floats
    energy: Floats
    mode: Floats
    multiplier: Floats


@dataclass(frozen=True)
class PolicyPictures:
    """Images by name, empty where matplotlib is missing, and lambda(s) of the observations."""

    images: dict[str, Image]
    multipliers: Floats


def can_draw() -> bool:
    """Say whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@torch.no_grad()
def multipliers(agent: "TrainedAgent", obs: Float[Tensor, "B O"], *, reward_scale: float) -> Floats:
    """Return lambda(s) of normalised observations, in reward per unit of the cost critic."""
    value = agent.multiplier(obs.to(agent.device)).double().cpu().numpy()
    return value / (float(agent.constraint.unit) * reward_scale)


@torch.no_grad()
def landscape(
    agent: "TrainedAgent", obs: Float[Tensor, "B O"], *, reward_scale: float
) -> Landscape:
    """Evaluate the energy around the deterministic action at low, median and high multiplier."""
    prices = multipliers(agent, obs, reward_scale=reward_scale)
    order = np.argsort(prices, kind="stable")
    chosen = order[[round(quantile * (len(order) - 1)) for quantile in _QUANTILES]]
    views = obs[torch.from_numpy(chosen).to(obs.device)].to(agent.device)
    generator = torch.Generator().manual_seed(0)
    mode = agent.act(views.cpu().numpy(), generator=generator, deterministic=True)
    shown = min(agent.action_dim, 2)
    line = torch.linspace(-1.0, 1.0, _SLICE_POINTS[shown])
    grid = torch.cartesian_prod(*[line] * shown).reshape(-1, shown)
    actions = torch.from_numpy(mode).expand(len(grid), *mode.shape).clone()
    actions[..., :shown] = grid[:, None]
    energy, _ = agent.evaluate(views, actions.to(agent.device))
    values = energy.T.double().cpu().numpy() / reward_scale
    values = (values - values.min(1, keepdims=True)).reshape(-1, *[len(line)] * shown)
    return Landscape(line.double().numpy(), values, mode.astype(np.float64), prices[chosen])


def draw_pictures(
    agent: "TrainedAgent", obs: Float[Tensor, "B O"], *, reward_scale: float, title: str
) -> PolicyPictures:
    """Draw ``energy`` and ``multiplier_map`` for normalised observations (B, O)."""
    prices = multipliers(agent, obs, reward_scale=reward_scale)
    if not can_draw():
        return PolicyPictures({}, prices)
    view = landscape(agent, obs, reward_scale=reward_scale)
    images = {
        "energy": _draw_landscape(view, title),
        "multiplier_map": _draw_multipliers(obs.double().cpu().numpy(), prices, title),
    }
    return PolicyPictures(images, prices)


def principal_plane(obs: Floats) -> Floats:
    """Return the coordinates (B, 2) of observations (B, O >= 2) along their widest directions."""
    centred = obs - obs.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary; fixed, pictures of one run resemble each other.
    leading = directions[:2]
    largest = leading[np.arange(2), np.abs(leading).argmax(1)]
    return centred @ (leading * np.sign(largest)[:, None]).T


def _draw_landscape(view: Landscape, title: str) -> Image:
    figure = _new_figure(9.0, 3.4)
    axes = figure.subplots(1, len(view.energy), squeeze=False)[0]
    for axis, energy, mode, price in zip(
        axes, view.energy, view.mode, view.multiplier, strict=True
    ):
        axis.set_title(f"multiplier {price:.3g}")
        axis.set_xlabel("normalised action 0")
        if energy.ndim == 1:
            axis.plot(view.line, energy)
            axis.axvline(mode[0], linestyle="--", color="black", linewidth=1)
            axis.set_ylabel("energy above its minimum (reward)")
            continue
        top = max(float(np.quantile(energy, _CLIP_QUANTILE)), 1e-12)
        levels = np.linspace(0.0, top, _CONTOURS)
        shown = axis.contourf(view.line, view.line, energy.T, levels=levels, extend="max")
        axis.plot(mode[0], mode[1], "*", color="white", markeredgecolor="black", markersize=10)
        axis.set_ylabel("normalised action 1")
        figure.colorbar(shown, ax=axis, label="energy above its minimum (reward)")
    rest = view.mode.shape[1] - 2
    held = f"; the other {rest} action entries as there" if rest > 0 else ""
    figure.suptitle(f"{title}\nenergy, the deterministic action marked{held}", fontsize=10)
    return _rendered(figure)


def _draw_multipliers(obs: Floats, prices: Floats, title: str) -> Image:
    figure = _new_figure(5.0, 3.8)
    axis = figure.subplots()
    if obs.shape[1] == 1:
        order = np.argsort(obs[:, 0])
        axis.plot(obs[order, 0], prices[order], ".-")
        axis.set_xlabel("normalised observation")
        axis.set_ylabel(_PRICE)
    else:
        plane = principal_plane(obs)
        points = axis.scatter(plane[:, 0], plane[:, 1], c=prices, s=8, cmap="viridis")
        axis.set_xlabel("first principal direction of normalised observations")
        axis.set_ylabel("second principal direction")
        figure.colorbar(points, ax=axis, label=_PRICE)
    axis.set_title(f"{title}\nmultiplier of replayed states", fontsize=10)
    return _rendered(figure)


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing global is touched or left open.
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _rendered(figure: Any) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
