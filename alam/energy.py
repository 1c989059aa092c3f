"""The energy of actions and its slope, by the chain rule written out.

In: frozen critics, a constraint, multipliers, actions. Out: energies, violations, and the gradient
of the energies in the actions, without a graph. d energy / d action is minus the slope of the twin
that is smaller, plus the dual target times the slope of the pessimistic cost (arXiv 2602.02924);
autograd gives the same from ``ConstrainedLearner.evaluate`` at several times the overhead.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from alam.critics import SafeCritics
from alam.lagrangian import Constraint
from alam.vmap_rules import is_transformed

Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(obs (B, O), actions (*S, B, A)) -> energy and constraint violation, each (*S, B)."""


class EnergySlope(NamedTuple):
    """Energies and violations, each (*S, B), and d energy / d action, (*S, B, A)."""

    energy: Tensor
    violation: Tensor
    slope: Tensor


class FrozenEnergy:
    """``Evaluate`` for rows of one batch, with slopes; for eager computation on a CPU.

    Args:
        evaluate: energies and violations of (obs, actions).
        critics, constraint: what it evaluates.
        multiplier: (N,), of the batch; observations that are asked for are its first rows.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        critics: SafeCritics,
        constraint: Constraint,
        multiplier: Float[Tensor, " N"],
    ) -> None:
        self.evaluate = evaluate
        self.critics = critics
        self.constraint = constraint
        self.multiplier = multiplier

    def __call__(
        self, obs: Float[Tensor, "B O"], action: Float[Tensor, "*S B A"]
    ) -> tuple[Tensor, Tensor]:
        """Return energy and violation; gradients reach the actions alone."""
        return self.evaluate(obs, action)

    @torch.no_grad()
    def slopes(self, obs: Float[Tensor, "B O"], action: Float[Tensor, "*S B A"]) -> EnergySlope:
        """Return energy, violation and the slope of the energy."""
        reward, cost = self.critics.slopes(obs, action)
        violation = self.constraint.violation(cost.value)
        multiplier = self.multiplier[: len(obs)]
        energy = self.constraint.energy(reward.value, violation, multiplier)
        weight = self.constraint.violation_weight(violation, multiplier) / self.constraint.unit
        return EnergySlope(
            energy, violation, torch.addcmul(-reward.slope, weight.unsqueeze(-1), cost.slope)
        )


def energy_slopes(evaluate: Evaluate, obs: Tensor, action: Tensor) -> EnergySlope:
    """Return energy, violation and slope, detached; by autograd where ``evaluate`` has no rule."""
    if isinstance(evaluate, FrozenEnergy):
        return evaluate.slopes(obs, action)
    if is_transformed(obs):  # where autograd's own call is refused

        def total(action: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            energy, violation = evaluate(obs, action)
            return energy.sum(), (energy, violation)

        slope, values = torch.func.grad(total, has_aux=True)(action.detach())
        return EnergySlope(values[0], values[1], slope)
    with torch.enable_grad():
        action = action.detach().requires_grad_(True)
        energy, violation = evaluate(obs, action)
        (slope,) = torch.autograd.grad(energy.sum(), action)
    return EnergySlope(energy.detach(), violation.detach(), slope)


def differentiable_energy(evaluate: Evaluate, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return energy and violation, the energy with a graph that leads to the actions."""
    if not (isinstance(evaluate, FrozenEnergy) and action.requires_grad):
        return evaluate(obs, action)
    held = action.detach()
    energy, violation, slope = evaluate.slopes(obs, held)
    # Adds zero, and carries the gradient.
    return energy + ((action - held) * slope).sum(-1), violation
