"""How well critic and multiplier foresee cost: numbers, and the figure of them.

In: an ``AgentEnergy`` and rollouts of the policy and of uniform actions. Out: ``Foresight`` and a
png. A later violation is an observed cost to go above the constraint's threshold.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.calibration import CriticCalibration, auroc, critic_calibration, rank_correlation
from algd.experiments.figure_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    TWO_COLUMNS,
    new_figure,
    paper_style,
    save,
)
from algd.experiments.lab_rollouts import Rollouts

Floats = NDArray[np.float64]

_BINS = 10
_MIN_STEPS = 20


@dataclass(frozen=True)
class Foresight:
    """Predictions and what came, of the steps whose cost to go is known.

    predicted, observed: (N,) cost to go by the critic and as it came. multiplier: (N,). violated:
    (N,) whether ``observed`` exceeds the threshold. calibration: critic against observation.
    multiplier_auroc, critic_auroc: of either for ``violated``, NaN where all steps are alike.
    multiplier_rank: rank correlation of the multiplier with the observed cost to go.
    """

    predicted: Floats
    observed: Floats
    multiplier: Floats
    violated: NDArray[np.bool_]
    calibration: CriticCalibration
    multiplier_auroc: float
    critic_auroc: float
    multiplier_rank: float


def measure_foresight(probe: AgentEnergy, rollouts: Rollouts) -> Foresight | None:
    """Compare predictions with what came; None where fewer than 20 steps are complete.

    A cost to go is known where the episode terminated, or went on until what it left unseen weighs
    less than 5 %.
    """
    rows = rollouts.complete
    if rows.sum() < _MIN_STEPS:
        return None
    obs, actions = rollouts.obs[rows], rollouts.actions[rows]
    predicted = probe.q_cost(obs, actions)
    observed, multiplier = rollouts.observed[rows], probe.multiplier(obs)
    violated = observed > probe.threshold
    return Foresight(
        predicted=predicted,
        observed=observed,
        multiplier=multiplier,
        violated=violated,
        calibration=critic_calibration(predicted, observed),
        multiplier_auroc=_auroc(multiplier, violated),
        critic_auroc=_auroc(predicted, violated),
        multiplier_rank=rank_correlation(multiplier, observed),
    )


def draw_calibration(
    policy: Foresight | None,
    random: Foresight | None,
    path: Path,
    *,
    threshold: float,
    env_id: str,
) -> Path:
    """Draw the critic's reliability, and receiver operating curves of critic and multiplier.

    Args:
        policy, random: foresight on episodes of the policy and of uniform actions.
        path: of the png.
        threshold: limit on the cost critic, drawn as lines.
        env_id: named in the title.
    """
    with paper_style():
        figure, axes = new_figure(TWO_COLUMNS, 3.1, 1, 3)
        _reliability(axes[0, 0], policy, threshold)
        axes[0, 0].set_title("critic, episodes of the policy")
        _curves(axes[0, 1], policy)
        axes[0, 1].set_title("violation ahead,\nepisodes of the policy")
        _curves(axes[0, 2], random)
        axes[0, 2].set_title("violation ahead,\nuniform actions")
        figure.suptitle(f"{env_id}: calibration")
        return save(figure, path)


def _auroc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    return auroc(scores, positive)


def _reliability(axis: Any, foresight: Foresight | None, threshold: float) -> None:
    if foresight is None:
        _say_nothing(axis, "no step whose\ncost to go is known")
        return
    predicted, observed = foresight.predicted, foresight.observed
    order = np.argsort(predicted)
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    centres = np.array([predicted[group].mean() for group in groups])
    means = np.array([observed[group].mean() for group in groups])
    quartiles = np.array([np.quantile(observed[group], [0.25, 0.75]) for group in groups]).T
    axis.fill_between(centres, *quartiles, color=BLUE, alpha=0.2, label="middle half")
    axis.plot(centres, means, "o-", color=BLUE, markersize=3, label="mean of a tenth")
    ends = np.array([min(0.0, centres[0]), max(centres[-1], means.max())])
    axis.plot(ends, ends, "--", color=GREY, linewidth=0.8, label="calibrated")
    axis.axhline(threshold, color=ORANGE, linewidth=0.8, linestyle=":", label="threshold")
    axis.axvline(threshold, color=ORANGE, linewidth=0.8, linestyle=":")
    axis.set_xlabel("critic $Q_c$(s, a) (cost)")
    axis.set_ylabel("observed cost to go (cost)")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, fontsize=6)


def _curves(axis: Any, foresight: Foresight | None) -> None:
    if foresight is None:
        _say_nothing(axis, "no step whose\ncost to go is known")
        return
    if np.isnan(foresight.critic_auroc):
        share = foresight.violated.mean()
        _say_nothing(axis, f"all steps alike:\nviolation ahead in {share:.0%}")
        return
    for name, scores, area, colour in (
        (r"$\lambda$(s)", foresight.multiplier, foresight.multiplier_auroc, BLUE),
        ("$Q_c$(s, a)", foresight.predicted, foresight.critic_auroc, GREEN),
    ):
        false_rate, true_rate = _operating_curve(scores, foresight.violated)
        axis.plot(false_rate, true_rate, color=colour, label=f"{name}, area {area:.3f}")
    axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8, label="chance, area 0.5")
    axis.set_xlabel("false alarms (share of safe steps)")
    axis.set_ylabel("foreseen (share of violations)")
    axis.set_aspect("equal")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), fontsize=6)


def _operating_curve(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """False and true positive rates as the alarm level falls; ties move together."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[ends]
    alarms = ends + 1
    true_rate = np.append(0.0, hits / positive.sum())
    false_rate = np.append(0.0, (alarms - hits) / (~positive).sum())
    return false_rate, true_rate


def _say_nothing(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_xticks([])
    axis.set_yticks([])
