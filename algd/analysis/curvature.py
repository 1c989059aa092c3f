"""Curvature of an energy over actions: smallest Hessian eigenvalue, and what a penalty adds.

In: energies as torch callables, actions. Out: Hessians and eigenvalues, detached. Relation: the
augmented Lagrangian (arXiv 2602.02924) adds penalty_coef * grad Qc grad Qc^T to the Hessian of the
plain one where its hinge is active.

Beware: a network of ReLUs is piecewise linear, so its exact Hessian is zero almost everywhere and
says nothing about its shape. For such critics pass ``step``: curvature is then the central
difference of gradients over that length. The matrix of such differences tells the direction alone:
each of its rows looks at a window of its own, so that it can be indefinite where the energy is
convex. Along a single direction no difference of gradients is negative on a convex energy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING = 16.0  # units in the last place

Energy = Callable[[Tensor], Tensor]
"""Maps actions (B, A) to energies (B,), each row on its own."""


@dataclass(frozen=True)
class CurvatureComparison:
    """Curvature of two energies at the same actions, each (B,).

    plain, augmented: smallest curvature of either, see ``smallest_curvature``.
    added: largest curvature of their difference, augmented minus plain.
    """

    plain: Tensor
    augmented: Tensor
    added: Tensor

    @property
    def convex_shares(self) -> tuple[float, float]:
        """Share of the actions where either energy is convex (plain, augmented)."""
        shares = ((values >= 0).double().mean() for values in (self.plain, self.augmented))
        plain, augmented = (float(share) for share in shares)
        return plain, augmented


def energy_hessian(
    energy: Energy, actions: Float[Tensor, "B A"], *, step: float | None = None
) -> Float[Tensor, "B A A"]:
    """Return the Hessian of the energy at each action.

    Args:
        energy: differentiable; twice where ``step`` is None.
        actions: where.
        step: length of the central difference of gradients, in units of the action; None for
            exact second derivatives.
    """
    if step is not None:
        if not step > 0:
            raise ValueError(f"step must be positive or None, got {step}")
        return _difference_hessian(energy, actions, step)
    with torch.enable_grad():
        points = actions.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
        if not gradient.requires_grad:  # an energy linear in the action
            return torch.zeros(*actions.shape, actions.shape[-1]).to(actions)
        rows = [
            torch.autograd.grad(
                gradient[:, dim].sum(), points, retain_graph=True, materialize_grads=True
            )[0]
            for dim in range(actions.shape[-1])
        ]
    return torch.stack(rows, dim=1).detach()


def smallest_curvature(
    energy: Energy, actions: Float[Tensor, "B A"], *, step: float | None = None
) -> Float[Tensor, " B"]:
    """Return the smallest curvature at each action; negative where not convex, 0 within rounding.

    That is the smallest eigenvalue of the exact Hessian; with ``step`` the difference of gradients
    along its eigenvector, over the length.

    Args:
        energy, actions, step: of ``energy_hessian``.
    """
    hessian = energy_hessian(energy, actions, step=step)
    values, vectors = torch.linalg.eigh(hessian)
    smallest, largest = values[:, 0], values.abs().amax(dim=1)
    if step is not None:
        smallest, steepest = _along(energy, actions, vectors[:, :, 0], step)
        largest = torch.maximum(largest, steepest / step)
    noise = _ROUNDING * torch.finfo(values.dtype).eps * largest
    return torch.where(smallest.abs() <= noise, torch.zeros_like(smallest), smallest)


def compare_curvature(
    plain: Energy,
    augmented: Energy,
    actions: Float[Tensor, "B A"],
    *,
    step: float | None = None,
) -> CurvatureComparison:
    """Compare the energies with and without augmentation at the same actions."""

    def reduced(points: Tensor) -> Tensor:
        return plain(points) - augmented(points)

    return CurvatureComparison(
        plain=smallest_curvature(plain, actions, step=step),
        augmented=smallest_curvature(augmented, actions, step=step),
        added=-smallest_curvature(reduced, actions, step=step),
    )


def _along(
    energy: Energy, actions: Float[Tensor, "B A"], direction: Float[Tensor, "B A"], step: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return the curvature along unit directions, and the largest entry of the gradients there."""
    ahead = _gradient(energy, actions + step * direction)
    behind = _gradient(energy, actions - step * direction)
    steepest = torch.maximum(ahead.abs(), behind.abs()).amax(dim=1)
    return ((ahead - behind) * direction).sum(dim=1) / (2.0 * step), steepest


def _difference_hessian(
    energy: Energy, actions: Float[Tensor, "B A"], step: float
) -> Float[Tensor, "B A A"]:
    rows = []
    for dim in range(actions.shape[-1]):
        shift = torch.zeros_like(actions)
        shift[:, dim] = step
        ahead, behind = _gradient(energy, actions + shift), _gradient(energy, actions - shift)
        rows.append((ahead - behind) / (2.0 * step))
    hessian = torch.stack(rows, dim=1)
    return 0.5 * (hessian + hessian.transpose(1, 2))


def _gradient(energy: Energy, actions: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
    with torch.enable_grad():
        points = actions.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(points).sum(), points)
    return gradient
