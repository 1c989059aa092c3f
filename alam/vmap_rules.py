"""Rules that ``torch.vmap`` lacks: layers of an ensemble over seeds by the fused kernels of one.

In: features, weights and biases of E members, and of Z seeds under vmap. Out: pre-activations and
activations. Vmap takes ``torch.baddbmm`` apart into four kernels, and the slope of SiLU into six;
here seeds are more members, or more rows. Gradients are of first order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports]


def is_transformed(x: Tensor) -> bool:
    """True inside ``torch.vmap`` and the other transforms of ``torch.func``."""
    compiling = torch.compiler.is_compiling()  # a compiler cannot trace the question
    return not compiling and is_functorch_wrapped_tensor(x)


def _seeds_first(tensor: Tensor, dim: int | None, num_seeds: int) -> Tensor:
    """Return a tensor with a leading seed dimension, whatever it had."""
    return tensor.expand(num_seeds, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _Affine(torch.autograd.Function):
    """bias + x @ weight for each member."""

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
            _seeds_first(tensor, dim, info.batch_size).flatten(0, 1)
            for tensor, dim in zip(inputs, in_dims, strict=True)
        ]
        return _Affine.apply(*flat).unflatten(0, (info.batch_size, -1)), 0  # pyright: ignore[reportReturnType]


def affine(
    bias: Float[Tensor, "E 1 H"], x: Float[Tensor, "E N F"], weight: Float[Tensor, "E F H"]
) -> Float[Tensor, "E N H"]:
    """Return bias + x @ weight of every member."""
    if not is_transformed(x):
        return torch.baddbmm(bias, x, weight)
    return _Affine.apply(bias, x, weight)  # pyright: ignore[reportReturnType]


class _SiLUBackward(torch.autograd.Function):
    """gradient * d silu(x) / dx."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.aten.silu_backward(gradient, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep nothing: there is no second order."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        pairs = zip(inputs, in_dims, strict=True)
        aligned = [_seeds_first(tensor, dim, info.batch_size) for tensor, dim in pairs]
        return _SiLUBackward.apply(*aligned), 0  # pyright: ignore[reportReturnType]


class _SiLU(torch.autograd.Function):
    """x * sigmoid(x)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.silu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _SiLUBackward.apply(gradient, *ctx.saved_tensors)  # pyright: ignore[reportReturnType]

    @staticmethod
    def vmap(
        info: Any,  # noqa: ARG004
        in_dims: tuple[int | None, ...],
        *inputs: Tensor,
    ) -> tuple[Tensor, int | None]:
        return _SiLU.apply(*inputs), in_dims[0]  # pyright: ignore[reportReturnType]


def silu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return x * sigmoid(x)."""
    return _SiLU.apply(x) if is_transformed(x) else F.silu(x)  # pyright: ignore[reportReturnType]
