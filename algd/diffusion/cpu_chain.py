"""The reverse chain written out for a CPU: one autograd node for all steps.

In: a perceptron of [observation, latent, level embedding], observations, a starting latent, noise,
and the steps. Out: the latents after every step, with exact gradients for the weights and the
embedding. Observation and levels meet the first layer once, and the gradient of each layer's
weights is one matrix product over the rows of all steps. Relation: ``DiffusionPolicy.denoise`` and
``ReleasePolicy.rollout``, which say the same in plain operations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alam import cpu_passes
from alam.cpu_passes import ACTIVATIONS, Member
from alam.networks import MLP


class ChainStep(NamedTuple):
    """u <- keep * u + move * network(input) + spread * noise[noise_index].

    level: row of the embedding. of_input: the input is of_input * u, or tanh(u) if None.
    """

    level: int
    noise_index: int
    of_input: float | None
    keep: float
    move: float
    spread: float


class _Call(NamedTuple):
    """What a run of the chain needs besides trained tensors; nothing here takes a gradient."""

    member: Member
    activation: str
    obs: Tensor
    start: Tensor
    noise: Tensor
    steps: Sequence[ChainStep]


class _Trace(NamedTuple):
    """What the backward pass needs: by step the input; by step and layer hidden and slope."""

    inputs: list[Tensor]
    hiddens: list[list[Tensor]]
    slopes: list[list[Tensor]]


def _forward(call: _Call, embedding: Tensor, *, keep_trace: bool) -> tuple[Tensor, _Trace]:
    """Return the latents after every step, (K, B, A)."""
    member, steps = call.member, call.steps
    of_obs, of_latent, of_level = member.blocks
    activation = ACTIVATIONS[call.activation].forward
    observed = cpu_passes.product(call.obs, *of_obs)
    first = torch.addmm(member.layers[0][2], embedding.detach(), of_level[0]).unbind(0)
    trace = _Trace([], [], [])
    latent, latents = call.start, []
    width = latent.shape[1]
    for step in steps:
        x = torch.tanh(latent) if step.of_input is None else step.of_input * latent
        value = torch.addmm(first[step.level], x, of_latent[0])
        value += observed
        hiddens, slopes = [], []
        for layer in member.layers[1:]:
            hidden, slope = activation(value)
            hiddens.append(hidden)
            slopes.append(slope)
            value = cpu_passes.product(hidden, *layer)
        moved = value if value.shape[1] == width else value[:, :width]
        kept = latent if step.keep == 1.0 else step.keep * latent
        latent = torch.add(kept, moved, alpha=step.move)
        if step.spread:
            latent.add_(call.noise[step.noise_index], alpha=step.spread)
        latents.append(latent)
        if keep_trace:
            trace.inputs.append(x)
            trace.hiddens.append(hiddens)
            trace.slopes.append(slopes)
    return torch.stack(latents), trace


class _Chain(torch.autograd.Function):
    """All steps as one node. Gradients reach embedding, weights and biases."""

    @staticmethod
    def forward(ctx, call: _Call, count: int, embedding: Tensor, *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the latents; ``tensors`` are ``count`` stacked weights, then biases."""
        latents, trace = _forward(call, embedding, keep_trace=True)
        ctx.call, ctx.count, ctx.trace = call, count, trace
        ctx.save_for_backward(embedding, *tensors)
        return latents

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return gradients of embedding, weights and biases."""
        call: _Call = ctx.call
        trace: _Trace = ctx.trace
        embedding = ctx.saved_tensors[0]
        sums = _backward_through_steps(call, trace, gradient, embedding)
        of_level = torch.mm(embedding.t(), sums.levels)
        of_obs = cpu_passes.product(call.obs.t(), sums.observed, sums.observed.t())
        weights = [torch.cat([of_obs, sums.latent, of_level]), *sums.weights]
        biases = [sums.levels.sum(0), *sums.biases]
        of_embedding = torch.mm(sums.levels, call.member.blocks[2][1])
        return (
            None,
            None,
            of_embedding,
            *(weight.unsqueeze(0) for weight in weights),
            *(bias.view(1, 1, -1) for bias in biases),
        )


class _Sums(NamedTuple):
    """Sums over the steps, each formed while a step's activations are cached.

    weights, biases: gradients of all layers but the first. observed: (B, H), of the projection of
    the observations. levels: (T, H), of that of each level. latent: of the latents' weights.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    observed: Tensor
    levels: Tensor
    latent: Tensor


def _backward_through_steps(
    call: _Call, trace: _Trace, gradient: Tensor, embedding: Tensor
) -> _Sums:
    """Run through the steps, last first."""
    member = call.member
    backward = ACTIVATIONS[call.activation].backward
    layers, of_latent = member.layers, member.blocks[1]
    sums = _Sums(
        [torch.zeros_like(weight) for weight, _, _ in layers[1:]],
        [torch.zeros_like(bias) for _, _, bias in layers[1:]],
        gradient.new_zeros(len(call.obs), layers[0][0].shape[1]),
        gradient.new_zeros(len(embedding), layers[0][0].shape[1]),
        torch.zeros_like(of_latent[0]),
    )
    total: Tensor | None = None
    for index in range(len(call.steps) - 1, -1, -1):
        step, x = call.steps[index], trace.inputs[index]
        total = gradient[index] if total is None else total + gradient[index]
        value = step.move * total
        for layer in range(len(layers) - 1, 0, -1):
            hidden, slope = trace.hiddens[index][layer - 1], trace.slopes[index][layer - 1]
            sums.weights[layer - 1].add_(cpu_passes.product(hidden.t(), value, value.t()))
            sums.biases[layer - 1].add_(value.sum(0))
            weight, transposed, _ = layers[layer]
            value = backward(cpu_passes.product(value, transposed, weight), slope)
        sums.observed.add_(value)
        sums.levels[step.level].add_(value.sum(0))
        sums.latent.add_(torch.mm(x.t(), value))
        through = cpu_passes.product(value, of_latent[1], of_latent[0])
        if step.of_input is None:
            through = torch.ops.aten.tanh_backward.default(through, x)
        else:
            through *= step.of_input
        total = torch.add(through, total, alpha=step.keep)
    return sums


def run_chain(
    network: MLP,
    embedding: Tensor,
    obs: Tensor,
    start: Tensor,
    noise: Tensor,
    steps: Sequence[ChainStep],
) -> Tensor:
    """Return the latents after every step, (K, B, A).

    Args:
        network: perceptron of (observation, latent, level), with A outputs.
        embedding: (T, D), the levels as the network hears them.
        obs: (B, O). start: (B, A). noise: (M, B, A). They take no gradient.
        steps: in the order in which they are taken.
    """
    call = _Call(network.members()[0], network.activation_name, obs, start, noise, steps)
    weights, biases = list(network.weights), list(network.biases)
    if torch.is_grad_enabled() and (embedding.requires_grad or weights[0].requires_grad):
        return _Chain.apply(call, len(weights), embedding, *weights, *biases)  # pyright: ignore
    return _forward(call, embedding, keep_trace=False)[0]


def can_run(network: object, *inputs: Tensor) -> bool:
    """True for eager computation on a CPU where no input asks for a gradient."""
    if not isinstance(network, MLP) or any(x.requires_grad for x in inputs):
        return False
    return network.written_out(inputs[0])
