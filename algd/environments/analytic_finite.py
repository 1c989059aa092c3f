"""A constrained Markov decision process with five states on a ring and one continuous action.

In: nothing but the seed. Out: ``FiniteTask`` (reward, cost and transition law, vectorised over
actions) and ``FiniteEnv`` (the same as a Gymnasium environment). Optimal values and multipliers,
hard and at a temperature, are in ``algd.analysis.finite_solution`` and ``finite_soft_solution``.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

NUM_STATES = 5

_BONUS = np.array([0.0, 0.3, 0.0, -0.2, 0.1])
_PREFERRED = np.array([0.5, -0.3, 0.6, 0.1, 0.4])
_PRICE = np.array([1.0, 1.0, 0.6, 0.3, 1.0])
_RESET_PROBABILITY = 0.1


@dataclass(frozen=True)
class FiniteTask:
    """Reward, cost and transition law of five states x one action in [-1, 1].

        reward(s, a) = bonus_s - (a - m_s)^2
        cost(s, a)   = price_s ((1 + a) / 2)^2
        P(. | s, a)  = 0.9 [ f(a) one step up the ring + (1 - f(a)) one step down ] + 0.1 uniform
        f(a)         = (1 + sin(pi a / 2)) / 2

    Episodes start in a uniformly drawn state and are truncated, never terminated, after
    ``horizon`` steps. Truncation does not stop bootstrapping, so a critic with discount gamma
    estimates exactly the infinite-horizon discounted values that the solver computes with the same
    gamma. ``cost_limit`` is per episode; per step it is ``step_limit`` = cost_limit / horizon,
    which is also the threshold of a critic with cost discount 0 (the state-wise constraint).
    """

    cost_limit: float = 12.5
    horizon: int = 50

    def __post_init__(self) -> None:
        if not self.cost_limit > 0:
            raise ValueError(f"cost_limit must be positive, got {self.cost_limit}")
        if self.horizon < 1:
            raise ValueError(f"horizon must be >= 1, got {self.horizon}")

    @property
    def step_limit(self) -> float:
        """The limit on the mean cost of a step."""
        return self.cost_limit / self.horizon

    @property
    def start(self) -> Floats:
        """Law of the first state, (S,): uniform."""
        return np.full(NUM_STATES, 1.0 / NUM_STATES)

    def reward(self, actions: ArrayLike) -> Floats:
        """Table (S, G) for actions (G,)."""
        offset = np.asarray(actions, dtype=np.float64) - _PREFERRED[:, None]
        return _BONUS[:, None] - np.square(offset)

    def cost(self, actions: ArrayLike) -> Floats:
        """Table (S, G) for actions (G,); between 0 and 1."""
        speed = 0.5 * (1.0 + np.asarray(actions, dtype=np.float64))
        return _PRICE[:, None] * np.square(speed)

    def transition(self, actions: ArrayLike) -> Floats:
        """Table (S, G, S) of next-state probabilities for actions (G,)."""
        up = 0.5 * (1.0 + np.sin(0.5 * np.pi * np.asarray(actions, dtype=np.float64)))
        one_up = np.roll(np.eye(NUM_STATES), 1, axis=1)
        one_down = np.roll(np.eye(NUM_STATES), -1, axis=1)
        moved = up[:, None] * one_up[:, None, :] + (1.0 - up[:, None]) * one_down[:, None, :]
        return (1.0 - _RESET_PROBABILITY) * moved + _RESET_PROBABILITY / NUM_STATES


class FiniteEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """``FiniteTask`` as an environment; the observation is the state, one-hot.

    Optimum at discount 0.9, in the order of the states:

        unconstrained                actions 0.54 -0.40  0.46  0.20  0.50, episode cost 17.4
        E[cost | s] <= 0.25          actions 0.00 -0.29  0.29  0.09  0.00,
                                     multipliers 2.51  0  0.86  0  1.73
        discounted cost <= 2.5       actions 0.33 -0.45  0.26  0.03  0.18, multiplier 0.914

    Actions outside [-1, 1] are clipped.
    """

    def __init__(self, render_mode: None = None) -> None:
        self.render_mode = render_mode
        self.task = FiniteTask()
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (NUM_STATES,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw the first state; ``options={"state": index}`` sets it instead."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(NUM_STATES))
        self._state = drawn if options is None else int(options.get("state", drawn))
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pay, then move; the time limit is the registration's."""
        clipped = min(max(float(action[0]), -1.0), 1.0)
        state = self._state
        reward = float(_BONUS[state] - (clipped - _PREFERRED[state]) ** 2)
        cost = float(_PRICE[state] * (0.5 * (1.0 + clipped)) ** 2)
        if self.np_random.random() < _RESET_PROBABILITY:
            self._state = int(self.np_random.integers(NUM_STATES))
        else:
            up = 0.5 * (1.0 + np.sin(0.5 * np.pi * clipped))
            self._state = (state + (1 if self.np_random.random() < up else -1)) % NUM_STATES
        return self._observation(), reward, False, False, {"cost": cost}

    def _observation(self) -> NDArray[np.float32]:
        obs = np.zeros(NUM_STATES, dtype=np.float32)
        obs[self._state] = 1.0
        return obs
