"""One action at a time in numpy: what an environment step costs without torch's calls.

In: one observation and its noise. Out: one action. The samplers read the live weights of a policy
on a CPU (numpy views of the parameters), so that an optimiser step or a loaded checkpoint needs no
refresh. Weights on another device are copied before each action: one transfer instead of a chain of
small kernels. They compute what the policies compute, to float32 rounding, at a fraction of the
time; batches are better served by the policies themselves.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from alam.gaussian import LOG_STD_MAX, LOG_STD_MIN, GaussianPolicy
from alam.networks import MLP

Array = np.ndarray
P = TypeVar("P", bound=nn.Module)


def observation_rows(obs: Array, width: int, policy: nn.Module) -> Float[Array, "N O"]:
    """Return observations in the policy's precision.

    Raises:
        ValueError: they are not of shape (N, ``width``).
    """
    double = next(policy.parameters()).dtype == torch.float64
    rows = np.asarray(obs, np.float64 if double else np.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"obs must have shape (N, {width}), got {rows.shape}")
    return rows


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    return x * (0.5 * (1.0 + np.tanh(0.5 * x)))


def mish(x: Array) -> Array:
    """Return x * tanh(softplus(x))."""
    return x * np.tanh(np.logaddexp(0.0, x))


_ACTIVATIONS = {"silu": silu, "tanh": np.tanh, "mish": mish}


def view(parameter: Tensor) -> Array:
    """Return the memory of a CPU tensor as an array.

    Raises:
        ValueError: the tensor is on another device.
    """
    if parameter.device.type != "cpu":
        raise ValueError(f"numpy acting needs weights on the cpu, got {parameter.device}")
    return parameter.detach().numpy()


class RowPerceptron:
    """An ``MLP`` for one row at a time, in memory of its own."""

    def __init__(self, network: MLP) -> None:
        self.weights = [view(weight)[0] for weight in network.weights]
        self.biases = [view(bias)[0, 0] for bias in network.biases]
        ends = np.cumsum(network.parts)[:-1]
        self.blocks = np.split(self.weights[0], ends)
        # np.maximum with a scalar takes twice the time.
        self.layers = [
            (weight.T.dot, bias, np.empty_like(bias), np.zeros_like(bias))
            for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True)
        ]
        self.zeros = np.zeros_like(self.biases[0])
        name = network.activation_name
        # Of rectified units in place, below.
        self.activation = None if name == "relu" else _ACTIVATIONS[name]

    def last_hidden(self, hidden: Float[Array, " H"]) -> Float[Array, " H"]:
        """Return what the output layer reads, from the first pre-activation, which it overwrites.

        The result is valid until the next call.
        """
        activation, add, maximum = self.activation, np.add, np.maximum
        if activation is None:
            maximum(hidden, self.zeros, out=hidden)
            for times, bias, buffer, zeros in self.layers:
                times(hidden, buffer)
                add(buffer, bias, out=buffer)
                hidden = maximum(buffer, zeros, out=buffer)
            return hidden
        hidden = activation(hidden)
        for times, bias, buffer, _ in self.layers:
            hidden = activation(add(times(hidden, buffer), bias, out=buffer))
        return hidden


class Sampler(Protocol):
    """Actions of one policy, one observation at a time."""

    def sample(self, obs: Float[Array, " O"], noise: Array | None) -> Float[Array, " A"]:
        """Return an action; without noise the deterministic one."""
        ...


class GaussianSampler:
    """tanh(mean(s) + std(s) * noise) of a ``GaussianPolicy``."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self.network = RowPerceptron(policy.network)
        self.action_dim = policy.action_dim

    @np.errstate(all="ignore")  # weights that diverge are told of where they are checked
    def sample(
        self, obs: Float[Array, " O"], noise: Float[Array, " A"] | None
    ) -> Float[Array, " A"]:
        """Return an action; without noise that of the latent mean."""
        network = self.network
        hidden = network.last_hidden(obs.dot(network.weights[0]) + network.biases[0])
        output = hidden.dot(network.weights[-1]) + network.biases[-1]
        mean = output[: self.action_dim]
        if noise is None:
            return np.tanh(mean)
        span = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
        log_std = LOG_STD_MIN + span * (np.tanh(output[self.action_dim :]) + 1.0)
        return np.tanh(mean + np.exp(log_std) * noise)


def _on_host(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu"


class HostCopy(Generic[P]):
    """A copy of a policy on the CPU; all its weights are views of one array.

    ``policy`` has the weights of the last ``refresh``, at first none that mean anything.
    """

    def __init__(self, policy: P) -> None:
        self._parameters = list(policy.parameters())
        self.policy = deepcopy(policy).cpu()
        self._weights = torch.empty(
            sum(parameter.numel() for parameter in self._parameters),
            dtype=self._parameters[0].dtype,
            pin_memory=self._parameters[0].device.type == "cuda",
        )
        sizes = [parameter.numel() for parameter in self._parameters]
        for own, part in zip(self.policy.parameters(), self._weights.split(sizes), strict=True):
            own.data = part.view_as(own)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights of the policy, by one transfer."""
        self._weights.copy_(torch.cat([parameter.reshape(-1) for parameter in self._parameters]))


class KeptSampler(Generic[P]):
    """The sampler of a policy, made again for another policy or weights that moved in memory.

    Args:
        make: makes the sampler of a policy on a CPU in float32.
    """

    def __init__(self, make: Callable[[P], Sampler]) -> None:
        self._make = make
        self._policy: P | None = None
        self._parameters: list[nn.Parameter] = []
        self._place: list[int] = []
        self._sampler: Sampler | None = None
        self._copy: HostCopy[P] | None = None

    def get(self, policy: P) -> Sampler | None:
        """Return the sampler of a policy's present weights; None where they are not float32."""
        if policy is not self._policy:
            self._policy, self._parameters, self._place = policy, list(policy.parameters()), []
        place = [parameter.data_ptr() for parameter in self._parameters]
        if place != self._place:
            self._place, self._copy, self._sampler = place, None, None
            if self._parameters[0].dtype == torch.float32:
                if not _on_host(self._parameters[0]):
                    self._copy = HostCopy(policy)
                self._sampler = self._make(self._copy.policy if self._copy else policy)
        if self._copy is not None:
            self._copy.refresh()
        return self._sampler
