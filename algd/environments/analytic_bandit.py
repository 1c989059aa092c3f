"""The one-step constrained bandit: optimum and multiplier in closed form.

In: an action dimension from 1 to 8. Out: ``BanditTask`` (the mathematics, vectorised over states)
and ``BanditEnv`` (the same numbers as a Gymnasium environment). What a policy at a temperature
should reach is computed in ``algd.analysis.bandit_solution``.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_ACTION_DIM = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BanditTask:
    """Reward, cost and exact solution of the constrained bandit, for every state at once.

    With ``w`` the unit vector along the diagonal of the action box, for a state s in [-1, 1]:

        mu(s)  = 0.5 sin(pi s)                    what the reward wants along w
        m_i(s) = mu(s) w_i + 0.25 cos(pi s + 2 pi i / A)   (second term absent for A = 1)
        b(s)   = 0.1 (1 + s)                      what the constraint allows along w
        reward = -|a - m(s)|^2
        cost   = [w.a - b(s) + d]_+               d = ``cost_limit``

    The second term of m is orthogonal to w because equally spaced phases cancel, so w.m = mu for
    every A. cost <= d is w.a <= b, hence the problem is the projection of m on a half space:

        a*(s) = m(s) - [mu(s) - b(s)]_+ w,     lambda*(s) = 2 [mu(s) - b(s)]_+

    (stationarity along w: -2 (w.a - mu) = lambda). Both are the same function of s for every A,
    active for s in about (0.07, 0.88), largest lambda* about 0.70; |m_i| < 0.53, so the optimum
    is well inside [-1, 1]^A. A single step makes the critic's threshold equal to d, whatever the
    cost discount. d = 0.5 keeps the kink of the cost 3 standard deviations away from the
    constrained optimum up to a temperature of 0.05.
    """

    action_dim: int = 1
    cost_limit: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.action_dim <= MAX_ACTION_DIM:
            raise ValueError(f"action_dim must be in 1..{MAX_ACTION_DIM}, got {self.action_dim}")
        if not self.cost_limit > 0:
            raise ValueError(f"cost_limit must be positive, got {self.cost_limit}")

    @property
    def direction(self) -> Floats:
        """The unit vector w (A,) along which the constraint acts."""
        return np.full(self.action_dim, self.action_dim**-0.5)

    def preferred_along(self, states: ArrayLike) -> Floats:
        """mu(s): where the reward is largest along w, unconstrained."""
        return np.asarray(0.5 * np.sin(np.pi * np.asarray(states, dtype=np.float64)))

    def bound_along(self, states: ArrayLike) -> Floats:
        """b(s): the largest w.a whose cost is within the limit."""
        return np.asarray(0.1 * (1.0 + np.asarray(states, dtype=np.float64)))

    def preferred_action(self, states: ArrayLike) -> Floats:
        """m(s), shape (..., A) for states of shape (...)."""
        along = self.preferred_along(states)[..., None] * self.direction
        if self.action_dim == 1:
            return along
        phase = 2.0 * np.pi * np.arange(self.action_dim) / self.action_dim
        return along + 0.25 * np.cos(np.pi * np.asarray(states)[..., None] + phase)

    def reward(self, states: ArrayLike, actions: ArrayLike) -> Floats:
        """-|a - m(s)|^2 for actions (..., A)."""
        error = np.asarray(actions) - self.preferred_action(states)
        return np.asarray(-np.square(error).sum(-1))

    def cost(self, states: ArrayLike, actions: ArrayLike) -> Floats:
        """[w.a - b(s) + d]_+ for actions (..., A)."""
        along = np.asarray(actions) @ self.direction
        return np.asarray(np.maximum(along - self.bound_along(states) + self.cost_limit, 0.0))

    def excess(self, states: ArrayLike) -> Floats:
        """[mu(s) - b(s)]_+: how far the unconstrained optimum lies beyond the bound."""
        return np.asarray(np.maximum(self.preferred_along(states) - self.bound_along(states), 0.0))

    def optimal_action(self, states: ArrayLike) -> Floats:
        """a*(s), shape (..., A): the deterministic constrained optimum."""
        return self.preferred_action(states) - self.excess(states)[..., None] * self.direction

    def optimal_multiplier(self, states: ArrayLike) -> Floats:
        """lambda*(s) >= 0 of the deterministic problem, in reward per unit of cost."""
        return np.asarray(2.0 * self.excess(states))


class BanditEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """``BanditTask`` as an environment: s uniform on [-1, 1], one action, then ``terminated``.

    Optimum: a*(s) = m(s) - [mu(s) - b(s)]_+ w with multiplier lambda*(s) = 2 [mu(s) - b(s)]_+
    (symbols in ``BanditTask``). The expected return of the optimum is -E[mu - b]_+^2 = -0.0255
    and its cost is 0.5 in the active states. Actions outside the box are clipped to it.
    """

    def __init__(
        self, action_dim: int = 1, cost_limit: float = 0.5, render_mode: None = None
    ) -> None:
        self.render_mode = render_mode
        self.task = BanditTask(action_dim=action_dim, cost_limit=cost_limit)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self._direction = self.task.direction
        self._obs = np.zeros(1, dtype=np.float32)
        self._preferred = np.zeros(action_dim)
        self._offset = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw s; ``options={"state": s}`` sets it instead."""
        super().reset(seed=seed)
        drawn = self.np_random.uniform(-1.0, 1.0)
        state = drawn if options is None else options.get("state", drawn)
        self._obs = np.array([state], dtype=np.float32)
        # The reward belongs to the state as observed, after rounding to float32.
        observed = float(self._obs[0])
        self._preferred = self.task.preferred_action(observed)
        self._offset = self.task.cost_limit - float(self.task.bound_along(observed))
        return self._obs.copy(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pay for the action; the episode is over."""
        clipped = np.minimum(np.maximum(np.asarray(action, dtype=np.float64), -1.0), 1.0)
        error = clipped - self._preferred
        cost = max(float(clipped @ self._direction) + self._offset, 0.0)
        return self._obs.copy(), -float(error @ error), True, False, {"cost": cost}
