"""Means of training metrics between two rows, and what a row must never hold in silence.

In: detached metrics of each update, state of an agent. Out: means, read on the host once per row;
``DivergenceError`` for what is not finite; a warning for a multiplier that stays at its bound.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alam.types import Metrics

AT_BOUND = "train/multiplier_at_bound"
_BOUND_SHARE = 0.99
_BOUND_ROWS = 10  # so many rows in a row: a multiplier may well visit its bound early in training
_log = logging.getLogger("algd")


def stacked(metrics: Metrics) -> tuple[tuple[str, ...], Float[Tensor, "*Z M"]]:
    """Return names and values of metrics, which may have a leading dimension of seeds."""
    values = [value.detach() for value in metrics.values()]
    return tuple(metrics), torch.stack(values, dim=-1).double()


class MetricWindow:
    """Means of detached metrics since the last row, summed on their device."""

    def __init__(self) -> None:
        self.clear()

    def add(self, names: tuple[str, ...], values: Float[Tensor, " M"]) -> None:
        """Add one value per name: one kernel for all of them, since each is a launch on a GPU."""
        if names not in self._places:
            self._places[names] = self._places_of(names, values.device)
        self._totals.index_add_(0, self._places[names], values)
        self._added[names] += 1

    def means(self) -> dict[str, float]:
        """Return the means; the one place where metrics reach the host."""
        counts = self._counts()
        totals = zip(self._order, self._totals.tolist(), strict=True)
        return {name: total / counts[name] for name, total in totals}

    def clear(self) -> None:
        """Start a new window."""
        self._order: dict[str, int] = {}
        self._totals = torch.zeros(0, dtype=torch.float64)
        self._places: dict[tuple[str, ...], Int[Tensor, " M"]] = {}
        self._added: Counter[tuple[str, ...]] = Counter()

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts by name."""
        sums = self._totals.cpu().unbind()
        return {
            "sums": {name: sums[place].clone() for name, place in self._order.items()},
            "counts": self._counts(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Bring back what ``state_dict`` returned, to go on with on a device."""
        self.clear()
        for name, total in state["sums"].items():
            self.add((name,), total.to(device).unsqueeze(0))
            self._added[name,] = state["counts"][name]

    def _places_of(self, names: tuple[str, ...], device: torch.device) -> Int[Tensor, " M"]:
        """Return where these names are summed; new ones get places behind the others."""
        for name in names:
            self._order.setdefault(name, len(self._order))
        missing = len(self._order) - len(self._totals)
        held = self._totals.to(device)
        self._totals = torch.cat([held, held.new_zeros(missing)])
        return torch.tensor([self._order[name] for name in names], device=device)

    def _counts(self) -> dict[str, int]:
        counts = dict.fromkeys(self._order, 0)
        for names, times in self._added.items():
            for name in names:
                counts[name] += times
        return counts


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
