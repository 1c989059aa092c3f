"""What a policy at a temperature should reach on the constrained bandit.

In: a ``BanditTask``, states and a temperature. Out: expected cost, mean action and the multipliers
that solve the regularised problem. The optimum without a temperature is in closed form in the task.

Method. On the box, exp(reward / temperature) is a product of truncated normals, one per action
dimension, so the law of z = w.a is an A-fold convolution, done here on a lattice by FFT (trapezoid
rule in each dimension: exact to rounding but for the kink of the cost and the edges of the box,
where the error is of the order of the spacing squared). The constraint enters through z alone.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from algd.analysis.roots import nonnegative_root
from algd.environments.analytic_bandit import BanditTask

Floats = NDArray[np.float64]

# Lattice intervals per standard deviation of the reward's own law, and their smallest number.
_INTERVALS_PER_STD = 24
_MIN_INTERVALS = 400


class BoltzmannBandit:
    """The law a ~ exp((reward - penalty) / temperature) on the box, for given states at once.

    ``penalty`` is either multiplier * cost (``penalty_coef`` None: the plain Lagrangian) or the
    augmented one of arXiv 2602.02924 acting on each action,
    ([multiplier + penalty_coef * g]_+^2 - multiplier^2) / (2 penalty_coef) with g = cost - d.

    Args:
        task: the bandit.
        states: shape (n,), in [-1, 1].
        temperature: in units of reward, > 0.
        penalty_coef: rho > 0 in reward per squared cost, or None.
    """

    def __init__(
        self,
        task: BanditTask,
        states: ArrayLike,
        *,
        temperature: float,
        penalty_coef: float | None = None,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if penalty_coef is not None and not penalty_coef > 0:
            raise ValueError(f"penalty_coef must be positive or None, got {penalty_coef}")
        self.task = task
        self.states: Floats = np.atleast_1d(np.asarray(states, dtype=np.float64))
        self.temperature = temperature
        self.penalty_coef = penalty_coef
        intervals = max(_MIN_INTERVALS, int(2 * _INTERVALS_PER_STD / np.sqrt(temperature / 2)))
        self._axis = np.linspace(-1.0, 1.0, intervals + 1)
        sums = np.linspace(-task.action_dim, task.action_dim, task.action_dim * intervals + 1)
        along = sums * task.direction[0]
        # g = cost - d for every state and every lattice value of z = w.a
        self._along = along
        self._excess = (
            np.maximum(along - task.bound_along(self.states)[:, None] + task.cost_limit, 0.0)
            - task.cost_limit
        )

    def expected_cost(self, multiplier: ArrayLike) -> Floats:
        """E[cost | s], shape (n,)."""
        return self.task.cost_limit + self._mean(self._excess, self._law_along(multiplier))

    def mean_action(self, multiplier: ArrayLike) -> Floats:
        """E[a | s], shape (n, A)."""
        tilt, correction = self._tilt_and_correction(multiplier)
        spectra, length = self._spectra(tilt, weight=None)
        weighted, _ = self._spectra(tilt, weight=self._axis)
        total = np.prod(spectra, axis=1)
        normaliser = self._mean(correction, self._back(total, length), normalise=False)
        means = []
        for dim in range(self.task.action_dim):
            others = np.prod(np.delete(spectra, dim, axis=1), axis=1)
            numerator = self._back(weighted[:, dim] * others, length, signed=True)
            means.append(self._mean(correction, numerator, normalise=False) / normaliser)
        return np.stack(means, axis=-1)

    def multiplier(self) -> Floats:
        """lambda(s) >= 0 with E[cost | s] <= d and lambda (E[cost | s] - d) = 0, shape (n,).

        With ``penalty_coef`` the law is the augmented one, the condition the same.
        """
        limit = self.task.cost_limit
        return nonnegative_root(lambda trial: self.expected_cost(trial) - limit, len(self.states))

    def per_sample_fixed_point(self) -> Floats:
        """lambda(s) with lambda = E[(lambda + rho g)_+ | s]: where a per-action hinge settles.

        Needs ``penalty_coef``. It exceeds ``multiplier`` where lambda + rho g < 0 for some actions.
        """
        coef = self.penalty_coef
        if coef is None:
            raise ValueError("per_sample_fixed_point needs penalty_coef, got None")

        def residual(trial: Floats) -> Floats:
            target = np.maximum(trial[:, None] + coef * self._excess, 0.0)
            return self._mean(target, self._law_along(trial)) - trial

        return nonnegative_root(residual, len(self.states))

    def _law_along(self, multiplier: ArrayLike) -> Floats:
        """Unnormalised weights of z on the lattice, (n, L)."""
        tilt, correction = self._tilt_and_correction(multiplier)
        spectra, length = self._spectra(tilt, weight=None)
        return self._back(np.prod(spectra, axis=1), length) * correction

    def _tilt_and_correction(self, multiplier: ArrayLike) -> tuple[Floats, Floats]:
        """Split the penalty into its tangent at the mode of z, and the rest.

        The penalty is convex in z, so exp(-(penalty - tangent) / temperature) <= 1 everywhere: no
        rounding error of the FFT in a far tail is ever magnified.
        """
        trial = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), self.states.shape)
        limit = self.task.cost_limit
        past = self.task.preferred_along(self.states) - self.task.bound_along(self.states)
        if self.penalty_coef is None:
            slope, penalty = trial, _plain(trial[:, None], self._excess + limit)
        else:
            slope = (trial + self.penalty_coef * past) / (1.0 + 0.5 * self.penalty_coef)
            penalty = _augmented(trial[:, None], self._excess, self.penalty_coef)
        # Beyond this slope the mode sits on the kink of the cost, where any subgradient will do.
        tilt = np.clip(slope, 0.0, np.maximum(2.0 * (past + limit), 0.0))
        gap = penalty - tilt[:, None] * self._along
        gap -= gap.min(axis=1, keepdims=True)
        return tilt, np.exp(-gap / self.temperature)

    def _spectra(self, tilt: Floats, weight: Floats | None) -> tuple[NDArray[np.complex128], int]:
        """Fourier transforms of the tilted one-dimensional laws, (n, A, F), and their length."""
        centre = self.task.preferred_action(self.states) - 0.5 * tilt[:, None] * self.task.direction
        density = np.exp(-np.square(self._axis - centre[..., None]) / self.temperature)
        density[..., [0, -1]] *= 0.5
        if weight is not None:
            density = density * weight
        length = 1 << (len(self._along) - 1).bit_length()
        return np.fft.rfft(density, n=length, axis=-1), length

    def _back(
        self, spectrum: NDArray[np.complex128], length: int, *, signed: bool = False
    ) -> Floats:
        values = np.fft.irfft(spectrum, n=length, axis=-1)[:, : len(self._along)]
        return values if signed else np.maximum(values, 0.0)

    @staticmethod
    def _mean(values: Floats, weights: Floats, *, normalise: bool = True) -> Floats:
        total = np.einsum("nl,nl->n", values, weights)
        return total / weights.sum(axis=-1) if normalise else total


def _plain(multiplier: Floats, cost: Floats) -> Floats:
    return multiplier * cost


def _augmented(multiplier: Floats, excess: Floats, penalty_coef: float) -> Floats:
    hinge = np.maximum(multiplier + penalty_coef * excess, 0.0)
    return (np.square(hinge) - np.square(multiplier)) / (2.0 * penalty_coef)
