"""Two islands: one step, three reward modes, the best of them forbidden in half of the states.

In: an action dimension, 1 or 2. Out: ``IslandsTask`` (mathematics, vectorised) and ``IslandsEnv``
(the same as a Gymnasium environment). Laws at any temperature, masses of the islands and
multipliers are in ``algd.analysis.islands_solution``.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_MODES = 3


@dataclass(frozen=True)
class IslandsTask:
    """Reward, cost, feasible set and modes of the two islands.

    States: |s| in [0.25, 1]; s < 0 is free, s > 0 has a wall. Reward: with tau =
    ``reward_temperature``, sigma = ``mode_width`` and centres mu_k(s),

        reward = tau log sum_k q_k(s) exp(-|a - mu_k(s)|^2 / (2 sigma^2)),   k = left, middle, right

    so at temperature tau the Boltzmann law is the Gaussian mixture with shares q_k, exactly. The
    middle mode (a_0 = 0, share 0.4) is the best; the others sit at a_0 = -0.62 and 0.62 and share
    the remaining 0.6 as 0.5 + 0.15 sin(pi s) to 0.5 - 0.15 sin(pi s). In two dimensions their
    a_1 is 0.3 cos(pi s) on the left and -0.3 cos(pi s) on the right.

        cost = H(s) exp(-(a_0 / omega(s))^4),  H(s) = 1 / (1 + exp(-20 s)),  omega(s) = 0.2 + 0.06 s

    A feasible action has cost <= d = ``cost_limit``, that is |a_0| >= omega (log(H / d))^(1/4):
    for s < 0 (H < 0.007) everything, one piece; for s > 0 two islands, the middle mode under the
    wall, the other two inside the islands by 2.8 sigma or more. On the feasible set the reward is
    bimodal: a law with one mode holds one island, or pays.
    """

    action_dim: int = 1
    cost_limit: float = 0.05
    reward_temperature: float = 0.1
    mode_width: float = 0.1

    def __post_init__(self) -> None:
        if self.action_dim not in (1, 2):
            raise ValueError(f"action_dim must be 1 or 2, got {self.action_dim}")
        if not 0.01 <= self.cost_limit <= 0.5:
            raise ValueError(f"cost_limit must be in [0.01, 0.5], got {self.cost_limit}")
        for name in ("reward_temperature", "mode_width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def shares(self, states: ArrayLike) -> Floats:
        """q_k(s), shape (..., 3), in the order left, middle, right."""
        left = 0.5 + 0.15 * np.sin(np.pi * np.asarray(states, dtype=np.float64))
        return np.stack([0.6 * left, np.full_like(left, 0.4), 0.6 * (1.0 - left)], axis=-1)

    def centres(self, states: ArrayLike) -> Floats:
        """mu_k(s), shape (..., 3, A)."""
        along = np.array([-0.62, 0.0, 0.62])
        points = np.asarray(states, dtype=np.float64)
        if self.action_dim == 1:
            return np.broadcast_to(along[:, None], (*points.shape, NUM_MODES, 1)).copy()
        across = 0.3 * np.cos(np.pi * points)[..., None] * np.array([1.0, 0.0, -1.0])
        return np.stack([np.broadcast_to(along, across.shape), across], axis=-1)

    def reward(self, states: ArrayLike, actions: ArrayLike) -> Floats:
        """Shape (...) for actions (..., A); at most 0."""
        offset = np.asarray(actions, dtype=np.float64)[..., None, :] - self.centres(states)
        exponent = -np.square(offset).sum(-1) / (2.0 * self.mode_width**2)
        top = exponent.max(-1, keepdims=True)
        mixture = (self.shares(states) * np.exp(exponent - top)).sum(-1)
        return np.asarray(self.reward_temperature * (top[..., 0] + np.log(mixture)))

    def wall_height(self, states: ArrayLike) -> Floats:
        """H(s), the largest cost of any action."""
        return np.asarray(1.0 / (1.0 + np.exp(-20.0 * np.asarray(states, dtype=np.float64))))

    def wall_width(self, states: ArrayLike) -> Floats:
        """omega(s), the length scale of the wall along a_0."""
        return np.asarray(0.2 + 0.06 * np.asarray(states, dtype=np.float64))

    def cost(self, states: ArrayLike, actions: ArrayLike) -> Floats:
        """Shape (...) for actions (..., A); between 0 and 1."""
        along = np.asarray(actions, dtype=np.float64)[..., 0]
        shape = np.exp(-((along / self.wall_width(states)) ** 4))
        return np.asarray(self.wall_height(states) * shape)

    def half_width(self, states: ArrayLike) -> Floats:
        """Half the width of the infeasible band |a_0| < half_width; 0 where there is none."""
        excess = np.maximum(np.log(self.wall_height(states) / self.cost_limit), 0.0)
        return np.asarray(self.wall_width(states) * excess**0.25)

    def feasible(self, states: ArrayLike, actions: ArrayLike) -> Bools:
        """Whether each action's own cost is within the limit."""
        return np.asarray(self.cost(states, actions) <= self.cost_limit)

    def num_islands(self, states: ArrayLike) -> NDArray[np.int64]:
        """Number of connected pieces of the feasible set: 1 or 2."""
        return np.asarray(np.where(self.half_width(states) > 0.0, 2, 1))


class IslandsEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """``IslandsTask`` as an environment: one action, then ``terminated``.

    s is uniform on [-1, -0.25] and [0.25, 1]. Optimum: for s < 0 the middle mode, a_0 = 0, reward
    0.1 log 0.4 = -0.0916, multiplier 0. For s > 0 the larger of the two side modes, a_0 = -0.62,
    reward 0.1 log(0.3 + 0.09 sin(pi s)), no cost; the law at temperature 0.1 holds both islands
    with masses near 0.5 +- 0.15 sin(pi s). Actions outside the box are clipped to it.
    """

    def __init__(
        self, action_dim: int = 1, cost_limit: float = 0.05, render_mode: None = None
    ) -> None:
        self.render_mode = render_mode
        self.task = IslandsTask(action_dim=action_dim, cost_limit=cost_limit)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self._obs = np.zeros(1, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw s; ``options={"state": s}`` sets it instead."""
        super().reset(seed=seed)
        drawn = self.np_random.uniform(-0.75, 0.75)
        state = drawn + (0.25 if drawn >= 0.0 else -0.25)
        if options is not None:
            state = options.get("state", state)
        self._obs = np.array([state], dtype=np.float32)
        return self._obs.copy(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pay for the action; the episode is over."""
        clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        state = float(self._obs[0])
        reward = float(self.task.reward(state, clipped))
        return (
            self._obs.copy(),
            reward,
            True,
            False,
            {"cost": float(self.task.cost(state, clipped))},
        )
