"""Values and input gradients of frozen critics, in one sweep over blocks that stay in cache.

In: inputs, the weights of an ensemble with one output. Out: the outputs of all members, and a
backward pass that costs one multiplication. What a policy asks of its critics is the slope of a
scalar per row, which does not depend on what is done with it: the sweep takes a block of rows
forward and backward through one member while its activations are still in the L2 cache, and keeps
outputs and slopes alone. Relation: ``alam.cpu_passes``, whose general form this is a case of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alam import cpu_passes
from alam.cpu_passes import ACTIVATIONS, Member, Passes, differentiable_gradients

# Two activations of 256 rows and 256 columns and the weights between them fill 1 MB.
_BLOCK_ROWS = 256


def can_sweep(spec: Passes, inputs: Sequence[Tensor], out_features: int) -> bool:
    """True where one sweep gives all that is asked for.

    Parts either have the full leading shape or are shared by all samples in front of their rows;
    gradients are wanted for the former alone.
    """
    leading = spec.leading
    if out_features != 1 or any(spec.projected) or len(leading) not in (1, 2):
        return False
    return all(
        x.shape[:-1] == leading or (x.shape[:-1] == leading[1:] and not x.requires_grad)
        for x in inputs
    )


class _Sweep:
    """The inputs of one call, cut into blocks of whole samples."""

    def __init__(self, spec: Passes, inputs: Sequence[Tensor], wanted: Sequence[int]) -> None:
        self.spec, self.wanted = spec, wanted
        self.is_full = [x.shape[:-1] == spec.leading for x in inputs]
        self.shared = [x for x, full in zip(inputs, self.is_full, strict=True) if not full]
        own = [x for x, full in zip(inputs, self.is_full, strict=True) if full]
        joined = own[0] if len(own) == 1 else torch.cat(own, dim=-1)
        self.joined = joined.reshape(-1, joined.shape[-1])
        rows = spec.leading[-1]
        # Shared parts repeat every ``rows`` rows, so that a block then holds whole samples.
        size = max(1, _BLOCK_ROWS // rows) * rows if self.shared else _BLOCK_ROWS
        self.blocks = self.joined.split(size)

    def member(self, member: Member, outputs: Tensor, slopes: Sequence[Tensor]) -> None:
        """Write outputs (N,) and, by wanted input, slopes (N, F) of one member."""
        weight, transposed, bias = member.layers[0]
        first = None
        if self.shared:
            blocks = [
                block for block, full in zip(member.blocks, self.is_full, strict=True) if not full
            ]
            own = [block for block, full in zip(member.blocks, self.is_full, strict=True) if full]
            weight = own[0][0] if len(own) == 1 else torch.cat([block for block, _ in own])
            transposed = weight.t()
            first = cpu_passes.product(self.shared[0], *blocks[0], bias)
            for x, block in zip(self.shared[1:], blocks[1:], strict=True):
                first += cpu_passes.product(x, *block)
        of_wanted = [member.blocks[place][1] for place in self.wanted]
        start = 0
        for rows in self.blocks:
            stop = start + len(rows)
            if first is None:
                value = cpu_passes.product(rows, weight, transposed, bias)
            elif len(rows) == len(first):
                value = torch.addmm(first, rows, weight)
            else:
                value = torch.mm(rows, weight)
                value.view(-1, *first.shape).add_(first)
            trace = self._outputs(member, value, outputs[start:stop])
            if of_wanted:
                gradient = self._gradient(member, trace)
                for transposed_block, out in zip(of_wanted, slopes, strict=True):
                    torch.mm(gradient, transposed_block, out=out[start:stop])
            start = stop

    def _outputs(self, member: Member, value: Tensor, output: Tensor) -> list[Tensor]:
        """Write the outputs of a block; return what the slopes of the activations need."""
        forward = ACTIVATIONS[self.spec.activation].forward
        hidden, slope = forward(value)
        trace = [slope]
        for layer in member.layers[1:-1]:
            hidden, slope = forward(cpu_passes.product(hidden, *layer))
            trace.append(slope)
        weight, _, bias = member.layers[-1]
        torch.addmv(bias, hidden, weight[:, 0], out=output)
        return trace

    def _gradient(self, member: Member, trace: list[Tensor]) -> Tensor:
        """Return the gradient of the outputs at the first pre-activation."""
        backward = ACTIVATIONS[self.spec.activation].backward
        slope = trace.pop()
        gradient = backward(member.layers[-1][1].expand_as(slope), slope)
        for weight, transposed, _ in reversed(member.layers[1:-1]):
            gradient = backward(cpu_passes.product(gradient, transposed, weight), trace.pop())
        return gradient


def sweep(
    spec: Passes, inputs: Sequence[Tensor], wanted: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Return outputs (E, N, 1) and, by wanted input, slopes (E, N, F), outside of autograd.

    Args:
        inputs: as ``can_sweep`` describes them. wanted: which of them; of the full leading shape.
    """
    blocks = _Sweep(spec, inputs, wanted)
    members, rows = len(spec.members), len(blocks.joined)
    outputs = inputs[0].new_empty(members, rows)
    slopes = [inputs[i].new_empty(members, rows, inputs[i].shape[-1]) for i in wanted]
    for index, member in enumerate(spec.members):
        blocks.member(member, outputs[index], [slope[index] for slope in slopes])
    return outputs.unsqueeze(-1), slopes


class _Frozen(torch.autograd.Function):
    """The ensemble as a function of its inputs; the weights take no gradient."""

    @staticmethod
    def forward(ctx, spec: Passes, *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return outputs (E, N, 1)."""
        wanted = [i for i in range(len(spec.parts)) if ctx.needs_input_grad[1 + i]]
        outputs, slopes = sweep(spec, tensors[: len(spec.parts)], wanted)
        ctx.spec, ctx.wanted, ctx.slopes = spec, wanted, slopes
        ctx.save_for_backward(*tensors)
        return outputs

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return gradients of the inputs that need one."""
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[1:]
            return None, *differentiable_gradients(ctx.spec, tensors, needed, gradient)
        result: list[Tensor | None] = [None] * len(tensors)
        for place, slope in zip(ctx.wanted, ctx.slopes, strict=True):
            result[place] = (gradient * slope).sum(0).view(tensors[place].shape)
        return None, *result


def run_frozen(
    spec: Passes, inputs: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Return the outputs of all members, (E, N, 1), differentiable in the inputs."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        return _Frozen.apply(spec, *inputs, *weights, *biases)  # pyright: ignore[reportIncompatibleMethodOverride]
    return sweep(spec, inputs, ())[0]
