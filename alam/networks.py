"""Multilayer perceptrons and ensembles of them; they know nothing of reinforcement learning.

In: feature tensors. Out: features. An ensemble stores each layer once, stacked over its members,
and chooses how to run it: one matrix product per member on a CPU (several times faster there than
a batched product), one batched product on a GPU.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["relu", "silu", "tanh", "mish"]
_ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh, "mish": F.mish}


class EnsembleMLP(nn.Module):
    """E perceptrons of one shape evaluated together.

    Inputs may come in several parts (observation, action), whose leading dimensions broadcast: the
    product of a part with the first layer is computed once per row of that part, so that many
    actions per observation do not pay for the observation again.

    Args:
        num_members: E.
        in_features: widths of the input parts, in the order they are passed.
        hidden: widths of the hidden layers.
        out_features: width of the output.
        activation: of the hidden layers.
        generator: source of the initial weights, uniform within 1 / sqrt(fan in) as in
            ``torch.nn.Linear``.
    """

    def __init__(
        self,
        num_members: int,
        in_features: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.parts = list(in_features)
        self.activation = _ACTIVATIONS[activation]
        sizes = [sum(in_features), *hidden, out_features]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            weight = torch.empty(num_members, fan_in, fan_out)
            bias = torch.empty(num_members, 1, fan_out)
            self.weights.append(weight.uniform_(-bound, bound, generator=generator))
            self.biases.append(bias.uniform_(-bound, bound, generator=generator))

    def forward(self, *inputs: Tensor, frozen: bool = False) -> Float[Tensor, "E ..."]:
        """Return the outputs of all members, shape (E, *leading, out_features).

        Args:
            inputs: one tensor per input part, (*leading, features), leading dimensions broadcast.
            frozen: take no gradient for the weights; gradients still flow to the inputs.
        """
        weights = [w.detach() if frozen else w for w in self.weights]
        biases = [b.detach() if frozen else b for b in self.biases]
        leading = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
        if inputs[0].is_cuda:
            hidden = self._first_layer(inputs, weights[0], biases[0], leading)
            for weight, bias in zip(weights[1:], biases[1:], strict=True):
                hidden = torch.baddbmm(bias, self.activation(hidden), weight)
            return hidden.unflatten(1, leading)
        members = zip(
            zip(*(w.unbind(0) for w in weights), strict=True),
            zip(*(b.unbind(0) for b in biases), strict=True),
            strict=True,
        )
        outputs = []
        for member_weights, member_biases in members:
            hidden = self._first_layer(inputs, member_weights[0], member_biases[0], leading)
            for weight, bias in zip(member_weights[1:], member_biases[1:], strict=True):
                hidden = torch.addmm(bias, self.activation(hidden), weight)
            outputs.append(hidden)
        return torch.stack(outputs).unflatten(1, leading)

    def _first_layer(
        self, inputs: tuple[Tensor, ...], weight: Tensor, bias: Tensor, leading: torch.Size
    ) -> Tensor:
        """Return the first pre-activation with the leading dimensions flattened to one."""
        blocks = weight.split(self.parts, dim=-2)
        ensemble = weight.shape[:-2]
        width = weight.shape[-1]
        if all(x.shape[:-1] == leading for x in inputs):
            flat = torch.cat(inputs, dim=-1).flatten(0, -2)
            if ensemble:
                return torch.baddbmm(bias, flat.expand(*ensemble, *flat.shape), weight)
            return torch.addmm(bias, flat, weight)
        total = bias.reshape(*ensemble, *([1] * len(leading)), width)
        for part, block in zip(inputs, blocks, strict=True):
            product = part.flatten(0, -2) @ block
            total = total + product.reshape(
                *ensemble, *([1] * (len(leading) - part.dim() + 1)), *part.shape[:-1], width
            )
        return total.flatten(len(ensemble), -2)


class MLP(EnsembleMLP):
    """One perceptron: an ensemble of one without the ensemble dimension."""

    def __init__(
        self,
        in_features: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            1, in_features, hidden, out_features, activation=activation, generator=generator
        )

    def forward(self, *inputs: Tensor, frozen: bool = False) -> Float[Tensor, "..."]:
        """Return the output, shape (*leading, out_features)."""
        return super().forward(*inputs, frozen=frozen).squeeze(0)


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, *, rate: float) -> None:
    """Move target parameters towards the source: target <- target + rate * (source - target)."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(target.parameters()), list(source.parameters()), rate
    )


def make_adam(parameters: Sequence[Tensor], *, learning_rate: float) -> torch.optim.Adam:
    """Return fused Adam; capturable (steps counted on the device) where the parameters are CUDA.

    Fused measured 3.3 times faster than the default on a CPU; capturable lets a CUDA graph hold it.
    """
    parameters = list(parameters)
    return torch.optim.Adam(
        parameters, lr=learning_rate, fused=True, capturable=parameters[0].is_cuda
    )
