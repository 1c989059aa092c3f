"""Forward and backward passes of an ensemble of perceptrons, written out for a CPU.

In: inputs, stacked weights and biases. Out: outputs of all members, with exact gradients. One
autograd node stands for the whole ensemble, so that a pass costs matrix products and little else:
each member runs its own products (several times faster here than one batched product), gradients
that nobody asked for are never formed, and activations overwrite their argument where they can.

float32 products go to oneDNN, which torch carries for its compiler, except on Intel's processors.
On AMD's it runs at 2.1 times the rate of torch's default (MKL), which leaves AVX-512 unused there;
on Intel's both have one rate, and calling oneDNN costs 40 us more (half of a product of 128 rows
and columns; updates of the benchmark's size take 1.3 times as long).
"""

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


def _is_intel() -> bool:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"^vendor_id\s*: GenuineIntel$", about, re.MULTILINE) is not None


USES_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and not _is_intel()
)
_ONEDNN: Any = torch.ops.mkldnn._linear_pointwise.default if USES_ONEDNN else None
# Below these widths, and for few rows, calling oneDNN costs more than the product (measured).
_MIN_WIDTH, _MIN_ROWS = 16, 32


def product(
    left: Tensor, right: Tensor, right_transposed: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return left @ right + bias of matrices, outside of autograd.

    Args:
        left: (N, K). right: (K, M), any strides.
        right_transposed: the same memory as (M, K); views are kept rather than made again.
        bias: (M,), or None.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    wide = inner >= _MIN_WIDTH and columns >= _MIN_WIDTH and rows >= _MIN_ROWS
    if wide and USES_ONEDNN and left.dtype == torch.float32:
        return _ONEDNN(left, right_transposed, bias, "none", [], "")
    if 1 < columns < _MIN_WIDTH and left.stride(1) == 1:
        # MKL takes a narrow factor 2 to 4 times faster the other way round (measured).
        right = right_transposed.contiguous().t()
    if bias is not None:
        return torch.addmm(bias, left, right)
    if inner == 1:
        return left * right
    if columns == 1:
        return torch.mv(left, right[:, 0]).unsqueeze(1)
    if columns < _MIN_WIDTH and left.stride(0) == 1:
        return torch.mm(right_transposed, left.t()).t()
    return torch.mm(left, right)


class Member:
    """Views of one member's weights, made once: (K, M), its transpose and (M,) of every layer."""

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], parts: Sequence[int]
    ) -> None:
        self.layers = [(w, w.t(), b) for w, b in zip(weights, biases, strict=True)]
        self.blocks = [(block, block.t()) for block in weights[0].split(list(parts))]


def members_of(
    weights: Sequence[Tensor], biases: Sequence[Tensor], parts: Sequence[int]
) -> list[Member]:
    """Return the members of stacked weights; they follow changes in place."""
    count = len(weights[0])
    return [
        Member(
            [weight.detach()[i] for weight in weights],
            [bias.detach()[i, 0] for bias in biases],
            parts,
        )
        for i in range(count)
    ]


def broadcast_leading(inputs: Sequence[Tensor], projected: Sequence[bool]) -> torch.Size:
    """Return the broadcast leading shape of the inputs, without the ensemble dimension."""
    shapes = [
        x.shape[1:-1] if done else x.shape[:-1] for x, done in zip(inputs, projected, strict=True)
    ]
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    # torch.broadcast_shapes takes 120 us.
    dims = max(len(shape) for shape in shapes)
    padded = [(1,) * (dims - len(shape)) + tuple(shape) for shape in shapes]
    return torch.Size(max(sizes) if min(sizes) else 0 for sizes in zip(*padded, strict=True))


def _from_output(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
) -> "Activation":
    return Activation(lambda z: (hidden := forward(z), hidden), backward)


def _from_input(
    forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
) -> "Activation":
    return Activation(lambda z: (forward(z), z), backward)


