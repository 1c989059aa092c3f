"""The states a lab looks at more closely, and what the agent holds of each.

In: rollouts and an ``AgentEnergy``. Out: a few observations chosen by their multiplier, each with
energies on a line or plane of actions, its Boltzmann law, samples and modes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.curvature import CurvatureComparison, compare_curvature
from algd.analysis.density import Grid, boltzmann_density, box_grid, grid_points
from algd.analysis.modes import ModeCoverage, ModeMap, find_modes, mode_coverage
from algd.analysis.sampling_error import SamplingError, sampling_error

Floats = NDArray[np.float64]

_SLICE_POINTS = {1: 401, 2: 61}
_CURVATURE_STEP = 0.05  # of the action: ReLU critics have no curvature at a point
_NUM_SAMPLES = 4_000
_NUM_CURVATURE_POINTS = 256
_NUM_MODE_STATES = 100
_NUM_MODE_SAMPLES = 1_000
MAX_EXACT_DIM = 2  # beyond it a slice is not the whole law
_QUANTILES = (0.1, 0.5, 0.95)


@dataclass(frozen=True)
class StateView:
    """One state.

    obs: (O,) raw. multiplier: lambda(s), reward per cost. mode: (A,) deterministic action.
    samples: (n, A) of the stochastic policy. grid: axes of the slice, actions 0 and 1 where there
    are more than two, the others held at ``mode``. own, plain, augmented: energies on the grid, in
    reward; ``own`` is that whose law the agent is to sample. density: that law on the slice.
    modes, coverage, error: of that law and its samples, None where the slice is not the whole box.
    curvature: of both energies at samples of the policy.
    """

    obs: NDArray[np.float32]
    multiplier: float
    mode: Floats
    samples: Floats
    grid: Grid
    own: Floats
    plain: Floats
    augmented: Floats
    density: Floats
    modes: ModeMap | None
    coverage: ModeCoverage | None
    error: SamplingError | None
    curvature: CurvatureComparison


def choose_states(obs: NDArray[np.float32], multipliers: Floats) -> NDArray[np.float32]:
    """Return three of the observations: low, median and high multiplier (10, 50, 95 %)."""
    order = np.argsort(multipliers, kind="stable")
    chosen = [order[round(quantile * (len(order) - 1))] for quantile in _QUANTILES]
    return obs[chosen]


def view_state(probe: AgentEnergy, obs: NDArray[np.float32], *, seed: int = 0) -> StateView:
    """Measure everything a figure or the table shows of one state."""
    shown = min(probe.action_dim, 2)
    grid = box_grid(shown, _SLICE_POINTS[shown])
    mode = probe.mode(obs)
    actions = embed(grid_points(grid), mode)
    samples = probe.samples(obs, _NUM_SAMPLES, seed=seed)
    own = probe.energy(obs, actions)
    density = boltzmann_density(lambda _: own, grid, probe.temperature)
    whole = probe.action_dim <= MAX_EXACT_DIM
    modes = find_modes(density, grid) if whole else None
    shape = tuple(len(axis) for axis in grid)
    return StateView(
        obs=obs,
        multiplier=float(probe.multiplier(obs[None])[0]),
        mode=mode,
        samples=samples,
        grid=grid,
        own=own.reshape(shape),
        plain=probe.energy(obs, actions, "plain").reshape(shape),
        augmented=probe.energy(obs, actions, "augmented").reshape(shape),
        density=density,
        modes=modes,
        coverage=None if modes is None else mode_coverage(samples, modes),
        error=sampling_error(samples, density, grid) if whole else None,
        curvature=state_curvature(probe, obs, samples[:_NUM_CURVATURE_POINTS]),
    )


class ModeCount(NamedTuple):
    """num_states: looked at. several: share whose law has two modes or more.

    reached: share of those modes that samples of the policy reach, NaN where no law has several.
    """

    num_states: int
    several: float
    reached: float


def count_modes(probe: AgentEnergy, obs: NDArray[np.float32], *, seed: int = 0) -> ModeCount | None:
    """Count modes of the law of the learnt energy at some of the states (B, O).

    None where actions have too many dimensions for the whole law.
    """
    if probe.action_dim > MAX_EXACT_DIM:
        return None
    grid = box_grid(probe.action_dim, _SLICE_POINTS[probe.action_dim])
    actions, reached = grid_points(grid), []
    chosen = np.linspace(0, len(obs) - 1, min(_NUM_MODE_STATES, len(obs))).astype(int)
    for index in chosen:
        values = probe.energy(obs[index], actions)
        density = boltzmann_density(lambda _, values=values: values, grid, probe.temperature)
        modes = find_modes(density, grid)
        if modes.num_modes > 1:
            samples = probe.samples(obs[index], _NUM_MODE_SAMPLES, seed=seed)
            reached.append(mode_coverage(samples, modes).fraction)
    share = float(np.mean(reached)) if reached else float("nan")
    return ModeCount(len(chosen), len(reached) / len(chosen), share)


def state_curvature(
    probe: AgentEnergy, obs: NDArray[np.float32], actions: Floats
) -> CurvatureComparison:
    """Compare the energies' curvature at actions (n, A), in reward / action^2."""
    return compare_curvature(
        probe.torch_energy(obs, "plain"),
        probe.torch_energy(obs, "augmented"),
        torch.from_numpy(np.asarray(actions, dtype=np.float32)),
        step=_CURVATURE_STEP,
    )


def embed(points: Floats, mode: Floats) -> Floats:
    """Place points of a slice (P, 1 or 2) into the action space (P, A), the rest at ``mode``."""
    actions = np.tile(mode, (len(points), 1))
    actions[:, : points.shape[1]] = points
    return actions
