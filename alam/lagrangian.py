"""The augmented Lagrangian, its dual target and the cost threshold, as pure functions.

In: critic values and multipliers. Out: energies (low is good) and dual targets.
Relation: arXiv 2602.02924 (the energy) and arXiv 2605.00667 (the dual target). One function serves
both, since d energy / d violation = [multiplier + penalty_coef * violation]_+ = the dual target.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alam.config import Config

_LEAST_SHARE = 0.1  # of the threshold, that calibration leaves
_MAX_STEP = 1.0  # of the logarithm of the threshold, by one episode
_AIM = 0.8  # share of the limit: what aims at the limit itself is above it half of the time


def cost_threshold(*, cost_limit: float, episode_length: int, cost_discount: float) -> float:
    """Convert a cost budget per episode to the scale of a discounted critic.

    A policy that spends ``cost_limit`` evenly over ``episode_length`` steps has this discounted
    cost from the start of an episode that ends then; with ``cost_discount`` 1 the budget itself.
    Where a time limit ends episodes critics bootstrap on, up to 1 / (1 - cost_discount ** T) times
    it: 1.00 at T = 1000 and 0.99, but 1.58 at T = 100, which makes the limit that much tighter.
    """
    if cost_limit < 0:
        raise ValueError(f"cost_limit must be >= 0, got {cost_limit}")
    if episode_length < 1:
        raise ValueError(f"episode_length must be >= 1, got {episode_length}")
    if not 0.0 <= cost_discount <= 1.0:
        raise ValueError(f"cost_discount must be in [0, 1], got {cost_discount}")
    if cost_discount == 1.0:
        return cost_limit
    horizon = (1.0 - cost_discount**episode_length) / (1.0 - cost_discount)
    return cost_limit * horizon / episode_length


def dual_target(
    multiplier: Float[Tensor, "*#B"],
    violation: Float[Tensor, "*#B"],
    *,
    penalty_coef: float | Tensor,
    multiplier_max: float | Tensor = float("inf"),
) -> Float[Tensor, "..."]:
    """Return clip([multiplier + penalty_coef * violation]_+, 0, multiplier_max).

    A multiplier equal to its own dual target satisfies the KKT conditions: multiplier >= 0,
    violation <= 0, multiplier * violation = 0 (arXiv 2605.00667).
    """
    return torch.clamp(multiplier + penalty_coef * violation, min=0.0).clamp(max=multiplier_max)


def lagrangian(
    q_reward: Float[Tensor, "*#B"],
    violation: Float[Tensor, "*#B"],
    multiplier: Float[Tensor, "*#B"],
) -> Float[Tensor, "..."]:
    """Return the plain Lagrangian -q_reward + multiplier * violation as an energy."""
    return multiplier * violation - q_reward


def augmented_lagrangian(
    q_reward: Float[Tensor, "*#B"],
    violation: Float[Tensor, "*#B"],
    multiplier: Float[Tensor, "*#B"],
    *,
    penalty_coef: float | Tensor,
) -> Float[Tensor, "..."]:
    """Energy whose Gibbs law is the policy (arXiv 2602.02924); low is good.

    -q_reward + ([multiplier + penalty_coef * violation]_+^2 - multiplier^2) / (2 penalty_coef).
    Tends to the plain Lagrangian as ``penalty_coef`` -> 0 wherever the multiplier is positive, and
    adds curvature penalty_coef * |grad violation|^2 where the hinge is active. In float32 the
    squares cancel: energies err by some 1e-7 * multiplier^2 / penalty_coef, their slopes do not.
    """
    hinge = torch.clamp(multiplier + penalty_coef * violation, min=0.0)
    return (hinge.square() - multiplier.square()) / (2.0 * penalty_coef) - q_reward


@dataclass(frozen=True)
class ConstraintConfig(Config):
    """What is constrained, and how a violation enters the energy.

    cost_limit: budget of undiscounted cost per episode.
    augmented: quadratic augmentation on; off gives the plain Lagrangian.
    penalty_coef: the coefficient rho, in the unit below.
    unit: ``threshold`` measures violations in units of the threshold, so that one coefficient
        serves tasks whose costs differ by orders of magnitude; ``raw`` in units of the cost critic
        (the released ALGD code). A threshold of 0 has the unit 1.
    hinge: ``sample`` applies the hinge per state (a constraint in every state), ``batch`` to the
        batch mean (a constraint on the expectation).
    calibration_rate: per training episode after the warm-up, moves the threshold by this share of
        the episode's relative excess over four fifths of ``cost_limit``, down to a tenth and never
        above what the limit gives: integral control against cost critics that err for long. 0
        trusts the critics, as the papers do.
    """

    cost_limit: float = 25.0
    augmented: bool = True
    penalty_coef: float = 1.0
    unit: Literal["threshold", "raw"] = "threshold"
    hinge: Literal["sample", "batch"] = "sample"
    calibration_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cost_limit < float("inf"):
            raise ValueError(f"cost_limit must be >= 0 and finite, got {self.cost_limit}")
        if not 0 < self.penalty_coef < float("inf"):
            raise ValueError(
                f"penalty_coef must be positive and finite, got {self.penalty_coef} "
                "(for no penalty set augmented to false)"
            )
        if not 0 <= self.calibration_rate <= 1:
            raise ValueError(f"calibration_rate must be in [0, 1], got {self.calibration_rate}")
        if self.calibration_rate > 0 and self.cost_limit == 0:
            raise ValueError("calibration_rate needs a cost_limit above 0, got 0")


class Constraint(nn.Module):
    """A threshold on the cost critic, its unit, and the energy built from them.

    Everything downstream (multiplier, penalty, dual target) lives in the unit; divide a multiplier
    by ``unit`` to get it in units of reward per unit of the cost critic.
    """

    threshold: Tensor
    unit: Tensor
    penalty_coef: Tensor

    def __init__(self, config: ConstraintConfig, *, threshold: float) -> None:
        super().__init__()
        self.config = config
        unit = threshold if config.unit == "threshold" and threshold > 0 else 1.0
        self.nominal_threshold = threshold
        self.register_buffer("threshold", torch.tensor(float(threshold)))
        self.register_buffer("unit", torch.tensor(float(unit)))
        self.register_buffer("penalty_coef", torch.tensor(float(config.penalty_coef)))

    def violation(self, q_cost: Float[Tensor, "*#B"]) -> Float[Tensor, "..."]:
        """Return (q_cost - threshold) / unit; positive where the constraint is broken."""
        return (q_cost - self.threshold) / self.unit

    def observe_episode(self, cost: float) -> None:
        """Calibrate the threshold by the cost of a finished training episode."""
        rate = self.config.calibration_rate
        if rate > 0.0:
            # The excess itself must not be clipped: of costs that are mostly 0 and rarely hundreds
            # the clipped mean can be below the aim while the mean is far above it.
            step = min(rate * (cost / (_AIM * self.config.cost_limit) - 1.0), _MAX_STEP)
            least = _LEAST_SHARE * self.nominal_threshold
            self.threshold.mul_(math.exp(-step)).clamp_(least, self.nominal_threshold)

    def energy(
        self,
        q_reward: Float[Tensor, "*#B"],
        violation: Float[Tensor, "*#B"],
        multiplier: Float[Tensor, "*#B"],
    ) -> Float[Tensor, "..."]:
        """Return the energy of actions; gradients flow to whatever the arguments carry."""
        if not self.config.augmented:
            return lagrangian(q_reward, violation, multiplier)
        if self.config.hinge == "sample":
            return augmented_lagrangian(
                q_reward, violation, multiplier, penalty_coef=self.penalty_coef
            )
        # Batch hinge: every row is weighed by the one dual target of the batch mean. The value of
        # the energy is linear in the row's violation, so differences between rows stay meaningful.
        weight = self.violation_weight(violation.detach(), multiplier)
        return lagrangian(q_reward, violation, weight)

    def violation_weight(
        self, violation: Float[Tensor, "*#B"], multiplier: Float[Tensor, "*#B"]
    ) -> Float[Tensor, "..."]:
        """Return d energy / d violation, of the shape of the violation."""
        if not self.config.augmented:
            return multiplier.expand_as(violation)
        if self.config.hinge == "batch":
            multiplier, mean = multiplier.mean(), violation.mean()
            weight = dual_target(multiplier, mean, penalty_coef=self.penalty_coef)
            return weight.expand_as(violation)
        return dual_target(multiplier, violation, penalty_coef=self.penalty_coef)
