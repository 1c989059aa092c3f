"""How well multipliers and critics agree with the truth, and how steadily they move.

In: arrays of estimates, truths, violations or logged values. Out: numbers without units, or in the
units of the input where said. Nothing here knows an agent or an environment.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def relative_l1(estimate: ArrayLike, truth: ArrayLike, *, where: ArrayLike | None = None) -> float:
    """Return sum |estimate - truth| / sum |truth|, over the entries that ``where`` marks.

    Raises:
        ValueError: shapes differ, or the truth is zero on every entry asked for.
    """
    guess, exact = _same_shape(estimate, truth, "estimate", "truth")
    if where is not None:
        chosen = np.asarray(where, dtype=bool)
        guess, exact = guess[chosen], exact[chosen]
    scale = np.abs(exact).sum()
    if scale == 0.0:
        raise ValueError("relative_l1 needs a truth that is not zero everywhere it is compared")
    return float(np.abs(guess - exact).sum() / scale)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's correlation in [-1, 1]; ties share their mean rank.

    NaN where either is constant or holds a NaN: no order to agree with.
    """
    one, other = _same_shape(first, second, "first", "second")
    if np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    ranks = _mean_ranks(one.ravel()), _mean_ranks(other.ravel())
    one_centred, other_centred = (rank - rank.mean() for rank in ranks)
    scale = np.sqrt(np.square(one_centred).sum() * np.square(other_centred).sum())
    return float(one_centred @ other_centred / scale) if scale > 0.0 else float("nan")


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return P(a positive scores above a negative), ties counting half (area under the ROC).

    NaN where a score is.

    Raises:
        ValueError: only one of the two classes is present.
    """
    labels = np.asarray(positive, dtype=bool).ravel()
    values = np.asarray(scores, dtype=np.float64).ravel()
    if values.shape != labels.shape:
        raise ValueError(f"scores and positive must match, got {values.shape}, {labels.shape}")
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if num_positive == 0 or num_negative == 0:
        raise ValueError(
            f"auroc needs both classes, got {num_positive} positive and {num_negative} negative"
        )
    if np.isnan(values).any():
        return float("nan")
    rank_sum = _mean_ranks(values)[labels].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def slackness_residual(multiplier: ArrayLike, violation: ArrayLike) -> float:
    """Return mean |multiplier * violation|, in units of reward; 0 at a KKT point."""
    price, excess = _same_shape(multiplier, violation, "multiplier", "violation")
    return float(np.abs(price * excess).mean())


def kkt_residual(multiplier: ArrayLike, violation: ArrayLike, *, penalty_coef: float) -> float:
    """Return mean |multiplier - [multiplier + penalty_coef * violation]_+|.

    Zero exactly where multiplier >= 0, violation <= 0 and their product is 0: unlike
    ``slackness_residual`` it also sees a violated constraint that has no multiplier yet.
    """
    if not penalty_coef > 0:
        raise ValueError(f"penalty_coef must be positive, got {penalty_coef}")
    price, excess = _same_shape(multiplier, violation, "multiplier", "violation")
    return float(np.abs(price - np.maximum(price + penalty_coef * excess, 0.0)).mean())


def oscillation(values: ArrayLike, updates: ArrayLike, *, per_updates: float = 1000.0) -> float:
    """Return the total variation of a logged value per ``per_updates`` updates, in its own units.

    Args:
        values: (N,) in the order logged, N >= 2.
        updates: (N,) update counts, increasing.
        per_updates: length of the reference interval.
    """
    series, counts = _same_shape(values, updates, "values", "updates")
    if series.ndim != 1 or len(series) < 2 or not (np.diff(counts) > 0).all():
        raise ValueError("oscillation needs at least two values at increasing update counts")
    return float(np.abs(np.diff(series)).sum() * per_updates / (counts[-1] - counts[0]))


def cost_to_go(costs: ArrayLike, *, discount: float, final_value: float = 0.0) -> Floats:
    """Return sum_k discount^k cost_{t+k} for every step t of one episode, shape (T,).

    Args:
        costs: (T,) costs of the episode's steps.
        discount: in [0, 1].
        final_value: cost to go after the last step: 0 where the episode terminated, an estimate
            where it was cut off.
    """
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    steps = np.asarray(costs, dtype=np.float64)
    totals = np.empty_like(steps)
    following = final_value
    for index in range(len(steps) - 1, -1, -1):
        following = steps[index] + discount * following
        totals[index] = following
    return totals


@dataclass(frozen=True)
class CriticCalibration:
    """A critic against observed costs to go.

    bias: mean prediction minus mean observation; positive is pessimistic for a cost.
    root_mean_square_error: of single predictions.
    slope: of the least-squares line of observation on prediction; 1 is calibrated, NaN where the
        predictions do not vary.
    rank_correlation: Spearman's.
    """

    bias: float
    root_mean_square_error: float
    slope: float
    rank_correlation: float


def critic_calibration(predicted: ArrayLike, observed: ArrayLike) -> CriticCalibration:
    """Compare predicted with observed costs to go, element by element."""
    guess, exact = _same_shape(predicted, observed, "predicted", "observed")
    error = guess - exact
    spread = guess - guess.mean()
    variance = np.square(spread).sum()
    return CriticCalibration(
        bias=float(error.mean()),
        root_mean_square_error=float(np.sqrt(np.square(error).mean())),
        slope=float((spread * exact).sum() / variance) if variance > 0.0 else float("nan"),
        rank_correlation=rank_correlation(guess, exact),
    )


def _mean_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of the ranks they take up."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[position]


def _same_shape(
    first: ArrayLike, second: ArrayLike, name: str, other: str
) -> tuple[Floats, Floats]:
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape or one.size == 0:
        raise ValueError(
            f"{name} and {other} must match and not be empty, got shapes {one.shape}, {two.shape}"
        )
    return one, two
