"""Means of training metrics between two rows, and what a row must never hold in silence.

In: detached metrics of each update, state of an agent. Out: means, read on the host once per row;
``DivergenceError`` for what is not finite; a warning for a multiplier that stays at its bound.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from alam.types import Metrics

AT_BOUND = "train/multiplier_at_bound"
_BOUND_SHARE = 0.99
_BOUND_ROWS = 10  # so many rows in a row: a multiplier may well visit its bound early in training
_log = logging.getLogger("algd")


class MetricWindow:
    """Means of detached metrics since the last row, summed on their device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        """Add one value per metric."""
        for name, value in metrics.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the means; the one place where metrics reach the host."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def clear(self) -> None:
        """Start a new window."""
        self.sums, self.counts = {}, {}


def first_not_finite(tree: Any) -> str | None:
    """Return the path of the first floating tensor that holds NaN or an infinity, else None.

    One read from the device for the whole tree. Of an agent's state this covers weights, the
    multiplier, and gradients, too: they leave their trace in the moments of the optimisers.
    """
    named = list(_floating_tensors(tree, ""))
    if not named:
        return None
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return next((path for (path, _), good in zip(named, finite, strict=True) if not good), None)


def _floating_tensors(tree: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield path, tree.detach()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _floating_tensors(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _floating_tensors(value, f"{path}/{index}")


class BoundWatch:
    """Says once that the multiplier has come to its bound and stays there."""

    def __init__(self, *, multiplier_max: float | None, cost_limit: float) -> None:
        self._multiplier_max = multiplier_max
        self._cost_limit = cost_limit
        self._rows = 0

    def observe(self, env_step: int, means: dict[str, float]) -> None:
        """Look at one row."""
        if means.get(AT_BOUND, 0.0) < _BOUND_SHARE:
            self._rows = 0
            return
        self._rows += 1
        if self._rows == _BOUND_ROWS:
            _log.warning(
                "step %d: the multiplier stays at multiplier.multiplier_max = %g; no policy found "
                "so far meets constraint.cost_limit = %g, the task may be infeasible",
                env_step,
                self._multiplier_max,
                self._cost_limit,
            )
