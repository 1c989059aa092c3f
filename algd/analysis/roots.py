"""Roots of many decreasing functions at once: where slack vanishes in a multiplier.

In: a vectorised decreasing function of the multiplier. Out: its non-negative roots.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_DOUBLINGS = 60
_MAX_STEPS = 200


def nonnegative_root(
    residual: Callable[[Floats], Floats], size: int, *, tolerance: float = 1e-10
) -> Floats:
    """Solve residual(x) = 0 for x >= 0 elementwise; 0 where residual(0) <= 0 already.

    This is complementary slackness: x >= 0, residual(x) <= 0, x * residual(x) = 0.

    Args:
        residual: maps (size,) to (size,); element i is non-increasing in element i of its argument
            and negative for a large enough one.
        size: number of independent equations.
        tolerance: width of the final bracket, in units of x.

    Raises:
        ArithmeticError: some residual stays positive however large the argument is.
    """
    lower = np.zeros(size)
    at_lower = residual(lower)
    solved = at_lower <= 0.0
    upper = np.where(solved, 0.0, 1.0)
    at_upper = np.where(solved, at_lower, residual(upper))
    for _ in range(_MAX_DOUBLINGS):
        above = at_upper > 0.0
        if not above.any():
            break
        lower, at_lower = np.where(above, upper, lower), np.where(above, at_upper, at_lower)
        upper = np.where(above, 2.0 * upper, upper)
        at_upper = np.where(above, residual(upper), at_upper)
    else:
        raise ArithmeticError("no multiplier, however large, meets the constraint")
    for step in range(_MAX_STEPS):
        if (upper - lower <= tolerance).all():
            break
        middle = 0.5 * (lower + upper)
        # A secant step is fast near the root; every third step halves, which bounds the count.
        if step % 3 != 2:
            middle = _secant_inside(lower, at_lower, upper, at_upper, tolerance)
        at_middle = residual(middle)
        above = at_middle > 0.0
        lower, at_lower = np.where(above, middle, lower), np.where(above, at_middle, at_lower)
        upper, at_upper = np.where(above, upper, middle), np.where(above, at_upper, at_middle)
    return np.where(solved, 0.0, 0.5 * (lower + upper))


def _secant_inside(
    lower: Floats, at_lower: Floats, upper: Floats, at_upper: Floats, tolerance: float
) -> Floats:
    """Cross the chord with zero, then step a little past it so that both ends close in."""
    drop = at_lower - at_upper
    share = np.divide(at_lower, drop, out=np.full_like(drop, 0.5), where=drop > 0.0)
    crossing = lower + share * (upper - lower)
    nudge = np.maximum(0.01 * np.minimum(crossing - lower, upper - crossing), 0.4 * tolerance)
    towards_far_end = np.where(crossing - lower < upper - crossing, nudge, -nudge)
    return np.clip(crossing + towards_far_end, lower, upper)
