"""A regression step of an ensemble written out for a CPU: one member at a time, while it is cached.

In: inputs, targets, and the trained weights of an ensemble with one output. Out: the outputs, and
the gradient of the squared error in ``.grad`` of the weights. The error of each member is its own,
so that a member runs forward and backward before the next one starts. Relation:
``alam.cpu_passes``, which needs the whole ensemble's outputs before any gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alam import cpu_passes
from alam.cpu_passes import ACTIVATIONS, Member


def gradient_buffers(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the memory of the gradients, kept between steps."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def regress(
    members: Sequence[Member],
    activation: str,
    inputs: Sequence[Tensor],
    target: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> Tensor:
    """Return outputs (E, N); set the gradients of sum_e mean_n (output - target)^2.

    Args:
        members: views of the weights. activation: key of ``ACTIVATIONS``.
        inputs: parts with the same leading shape (N,).
        target: (E, N) or (N,).
        weights, biases: the stacked parameters whose ``.grad`` is overwritten.
    """
    joined = torch.cat(list(inputs), dim=-1) if len(inputs) > 1 else inputs[0]
    outputs = joined.new_empty(len(members), len(joined))
    targets = target.expand_as(outputs)
    of_weights = [grad.unbind(0) for grad in gradient_buffers(weights)]
    of_biases = [grad.squeeze(1).unbind(0) for grad in gradient_buffers(biases)]
    for index, member in enumerate(members):
        _member(
            member,
            activation,
            joined,
            targets[index],
            outputs[index],
            [grads[index] for grads in of_weights],
            [grads[index] for grads in of_biases],
        )
    return outputs


def _member(
    member: Member,
    activation: str,
    joined: Tensor,
    target: Tensor,
    output: Tensor,
    of_weights: Sequence[Tensor],
    of_biases: Sequence[Tensor],
) -> None:
    """Write the outputs of one member and the gradients of its weights."""
    forward, backward = ACTIVATIONS[activation].forward, ACTIVATIONS[activation].backward
    hidden, hiddens, slopes = joined, [joined], []
    for layer in member.layers[:-1]:
        hidden, slope = forward(cpu_passes.product(hidden, *layer))
        hiddens.append(hidden)
        slopes.append(slope)
    weight, transposed, bias = member.layers[-1]
    torch.addmv(bias, hidden, weight[:, 0], out=output)
    error = torch.sub(output, target).mul_(2.0 / len(target))
    torch.sum(error, 0, keepdim=True, out=of_biases[-1])
    torch.mv(hiddens.pop().t(), error, out=of_weights[-1][:, 0])
    value = backward(error.unsqueeze(1) * transposed, slopes.pop())
    for layer in range(len(member.layers) - 2, -1, -1):
        torch.sum(value, 0, out=of_biases[layer])
        of_weights[layer].copy_(cpu_passes.product(hiddens.pop().t(), value, value.t()))
        if layer:
            weight, transposed, _ = member.layers[layer]
            value = backward(cpu_passes.product(value, transposed, weight), slopes.pop())
