"""A point mass carried down a corridor, steering around an obstacle: safety needs foresight.

In: nothing but the seed. Out: ``CorridorTask`` (geometry, dynamics, reward) and ``CorridorEnv``
(the same as a Gymnasium environment, with an rgb_array picture). The safe set and the optimal
return are in ``algd.analysis.corridor_solution``.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

STEP_SECONDS = 0.1
FORWARD_SPEED = 1.0  # metres per second
SLIDE_LIMIT = 1.2  # metres; the mass stops sliding into a wall here
START_HALF_WIDTH = 0.6  # metres
PIXELS_PER_METRE = 100


@dataclass(frozen=True)
class CorridorTask:
    """Geometry, dynamics and reward, in metres and seconds.

    At step k of ``num_steps`` the mass is at x = 0.1 k, lateral position y, lateral velocity v.
    The action a in [-1, 1] is the lateral acceleration in metres per second squared:

        v' = clip(v + 0.1 a, -max_velocity, max_velocity),   y' = y + 0.1 v'
        reward = 1 - (y' / 0.5)^2 - action_price a^2
        cost   = 1 if |y'| > 1 (walls) or the obstacle holds (x', y'), else 0

    The obstacle is the rectangle 1.6 <= x <= 2.4, -0.36 < y < 0.35. Which passage is better depends
    on the start. Nothing stops at a collision; an episode ends (``terminated``) at the far end,
    x = 4. x is observed, so the finite horizon is Markov.
    """

    num_steps: int = 40
    obstacle_steps: tuple[int, int] = (16, 24)
    obstacle_span: tuple[float, float] = (-0.36, 0.35)
    max_velocity: float = 1.5
    action_price: float = 0.1

    def __post_init__(self) -> None:
        first, last = self.obstacle_steps
        if not 1 <= first <= last <= self.num_steps:
            raise ValueError(
                f"obstacle_steps must be increasing in 1..{self.num_steps}, "
                f"got {self.obstacle_steps}"
            )
        low, high = self.obstacle_span
        if not -1.0 <= low < high <= 1.0:
            raise ValueError(
                f"obstacle_span must be increasing in [-1, 1], got {self.obstacle_span}"
            )
        if not self.max_velocity > 0:
            raise ValueError(f"max_velocity must be positive, got {self.max_velocity}")
        if self.action_price < 0:
            raise ValueError(f"action_price must be >= 0, got {self.action_price}")

    def reward(self, lateral: ArrayLike, action: ArrayLike) -> Floats:
        """Reward of arriving at ``lateral`` (metres) by ``action``."""
        offset = np.asarray(lateral, dtype=np.float64) / 0.5
        effort = self.action_price * np.square(np.asarray(action, dtype=np.float64))
        return np.asarray(1.0 - np.square(offset) - effort)

    def unsafe(self, step: int, lateral: ArrayLike, *, margin: float = 0.0) -> Bools:
        """Whether positions at a step cost; ``margin`` (metres) grows walls and obstacle."""
        position = np.asarray(lateral, dtype=np.float64)
        hit = np.abs(position) > 1.0 - margin
        if self.obstacle_steps[0] <= step <= self.obstacle_steps[1]:
            low, high = self.obstacle_span
            hit = hit | ((position > low - margin) & (position < high + margin))
        return np.asarray(hit)

    def observation(self, step: int, lateral: float, velocity: float) -> NDArray[np.float32]:
        """Scale (x, y, v) to [-1, 1]."""
        return np.array(
            [
                2.0 * step / self.num_steps - 1.0,
                lateral / SLIDE_LIMIT,
                velocity / self.max_velocity,
            ],
            dtype=np.float32,
        )


class CorridorEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """``CorridorTask`` as an environment; starts at y uniform on [-0.6, 0.6] with v = 0.

    Every start can be driven without cost. Optimum with no cost ever: return 28.9 on average over
    the starts (31.4 from y = 0), through the upper passage for starts below 0.18, else the lower
    one. Without the constraint: return 37.3, cost 9. At x = 0.8 and at rest on the centre line the
    obstacle can still be avoided, at x = 0.9 no more. Constraint: hard, cost limit 0.
    Actions outside [-1, 1] are clipped.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's form)

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self.task = CorridorTask()
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._step = 0
        self._lateral = 0.0
        self._velocity = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw the start; ``options={"step": k, "y": y, "v": v}`` sets any of the three."""
        super().reset(seed=seed)
        chosen = options or {}
        drawn = float(self.np_random.uniform(-START_HALF_WIDTH, START_HALF_WIDTH))
        self._step = int(chosen.get("step", 0))
        self._lateral = float(chosen.get("y", drawn))
        self._velocity = float(chosen.get("v", 0.0))
        return self._observation(), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move one step; info holds cost, y and v (metres, metres per second)."""
        task = self.task
        clipped = min(max(float(action[0]), -1.0), 1.0)
        velocity = self._velocity + STEP_SECONDS * clipped
        self._velocity = min(max(velocity, -task.max_velocity), task.max_velocity)
        self._lateral += STEP_SECONDS * self._velocity
        if abs(self._lateral) > SLIDE_LIMIT:
            self._lateral = min(max(self._lateral, -SLIDE_LIMIT), SLIDE_LIMIT)
            self._velocity = 0.0
        self._step += 1
        reward = float(task.reward(self._lateral, clipped))
        cost = float(task.unsafe(self._step, self._lateral))
        info = {"cost": cost, "y": self._lateral, "v": self._velocity}
        return self._observation(), reward, self._step >= task.num_steps, False, info

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw the corridor from above, x to the right: walls grey, obstacle red, mass blue."""
        if self.render_mode is None:
            return None
        length = FORWARD_SPEED * STEP_SECONDS * self.task.num_steps
        along = np.arange(int(PIXELS_PER_METRE * length)) / PIXELS_PER_METRE
        across = np.linspace(SLIDE_LIMIT, -SLIDE_LIMIT, int(2 * SLIDE_LIMIT * PIXELS_PER_METRE))
        picture = np.full((len(across), len(along), 3), 255, dtype=np.uint8)
        picture[np.abs(across) > 1.0] = (150, 150, 150)
        per_step = FORWARD_SPEED * STEP_SECONDS
        first, last = (per_step * step for step in self.task.obstacle_steps)
        low, high = self.task.obstacle_span
        rows = (across > low) & (across < high)
        picture[np.ix_(rows, (along >= first) & (along <= last))] = (200, 60, 60)
        distance = np.hypot(along - per_step * self._step, (across - self._lateral)[:, None])
        picture[distance < 0.05] = (40, 80, 200)
        return picture

    def _observation(self) -> NDArray[np.float32]:
        return self.task.observation(self._step, self._lateral, self._velocity)