@dataclass(frozen=True)
class Activation:
    """An activation as this module runs it.

    forward: may overwrite its argument; returns the activation and what ``backward`` needs.
    backward: (gradient, what forward returned) -> gradient of the argument.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = {
    "relu": _from_output(
        torch.relu_, lambda g, h: torch.ops.aten.threshold_backward.default(g, h, 0)
    ),
    "tanh": _from_output(torch.tanh_, torch.ops.aten.tanh_backward.default),
    "silu": _from_input(F.silu, torch.ops.aten.silu_backward.default),
    "mish": _from_input(F.mish, torch.ops.aten.mish_backward.default),
}


@dataclass(frozen=True)
class Passes:
    """The static part of a call: what does not depend on the values.

    activation: key of ``ACTIVATIONS``.
    parts: widths of the input parts.
    projected: which inputs are already products with their block of the first layer.
    leading: the broadcast leading shape of the inputs.
    members: views of the weights.
    differentiable: the same function of the same tensors in plain torch, for second derivatives.
    """

    activation: str
    parts: tuple[int, ...]
    projected: tuple[bool, ...]
    leading: torch.Size
    members: list[Member]
    differentiable: Callable[..., Tensor]

    def split(self, tensors: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """Return inputs, weights and biases of the flat argument list."""
        count = len(self.parts)
        layers = (len(tensors) - count) // 2
        return (
            list(tensors[:count]),
            list(tensors[count : count + layers]),
            list(tensors[count + layers :]),
        )


class _FirstLayer:
    """The inputs of one call, arranged for the first product of every member."""

    def __init__(self, spec: Passes, inputs: Sequence[Tensor]) -> None:
        self.spec = spec
        self.inputs = inputs
        self.leading = leading = spec.leading
        self.joined: Tensor | None = None
        if not any(spec.projected) and all(x.shape[:-1] == leading for x in inputs):
            joined = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=-1)
            self.joined = joined.reshape(-1, joined.shape[-1])
        else:
            self.flat = [
                None if done else x.reshape(-1, x.shape[-1])
                for x, done in zip(inputs, spec.projected, strict=True)
            ]

    def forward(self, index: int, member: Member) -> Tensor:
        """Return the pre-activation of one member, (N, H)."""
        weight, transposed, bias = member.layers[0]
        if self.joined is not None:
            return product(self.joined, weight, transposed, bias)
        width = weight.shape[1]
        full: tuple[Tensor, Tensor] | None = None
        addends: list[Tensor] = []
        for x, flat, block in zip(self.inputs, self.flat, member.blocks, strict=True):
            if flat is None:
                value = x[index]
                # A single row is part of the bias.
                if value.numel() == width:
                    bias = bias + value.reshape(width)
                else:
                    addends.append(value)
            elif full is None and x.shape[:-1] == self.leading:
                full = (flat, block[0])
            else:
                addends.append(product(flat, *block).view(*x.shape[:-1], width))
        if full is None:
            total = bias.expand(*self.leading, width).clone()
        else:
            total = torch.addmm(bias, *full)
            if addends and len(self.leading) > 1:
                total = total.view(*self.leading, width)
        for value in addends:
            total += value
        return total.view(-1, width)

    def input_gradients(
        self, index: int, member: Member, gradient: Tensor, sums: list[Tensor | None]
    ) -> None:
        """Add this member's gradients of the inputs to those ``sums`` that are not None."""
        for place, total in enumerate(sums):
            if total is None:
                continue
            x, done = self.inputs[place], self.spec.projected[place]
            reduced = self._reduce(gradient, x.shape[1:-1] if done else x.shape[:-1])
            if done:
                total[index] = reduced.view(total.shape[1:])
                continue
            block, transposed = member.blocks[place]
            part = product(reduced, transposed, block).view(x.shape)
            if index == 0:
                total.copy_(part)
            else:
                total += part

    def weight_gradient(self, gradient: Tensor, out: Tensor) -> None:
        """Write this member's gradient of the first weight; rows of projected parts are 0."""
        if self.joined is not None:
            out.copy_(product(self.joined.t(), gradient, gradient.t()))
            return
        for flat, x, block in zip(self.flat, self.inputs, out.split(self.spec.parts), strict=True):
            if flat is None:
                block.zero_()
            else:
                reduced = self._reduce(gradient, x.shape[:-1])
                block.copy_(product(flat.t(), reduced, reduced.t()))

    def _reduce(self, gradient: Tensor, leading: torch.Size) -> Tensor:
        """Sum over the dimensions along which a part was broadcast; return (rows, H)."""
        if leading == self.leading:
            return gradient
        width = gradient.shape[-1]
        full = gradient.view(*self.leading, width)
        return full.sum_to_size(*leading, width).view(-1, width)


