"""Modes of a density on a grid, their basins and masses, and which of them samples reach.

In: a density on a one- or two-dimensional grid (``algd.analysis.density``), samples. Out: a
``ModeMap`` and a ``ModeCoverage``.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from algd.analysis.density import Grid, as_points, trapezoid_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModeMap:
    """The modes of a density, the heaviest first.

    grid: axes of the density.
    centres: (M, A) actions where the density peaks.
    masses: (M,) probability of each basin; they sum to at most 1.
    basins: on the grid, the index of the mode a node belongs to; -1 where the density is 0.
    """

    grid: Grid
    centres: Floats
    masses: Floats
    basins: NDArray[np.int64]

    @property
    def num_modes(self) -> int:
        """How many modes there are."""
        return len(self.masses)


@dataclass(frozen=True)
class ModeCoverage:
    """Which modes samples reach.

    shares: (M,) fraction of the samples in each basin; samples elsewhere belong to none.
    covered: (M,) whether the share is at least the asked fraction of the mode's own mass.
    """

    shares: Floats
    covered: NDArray[np.bool_]

    @property
    def fraction(self) -> float:
        """Covered modes over all modes."""
        return float(self.covered.mean())


def find_modes(
    density: Floats, grid: Grid, *, min_barrier: float = 0.5, min_mass: float = 0.01
) -> ModeMap:
    """Find the modes of a density by flooding it from the top.

    Args:
        density: on the grid, not negative.
        grid: axes.
        min_barrier: log(peak / saddle) below which two peaks count as one: the height of the
            barrier between them in units of the temperature.
        min_mass: probability below which a basin is no mode; its nodes keep basin -1.
    """
    flat = density.ravel()
    root = _flood(flat, _neighbours(density.shape), min_barrier)
    mass = (density * trapezoid_weights(grid)).ravel()
    peaks = np.unique(root[root >= 0])
    masses = np.array([mass[root == peak].sum() for peak in peaks])
    kept = [index for index in np.argsort(-masses, kind="stable") if masses[index] >= min_mass]
    basins = np.full(flat.shape, -1, dtype=np.int64)
    for label, index in enumerate(kept):
        basins[root == peaks[index]] = label
    nodes = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, len(grid))
    return ModeMap(
        grid=grid,
        centres=nodes[peaks[kept]],
        masses=masses[kept],
        basins=basins.reshape(density.shape),
    )


def mode_coverage(samples: ArrayLike, modes: ModeMap, *, min_ratio: float = 0.1) -> ModeCoverage:
    """Count the samples in every basin.

    Args:
        samples: (n, A), or (n,) in one dimension.
        modes: what to cover.
        min_ratio: a mode is covered where its share of the samples is at least ``min_ratio`` times
            its mass.
    """
    points = as_points(samples, modes.grid)
    inside = np.ones(len(points), dtype=bool)
    nodes = []
    for dim, axis in enumerate(modes.grid):
        inside &= (points[:, dim] >= axis[0]) & (points[:, dim] <= axis[-1])
        middles = 0.5 * (axis[1:] + axis[:-1])
        nodes.append(np.searchsorted(middles, points[:, dim]))
    basins = np.where(inside, modes.basins[tuple(nodes)], -1)
    shares = np.array([(basins == mode).mean() for mode in range(modes.num_modes)])
    return ModeCoverage(shares=shares, covered=shares >= min_ratio * modes.masses)


def _flood(flat: Floats, neighbours: list[list[int]], min_barrier: float) -> NDArray[np.int64]:
    """Give every node with density the peak of its basin, the peak's node index; else -1.

    Nodes are visited from the highest down. A node next to no visited one is a new peak; a node
    that joins several basins is a saddle, where every peak that does not stand ``min_barrier``
    above it merges into the highest.
    """
    owner = np.full(flat.shape, -1, dtype=np.int64)
    parent: dict[int, int] = {}

    def peak_of(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in np.argsort(-flat, kind="stable").tolist():
        if flat[node] <= 0.0:
            break
        around = {peak_of(int(owner[near])) for near in neighbours[node] if owner[near] >= 0}
        if not around:
            parent[node] = node
            owner[node] = node
            continue
        highest = max(around, key=lambda peak: (flat[peak], -peak))
        owner[node] = highest
        for peak in around - {highest}:
            if np.log(flat[peak] / flat[node]) < min_barrier:
                parent[peak] = highest
    return np.array([peak_of(int(peak)) if peak >= 0 else -1 for peak in owner], dtype=np.int64)


def _neighbours(shape: tuple[int, ...]) -> list[list[int]]:
    """Flat indices of the 2 or 8 nodes around every node."""
    padded = np.pad(np.arange(np.prod(shape)).reshape(shape), 1, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3,) * len(shape))
    table = windows.reshape(-1, 3 ** len(shape))
    return [
        [near for near in row if near >= 0 and near != node]
        for node, row in enumerate(table.tolist())
    ]
