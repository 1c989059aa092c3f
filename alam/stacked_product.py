"""The affine layer of an ensemble that ``torch.vmap`` runs over seeds as one fused product.

In: features, weights and biases of E members, and of Z seeds under vmap. Out: pre-activations. Vmap
knows no rule for ``torch.baddbmm`` and takes it apart into four kernels; here a seed is E members
more.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class _Affine(torch.autograd.Function):
    """bias + x @ weight for each member; gradients of first order."""

    @staticmethod
    def forward(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.baddbmm(bias, x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_bias, of_x, of_weight = ctx.needs_input_grad
        return (
            gradient.sum(1, keepdim=True) if of_bias else None,
            torch.bmm(gradient, weight.mT) if of_x else None,
            torch.bmm(x.mT, gradient) if of_weight else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        """Fold the seeds into the members."""
        flat = [
            (
                tensor.expand(info.batch_size, *tensor.shape)
                if dim is None
                else tensor.movedim(dim, 0)
            ).flatten(0, 1)
            for tensor, dim in zip(inputs, in_dims, strict=True)
        ]
        return _Affine.apply(*flat).unflatten(0, (info.batch_size, -1)), 0  # pyright: ignore[reportReturnType]


def affine(
    bias: Float[Tensor, "E 1 H"], x: Float[Tensor, "E N F"], weight: Float[Tensor, "E F H"]
) -> Float[Tensor, "E N H"]:
    """Return bias + x @ weight of every member, under a transform of ``torch.func``."""
    return _Affine.apply(bias, x, weight)  # pyright: ignore[reportReturnType]
