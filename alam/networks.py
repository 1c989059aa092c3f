"""Multilayer perceptrons and ensembles of them; they know nothing of reinforcement learning.

In: feature tensors. Out: features. An ensemble stores each layer once, stacked over its members,
and chooses how to run it: written-out passes with one matrix product per member on a CPU
(``alam.cpu_passes``), one batched product per layer on a GPU and under a compiler.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alam import cpu_regression
from alam.cpu_frozen import can_sweep, run_frozen, sweep
from alam.cpu_passes import Member, Passes, broadcast_leading, members_of, run
from alam.vmap_rules import affine, is_transformed, silu

Activation = Literal["relu", "silu", "tanh", "mish"]
InitialWeights = Literal["uniform", "xavier", "normal"]
_ACTIVATIONS = {"relu": F.relu, "silu": silu, "tanh": torch.tanh, "mish": F.mish}


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
        initial: ``uniform`` within 1 / sqrt(fan in), biases too, as in ``torch.nn.Linear``;
            ``xavier``, uniform within sqrt(6 / (fan in + fan out)), or ``normal`` of deviation
            1 / (2 sqrt(fan in)), both with biases 0.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        num_members: int,
        in_features: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
        initial: InitialWeights = "uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.parts = tuple(in_features)
        self.activation = _ACTIVATIONS[activation]
        self.activation_name = activation
        self._members_kept: list[Member] = []
        self._members_place: list[int] = []
        sizes = [sum(in_features), *hidden, out_features]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.empty(num_members, fan_in, fan_out)
            bias = torch.zeros(num_members, 1, fan_out)
            if initial == "normal":
                weight.normal_(0.0, 0.5 * fan_in**-0.5, generator=generator)
            else:
                bound = (6 / (fan_in + fan_out)) ** 0.5 if initial == "xavier" else fan_in**-0.5
                weight.uniform_(-bound, bound, generator=generator)
                if initial == "uniform":
                    bias.uniform_(-bound, bound, generator=generator)
            self.weights.append(weight)
            self.biases.append(bias)

    def project(self, x: Float[Tensor, "... F"], part: int) -> "Projection":
        """Return the product of an input part with its block of the first layer.

        A part that stays the same over many calls is passed to them as its projection.
        """
        block = self.weights[0].split(self.parts, dim=1)[part]
        product = x.flatten(0, -2) @ block
        return Projection(product.unflatten(1, x.shape[:-1]))

    def forward(
        self, *inputs: "Tensor | Projection", frozen: bool = False
    ) -> Float[Tensor, "E ..."]:
        """Return the outputs of all members, shape (E, *leading, out_features).

        Args:
            inputs: one tensor per input part, (*leading, features), leading dimensions broadcast;
                or its ``project``-ion.
            frozen: take no gradient for the weights; gradients still flow to the inputs.
        """
        weights, biases = _tensors(self.weights), _tensors(self.biases)
        if frozen:
            weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        projected = tuple(isinstance(x, Projection) for x in inputs)
        tensors = [x.value if isinstance(x, Projection) else x for x in inputs]
        leading = broadcast_leading(tensors, projected)
        differentiable = partial(self._stacked, projected)
        if self.written_out(tensors[0]):
            passes = Passes(
                self.activation_name,
                self.parts,
                projected,
                leading,
                self.members(),
                differentiable,
            )
            trained = torch.is_grad_enabled() and weights[0].requires_grad
            if not trained and can_sweep(passes, tensors, weights[-1].shape[-1]):
                output = run_frozen(passes, tensors, weights, biases)
            else:
                output = run(passes, tensors, weights, biases)
        else:
            output = differentiable(tensors, weights, biases)
        return output.unflatten(1, leading) if leading else output.squeeze(1)

    def slopes(self, obs: Float[Tensor, "B O"], action: Float[Tensor, "*S B A"]) -> "Slopes":
        """Return outputs and their gradient in the second part; for eager computation on a CPU.

        The output has one feature.
        """
        leading = action.shape[:-1]
        parts = (False, False)
        plain = partial(self._stacked, parts)
        passes = Passes(self.activation_name, self.parts, parts, leading, self.members(), plain)
        outputs, slopes = sweep(passes, (obs, action), (1,))
        return Slopes(outputs.view(-1, *leading), slopes[0].view(-1, *action.shape))

    def regress(self, *inputs: Tensor, target: Tensor) -> Float[Tensor, "E B"]:
        """Return the outputs, and leave the gradient of the squared error in the weights.

        The error is the sum over members of the mean over rows. Gradients that were there before
        are replaced.

        Args:
            inputs: one tensor per input part, (B, features); the output has one feature.
            target: (E, B), or (B,) for all members.
        """
        weights, biases = _tensors(self.weights), _tensors(self.biases)
        if self.written_out(inputs[0]):
            with torch.no_grad():
                return cpu_regression.regress(
                    self.members(), self.activation_name, inputs, target, weights, biases
                )
        outputs = self(*inputs).squeeze(-1)
        self.zero_grad(set_to_none=True)
        (outputs - target).square().mean(-1).sum().backward()
        return outputs.detach()

    def members(self) -> list[Member]:
        """Return views of the weights, made again only when the weights have moved in memory."""
        weights, biases = _tensors(self.weights), _tensors(self.biases)
        place = [tensor.data_ptr() for tensor in (*weights, *biases)]
        if place != self._members_place:
            self._members_kept = members_of(weights, biases, self.parts)
            self._members_place = place
        return self._members_kept

    def written_out(self, x: Tensor) -> bool:
        """True for eager computation on a CPU; all that transforms needs plain operations."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        return not (x.is_cuda or traced or is_transformed(x))

    def _stacked(
        self,
        projected: Sequence[bool],
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
    ) -> Tensor:
        """Return the outputs (E, N, out) by one batched product per layer, in plain torch."""
        hidden = self._first_layer(projected, inputs, weights[0], biases[0])
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            hidden = affine(bias, self.activation(hidden), weight)
        return hidden

    def _first_layer(
        self, projected: Sequence[bool], inputs: Sequence[Tensor], weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Return the first pre-activation with the leading dimensions flattened to one."""
        members, _, width = weight.shape
        if not any(projected) and all(x.shape[:-1] == inputs[0].shape[:-1] for x in inputs):
            flat = torch.cat(list(inputs), dim=-1).flatten(0, -2)
            return affine(bias, flat.expand(members, *flat.shape), weight)
        dims = max(x.dim() - 1 - p for x, p in zip(inputs, projected, strict=True))
        total = bias.reshape(members, *([1] * dims), width)
        blocks = weight.split(self.parts, dim=1)
        for x, done, block in zip(inputs, projected, blocks, strict=True):
            product = x if done else (x.flatten(0, -2) @ block).unflatten(1, x.shape[:-1])
            missing = dims - (product.dim() - 2)
            total = total + product.reshape(members, *([1] * missing), *product.shape[1:-1], width)
        return total.flatten(1, -2)


def _tensors(parameters: nn.ParameterList) -> list[Tensor]:
    """Return the members; from the dictionary under the list, which takes 20 us to read."""
    return list(parameters._parameters.values())  # pyright: ignore[reportReturnType]


class Slopes(NamedTuple):
    """Outputs of all members (E, *S, B) and their gradient in the actions, (E, *S, B, A)."""

    value: Tensor
    slope: Tensor


class Projection(NamedTuple):
    """An input part times its block of the first layer, (E, *leading, H)."""

    value: Float[Tensor, "E ... H"]


class MLP(EnsembleMLP):
    """One perceptron: an ensemble of one without the ensemble dimension."""

    def __init__(
        self,
        in_features: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Activation = "relu",
        initial: InitialWeights = "uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            *(1, in_features, hidden, out_features),
            activation=activation,
            initial=initial,
            generator=generator,
        )

    def forward(self, *inputs: Tensor | Projection, frozen: bool = False) -> Float[Tensor, "..."]:
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
    A state is loaded as its numbers, wherever it was saved: capturable stays as it is here, and a
    learning rate that was held on a device (``alam.captured``) is a number again.
    """
    parameters = list(parameters)
    capturable = parameters[0].is_cuda

    def leave_device(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["capturable"] = capturable
            group["lr"] = float(group["lr"])

    adam = torch.optim.Adam(parameters, lr=learning_rate, fused=True, capturable=capturable)
    adam.register_load_state_dict_post_hook(leave_device)
    # torch warns of each step outside of a graph; here some are inside and some are not.
    adam._warned_capturable_if_run_uncaptured = True
    return adam
