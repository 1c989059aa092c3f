"""One action at a time in numpy: what an environment step costs without torch's calls.

In: one observation and its noise. Out: one action. The samplers read the live weights of a policy
on a CPU (numpy views of the parameters), so that an optimiser step or a loaded checkpoint needs no
refresh. They compute what the policies compute, to float32 rounding, at a tenth to a fortieth of
the time; batches are better served by the policies themselves.
"""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from alam.gaussian import LOG_STD_MAX, LOG_STD_MIN, GaussianPolicy
from alam.networks import MLP

Array = np.ndarray


def relu(x: Array) -> Array:
    """Return max(x, 0), in place."""
    return np.maximum(x, 0.0, out=x)


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    return x * (0.5 * (1.0 + np.tanh(0.5 * x)))


def mish(x: Array) -> Array:
    """Return x * tanh(softplus(x))."""
    return x * np.tanh(np.logaddexp(0.0, x))


_ACTIVATIONS = {"relu": relu, "silu": silu, "tanh": np.tanh, "mish": mish}


def view(parameter: Tensor) -> Array:
    """Return the memory of a CPU tensor as an array.

    Raises:
        ValueError: the tensor is on another device.
    """
    if parameter.device.type != "cpu":
        raise ValueError(f"numpy acting needs weights on the cpu, got {parameter.device}")
    return parameter.detach().numpy()


class RowPerceptron:
    """An ``MLP`` for one row at a time."""

    def __init__(self, network: MLP) -> None:
        self.weights = [view(weight)[0] for weight in network.weights]
        self.biases = [view(bias)[0, 0] for bias in network.biases]
        ends = np.cumsum(network.parts)[:-1]
        self.blocks = np.split(self.weights[0], ends)
        self.activation = _ACTIVATIONS[network.activation_name]

    def from_first(self, hidden: Float[Array, " H"]) -> Float[Array, " F"]:
        """Return the output from the first pre-activation, which may be overwritten."""
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = self.activation(hidden).dot(weight)
            hidden += bias
        return hidden


class GaussianSampler:
    """tanh(mean(s) + std(s) * noise) of a ``GaussianPolicy``."""

    def __init__(self, policy: GaussianPolicy) -> None:
        self.network = RowPerceptron(policy.network)
        self.action_dim = policy.action_dim

    def sample(
        self, obs: Float[Array, " O"], noise: Float[Array, " A"] | None
    ) -> Float[Array, " A"]:
        """Return an action; without noise that of the latent mean."""
        network = self.network
        output = network.from_first(obs.dot(network.weights[0]) + network.biases[0])
        mean = output[: self.action_dim]
        if noise is None:
            return np.tanh(mean)
        span = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
        log_std = LOG_STD_MIN + span * (np.tanh(output[self.action_dim :]) + 1.0)
        return np.tanh(mean + np.exp(log_std) * noise)