def _forward(
    spec: Passes, tensors: Sequence[Tensor], *, keep_inputs: bool
) -> tuple[Tensor, _FirstLayer, list[Tensor], list[Tensor]]:
    """Return outputs (E, N, out), and by member and layer what the backward pass needs.

    The last two are the arguments of the activations' derivatives and, with ``keep_inputs``, the
    inputs of the products, which only gradients of weights need.
    """
    activation = ACTIVATIONS[spec.activation].forward
    first = _FirstLayer(spec, tensors[: len(spec.parts)])
    outputs, slopes, hiddens = [], [], []
    for index, member in enumerate(spec.members):
        value = first.forward(index, member)
        for layer in member.layers[1:]:
            hidden, slope = activation(value)
            slopes.append(slope)
            if keep_inputs:
                hiddens.append(hidden)
            value = product(hidden, *layer)
        outputs.append(value)
    return torch.stack(outputs), first, slopes, hiddens


class _Perceptrons(torch.autograd.Function):
    """The ensemble as one node: forward here, backward by hand."""

    @staticmethod
    def forward(ctx, spec: Passes, *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return outputs (E, N, out)."""
        count = len(spec.parts)
        keep_inputs = any(ctx.needs_input_grad[1 + count :])
        output, first, slopes, hiddens = _forward(spec, tensors, keep_inputs=keep_inputs)
        ctx.spec, ctx.first = spec, first
        # Intermediate results are neither inputs nor outputs: holding them makes no cycle.
        ctx.slopes, ctx.hiddens = slopes, hiddens
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return gradients of the tensors that need one."""
        spec: Passes = ctx.spec
        needed = ctx.needs_input_grad[1:]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *differentiable_gradients(spec, tensors, needed, gradient)
        input_sums, weight_sums, bias_sums = spec.split(
            [
                torch.empty_like(tensor) if need else None
                for tensor, need in zip(tensors, needed, strict=True)
            ]
        )
        weights_out = [None if w is None else w.unbind(0) for w in weight_sums]
        biases_out = [None if b is None else b.unbind(0) for b in bias_sums]
        last = len(weight_sums) - 1
        slopes, hiddens, first = ctx.slopes, ctx.hiddens, ctx.first
        backward = ACTIVATIONS[spec.activation].backward
        for index, (member, value) in enumerate(zip(spec.members, gradient.unbind(0), strict=True)):
            for layer in range(last, -1, -1):
                weight_out, bias_out = weights_out[layer], biases_out[layer]
                if bias_out is not None:
                    torch.sum(value, 0, keepdim=True, out=bias_out[index])
                if layer == 0:
                    if weight_out is not None:
                        first.weight_gradient(value, weight_out[index])
                    first.input_gradients(index, member, value, input_sums)
                    break
                place = index * last + layer - 1
                if weight_out is not None:
                    weight_out[index].copy_(product(hiddens[place].t(), value, value.t()))
                weight, transposed, _ = member.layers[layer]
                value = backward(product(value, transposed, weight), slopes[place])
        return None, *input_sums, *weight_sums, *bias_sums


def differentiable_gradients(
    spec: Passes, tensors: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """Return gradients with a graph of their own, by the plain form of the same function."""
    chosen = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
    output = spec.differentiable(*spec.split(tensors))
    gradients = iter(torch.autograd.grad(output, chosen, gradient, create_graph=True))
    return [next(gradients) if need else None for need in needed]


def run(
    spec: Passes, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Return the outputs of all members, (E, N, out), N the flattened leading dimensions."""
    tensors = (*inputs, *weights, *biases)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Perceptrons.apply(spec, *tensors)  # pyright: ignore[reportIncompatibleMethodOverride]
    return _forward(spec, tensors, keep_inputs=False)[0]
