"""What foresight a multiplier can have in the corridor: the exact counterpart of learning it.

In: a ``CorridorTask``, temperatures, a penalty. Out: the risk that uniform actions run in every
state, uniform episodes to score it on, and the state-wise multiplier that ALaM's rule (arXiv
2605.00667) integrates when every policy on the way is evaluated exactly, on the lattice of
``algd.analysis.corridor_solution``.

Under a hard constraint the threshold is 0: multipliers never fall, and hold the sum of all risk
that was met. Those of the optimum alone are 0 wherever one bad action can still be made good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from algd.analysis.calibration import auroc
from algd.analysis.corridor_solution import Bools, Floats, solve_corridor
from algd.environments.analytic_corridor import SLIDE_LIMIT, START_HALF_WIDTH, CorridorTask

_STEP_OF_POLICY = 0.3  # share by which log-policies move towards those of the current energy


@dataclass(frozen=True)
class Exploration:
    """Steps of episodes of uniform actions on the lattice; N steps.

    states: (3, N) step, row of velocity, row of position. violated: (N,) whether a collision is
    ahead.
    """

    states: NDArray[np.int_]
    violated: NDArray[np.bool_]

    def auroc_of(self, scores: Floats) -> float:
        """Return how well scores (T, V, Y) foresee the collisions."""
        return auroc(scores[tuple(self.states)], self.violated)


@dataclass(frozen=True)
class DualPath:
    """The end of exact learning.

    multiplier: (T, V, Y), reward per collision. share_of_optimum: mean return over that of the safe
    optimum on the same lattice, over starts. violations: mean probability of a collision.
    """

    multiplier: Floats
    share_of_optimum: float
    violations: float


class CorridorLattice:
    """The corridor, walls included, as a finite process: 2 n + 1 actions, exact moves.

    Args:
        task: the corridor.
        levels: positive levels of the action, n, as in ``solve_corridor``.
    """

    def __init__(self, task: CorridorTask, *, levels: int = 2) -> None:
        self.task = task
        self.levels = levels
        self._solution = solve_corridor(task, levels=levels)
        self.actions = self._solution.actions
        top, half = len(self._solution.velocities) // 2, len(self._solution.positions) // 2
        self._wall = round(SLIDE_LIMIT * half)
        self.speeds = np.arange(-top, top + 1)
        self.positions = np.arange(-self._wall, self._wall + 1) / half
        steps = range(task.num_steps + 1)
        # The margin of the solution, so that both let a mass touch the same nodes.
        self.hits = [task.unsafe(step, self.positions, margin=1e-6) for step in steps]
        arrival = self.speeds[:, None] + np.arange(-self._wall, self._wall + 1)
        slides = np.abs(arrival) > self._wall
        self._speed_row = np.where(slides, top, np.arange(len(self.speeds))[:, None])
        self._place_row = np.clip(arrival, -self._wall, self._wall) + self._wall

    @property
    def starts(self) -> NDArray[np.int_]:
        """Rows of the positions that episodes start from, at rest."""
        return np.flatnonzero(np.abs(self.positions) <= START_HALF_WIDTH + 1e-9)

    @property
    def safe(self) -> Bools:
        """The viability kernel, (T + 1, V, Y)."""
        beyond = (len(self.positions) - len(self._solution.positions)) // 2
        return np.pad(self._solution.safe, ((0, 0), (0, 0), (beyond, beyond)))

    @property
    def optimum(self) -> float:
        """Mean return over starts of the best control that never collides."""
        return float(self._solution.value(0, self.positions[self.starts], 0.0).mean())

    def _of_actions(self, arriving: Floats) -> Floats:
        """Value of each action (J, V, Y) from that of arriving with a velocity (V, Y)."""
        departed = arriving[self._speed_row, self._place_row]
        rows = np.arange(len(self.speeds))
        jumps = np.rint(self.actions * self.levels).astype(int)
        return np.stack([departed[np.clip(rows + jump, 0, len(rows) - 1)] for jump in jumps])

    def evaluate(
        self, policy: Sequence[Floats]
    ) -> tuple[list[Floats], list[Floats], Floats, Floats]:
        """Return Q of reward, Q of risk, risk (T, V, Y), and the reward's value at step 0 (V, Y).

        Risk is the probability of a collision ahead.

        Args:
            policy: T times probabilities (J, V, Y); either Q has this form.
        """
        task, steps = self.task, self.task.num_steps
        value = np.zeros((len(self.speeds), len(self.positions)))
        risk = np.zeros_like(value)
        rewards, dangers, risks = [], [], []
        price = task.action_price * np.square(self.actions)[:, None, None]
        for step in range(steps - 1, -1, -1):
            ahead = np.maximum(self.hits[step + 1], risk)
            reward = self._of_actions(task.reward(self.positions, 0.0) + value) - price
            danger = self._of_actions(ahead)
            value, risk = (policy[step] * reward).sum(0), (policy[step] * danger).sum(0)
            rewards.append(reward)
            dangers.append(danger)
            risks.append(risk)
        return rewards[::-1], dangers[::-1], np.stack(risks[::-1]), value

    def uniform(self) -> list[Floats]:
        """Return the policy of uniform actions."""
        shape = (len(self.actions), len(self.speeds), len(self.positions))
        return [np.full(shape, 1.0 / len(self.actions))] * self.task.num_steps

    def explore(self, *, episodes: int, seed: int) -> Exploration:
        """Drive uniform actions from uniform starts."""
        rng = np.random.default_rng(seed)
        rest = len(self.speeds) // 2
        speed, place = np.full(episodes, rest), rng.choice(self.starts, episodes)
        states, costs = [], []
        for step in range(self.task.num_steps):
            states.append(np.stack([np.full(episodes, step), speed, place]))
            jump = rng.integers(-self.levels, self.levels + 1, episodes)
            pushed = np.clip(speed + jump, 0, len(self.speeds) - 1)
            speed, place = self._speed_row[pushed, place], self._place_row[pushed, place]
            costs.append(self.hits[step + 1][place])
        ahead = np.cumsum(np.array(costs)[::-1], axis=0)[::-1] > 0
        return Exploration(np.concatenate(states, axis=1), ahead.ravel())


def solve_dual(lattice: CorridorLattice, *, temperatures: Floats, penalty_coef: float) -> DualPath:
    """Alternate exact evaluation, the dual step of every state, and a step of the policy.

    Args:
        lattice: the process.
        temperatures: (K,) of the policy that each round moves towards, in reward.
        penalty_coef: of the dual step: multipliers grow by it times the risk in their state.
    """
    steps = lattice.task.num_steps
    policy = lattice.uniform()
    logits = [np.zeros_like(one) for one in policy]
    multiplier = np.zeros((steps, len(lattice.speeds), len(lattice.positions)))
    for temperature in temperatures:
        rewards, dangers, risk, _ = lattice.evaluate(policy)
        multiplier += penalty_coef * risk
        for step in range(steps):
            energy = multiplier[step] * dangers[step] - rewards[step]
            logits[step] += _STEP_OF_POLICY * (-energy / temperature - logits[step])
            mass = np.exp(logits[step] - logits[step].max(0))
            policy[step] = mass / mass.sum(0)
    _, _, risk, value = lattice.evaluate(policy)
    rest = len(lattice.speeds) // 2
    return DualPath(
        multiplier=multiplier,
        share_of_optimum=float(value[rest, lattice.starts].mean() / lattice.optimum),
        violations=float(risk[0, rest, lattice.starts].mean()),
    )
