"""How restless a run was: total variation of its multiplier and cost per 1,000 updates.

In: the rows of a run's metrics.csv. Out: numbers in the units logged, over the later part of the
run, so that the way from the start to the optimum does not count as oscillation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from algd.analysis.calibration import oscillation

_UPDATES = "train/num_updates"
_MULTIPLIER = "train/multiplier"
_COST = "train/cost"


@dataclass(frozen=True)
class RunOscillation:
    """Total variation per 1,000 updates; NaN where the run logged fewer than two values.

    multiplier: in the unit of the constraint. cost: episode cost averaged per row, in the task's
    unit. Both depend on ``log_interval``: compare runs of equal intervals alone.
    """

    multiplier: float
    cost: float


def run_oscillation(
    rows: Sequence[Mapping[str, str]], *, after_share: float = 0.5
) -> RunOscillation:
    """Measure the rows of metrics.csv that lie after a share of the updates.

    Args:
        rows: of a run's metrics.csv, as ``algd.training.csv_table.read_rows`` returns them.
        after_share: in [0, 1); 0 counts the whole run.
    """
    if not 0.0 <= after_share < 1.0:
        raise ValueError(f"after_share must be in [0, 1), got {after_share}")
    return RunOscillation(
        multiplier=_oscillation(rows, _MULTIPLIER, after_share),
        cost=_oscillation(rows, _COST, after_share),
    )


def metric_series(
    rows: Sequence[Mapping[str, str]], name: str, against: str = _UPDATES
) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions, values) of the rows that hold both columns, in order."""
    pairs = [
        (float(row[against]), float(row[name]))
        for row in rows
        if row.get(name) and row.get(against)
    ]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _oscillation(rows: Sequence[Mapping[str, str]], name: str, after_share: float) -> float:
    updates, values = metric_series(rows, name)
    if not len(updates):
        return float("nan")
    late = updates >= after_share * updates[-1]
    if name == _MULTIPLIER:
        late &= updates > 0
    # A run resumed or logged without updates in between repeats a count: keep the last of each.
    updates, values = updates[late], values[late]
    keep = np.append(np.diff(updates) > 0, [True] * min(1, len(updates)))
    if keep.sum() < 2:
        return float("nan")
    return oscillation(values[keep], updates[keep])
