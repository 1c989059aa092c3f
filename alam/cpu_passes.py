"""Forward and backward passes of an ensemble of perceptrons, written out for a CPU.

In: inputs, stacked weights and biases. Out: outputs of all members, with exact gradients. One
autograd node stands for the whole ensemble, so that a pass costs matrix products and little else:
each member runs its own products (several times faster here than one batched product), gradients
that nobody asked for are never formed, and activations overwrite their argument where they can.

float32 products go to oneDNN, which torch carries for its compiler: 2.1 times the rate of torch's
default (MKL) on AMD processors, where MKL leaves AVX-512 unused, and no slower elsewhere.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
# Below these widths, and for few rows, calling oneDNN costs more than the product (measured).
_MIN_WIDTH, _MIN_ROWS = 16, 32


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right + bias of matrices, outside of autograd.

    Args:
        left: (N, K). right: (K, M), any strides.
        bias: (M,), or None.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    wide = inner >= _MIN_WIDTH and columns >= _MIN_WIDTH and rows >= _MIN_ROWS
    if _HAS_ONEDNN and wide and left.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise.default(left, right.t(), bias, "none", [], "")
    if columns == 1 and bias is None:
        return torch.mv(left, right[:, 0]).unsqueeze(1)
    if inner == 1 and bias is None:
        return left * right
    return torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)


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
    differentiable: the same function of the same tensors in plain torch, for second derivatives.
    """

    activation: str
    parts: tuple[int, ...]
    projected: tuple[bool, ...]
    leading: torch.Size
    differentiable: Callable[..., Tensor]

    def split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
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

    def forward(self, member: int, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the pre-activation of one member, (N, H)."""
        if self.joined is not None:
            return product(self.joined, weight, bias)
        width = weight.shape[1]
        blocks = weight.split(self.spec.parts)
        full: tuple[Tensor, Tensor] | None = None
        addends: list[Tensor] = []
        for x, flat, block in zip(self.inputs, self.flat, blocks, strict=True):
            if flat is None:
                value = x[member]
                # A single row is part of the bias.
                if value.numel() == width:
                    bias = bias + value.reshape(width)
                else:
                    addends.append(value)
            elif full is None and x.shape[:-1] == self.leading:
                full = (flat, block)
            else:
                addends.append(product(flat, block).view(*x.shape[:-1], width))
        if full is None:
            total = bias.expand(*self.leading, width).clone()
        else:
            total = torch.addmm(bias, *full).view(*self.leading, width)
        for value in addends:
            total += value
        return total.view(-1, width)

    def input_gradients(
        self, member: int, gradient: Tensor, weight: Tensor, sums: list[Tensor | None]
    ) -> None:
        """Add this member's gradients of the inputs to those ``sums`` that are not None."""
        if self.joined is not None:
            parts = zip(sums, weight.split(self.spec.parts), strict=True)
            for total, block in parts:
                if total is not None:
                    total += product(gradient, block.t()).view_as(total)
            return
        blocks = weight.split(self.spec.parts)
        for total, x, done, block in zip(
            sums, self.inputs, self.spec.projected, blocks, strict=True
        ):
            if total is None:
                continue
            reduced = self._reduce(gradient, x.shape[1:-1] if done else x.shape[:-1])
            if done:
                total[member] += reduced.view_as(total[member])
            else:
                total += product(reduced, block.t()).view_as(total)

    def weight_gradient(self, gradient: Tensor, out: Tensor) -> None:
        """Write this member's gradient of the first weight; rows of projected parts are 0."""
        if self.joined is not None:
            out.copy_(product(self.joined.t(), gradient))
            return
        for flat, x, block in zip(self.flat, self.inputs, out.split(self.spec.parts), strict=True):
            if flat is None:
                block.zero_()
            else:
                block.copy_(product(flat.t(), self._reduce(gradient, x.shape[:-1])))

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
    inputs, weights, biases = spec.split(tensors)
    activation = ACTIVATIONS[spec.activation]
    first = _FirstLayer(spec, inputs)
    by_member = zip(
        zip(*(weight.unbind(0) for weight in weights), strict=True),
        zip(*(bias.squeeze(1).unbind(0) for bias in biases), strict=True),
        strict=True,
    )
    outputs, slopes, hiddens = [], [], []
    for member, (member_weights, member_biases) in enumerate(by_member):
        value = first.forward(member, member_weights[0], member_biases[0])
        for weight, bias in zip(member_weights[1:], member_biases[1:], strict=True):
            hidden, slope = activation.forward(value)
            slopes.append(slope)
            if keep_inputs:
                hiddens.append(hidden)
            value = product(hidden, weight, bias)
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
        ctx.spec, ctx.first, ctx.keep_inputs = spec, first, keep_inputs
        ctx.save_for_backward(*tensors, *slopes, *hiddens)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return gradients of the tensors that need one."""
        spec: Passes = ctx.spec
        needed = ctx.needs_input_grad[1:]
        saved = ctx.saved_tensors
        tensors, rest = saved[: len(needed)], saved[len(needed) :]
        if torch.is_grad_enabled():
            return None, *_differentiable_gradients(spec, tensors, needed, gradient)
        inputs, weights, biases = spec.split(tensors)
        first: _FirstLayer = ctx.first
        input_sums = [
            torch.zeros_like(x) if need else None
            for x, need in zip(inputs, needed[: len(inputs)], strict=True)
        ]
        weight_needs, bias_needs = spec.split(needed)[1:]
        weight_sums = [
            torch.empty_like(w) if n else None for w, n in zip(weights, weight_needs, strict=True)
        ]
        bias_sums = [
            torch.empty_like(b) if n else None for b, n in zip(biases, bias_needs, strict=True)
        ]
        hidden_layers = len(weights) - 1
        middle = hidden_layers * len(gradient)
        slopes, hiddens = rest[:middle], rest[middle:]
        backward = ACTIVATIONS[spec.activation].backward
        for member, value in enumerate(gradient.unbind(0)):
            for layer in range(hidden_layers, -1, -1):
                weight, bias = weight_sums[layer], bias_sums[layer]
                if bias is not None:
                    torch.sum(value, 0, keepdim=True, out=bias[member])
                place = member * hidden_layers + layer - 1
                if layer == 0:
                    if weight is not None:
                        first.weight_gradient(value, weight[member])
                    first.input_gradients(member, value, weights[0][member], input_sums)
                    break
                if weight is not None:
                    weight[member].copy_(product(hiddens[place].t(), value))
                value = backward(product(value, weights[layer][member].t()), slopes[place])
        return None, *input_sums, *weight_sums, *bias_sums


def _differentiable_gradients(
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
