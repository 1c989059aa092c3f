"""Temperature of the Gibbs law: raw, relative to the energy's own scale, or tuned to an entropy.

In: energies or samples. Out: a positive scalar on the device. The scale of the critics changes over
training, so that a raw temperature means a different policy as training proceeds.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alam.config import Config
from alam.networks import make_adam

_ENTROPY_NEIGHBOUR = 3  # k of the k-nearest-neighbour estimate


@dataclass(frozen=True)
class TemperatureConfig(Config):
    """How the temperature is held.

    mode: ``raw`` is ``value`` itself (the released code: 1); ``relative`` is ``value`` times a
        running standard deviation of the energy over uniform actions within a state; ``entropy`` is
        tuned until samples have ``target_entropy`` nats in [-1, 1]^A (None: minus A, as SAC), from
        ``value`` on. It is measured from ``probe_actions`` samples, too high by what grows with A:
        of 16 uniform ones by 0.1, 0.3, 1.6 and 2.4 nats at A = 1, 2, 6 and 8.
    decay: of the running scale per policy update. probe_states, probe_actions: states and actions
        per state that the scale, or the entropy, is estimated from.
    value: the temperature (raw), its factor (relative) or its start (entropy).
    target_entropy: nats per action; learning_rate: of the tuning. Both of mode ``entropy`` alone.
    """

    mode: Literal["raw", "relative", "entropy"] = "relative"
    value: float = 0.1
    decay: float = 0.99
    probe_states: int = 16
    probe_actions: int = 16
    target_entropy: float | None = None
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("value", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            raise ValueError(f"target_entropy must be null or finite, got {self.target_entropy}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if self.probe_states < 1:
            raise ValueError(f"probe_states must be >= 1, got {self.probe_states}")
        if self.probe_actions <= _ENTROPY_NEIGHBOUR:
            raise ValueError(
                f"probe_actions must be > {_ENTROPY_NEIGHBOUR}, got {self.probe_actions}"
            )


def nearest_neighbour_entropy(samples: Float[Tensor, "S B A"]) -> Float[Tensor, " B"]:
    """Return the Kozachenko-Leonenko estimate of differential entropy in nats, per column B.

    psi(S) - psi(k) + log V_A + A * mean log distance to the k-th neighbour, k = 3.
    """
    count, _, dim = samples.shape
    columns = samples.transpose(0, 1)
    # The matrix-product form of cdist loses near neighbours to cancellation.
    distances = torch.cdist(columns, columns, compute_mode="donot_use_mm_for_euclid_dist")
    kth = distances.topk(_ENTROPY_NEIGHBOUR + 1, largest=False).values[..., -1]
    log_ball = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1.0)
    # psi(S) - psi(k) of whole numbers.
    harmonic = sum(1.0 / i for i in range(_ENTROPY_NEIGHBOUR, count))
    return harmonic + log_ball + dim * kth.clamp(min=1e-8).log().mean(-1)


class Temperature(nn.Module):
    """A positive scalar; ``observe`` moves it by the rule its config names."""

    scale: Tensor
    num_observed: Tensor

    def __init__(self, config: TemperatureConfig, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.target_entropy = (
            -float(action_dim) if config.target_entropy is None else config.target_entropy
        )
        self.log_value = nn.Parameter(torch.tensor(math.log(config.value)))
        # First moments of the running scale; divided by 1 - decay^n, so that it is unbiased at
        # the start as Adam's moments are.
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("num_observed", torch.zeros(()))

    def build_optimizer(self) -> None:
        """Create Adam over the logarithm of the value."""
        self.optimizer = make_adam([self.log_value], learning_rate=self.config.learning_rate)

    @torch.no_grad()
    def forward(self) -> Float[Tensor, ""]:
        """Return the temperature."""
        value = self.log_value.exp()
        if self.config.mode != "relative":
            return value
        bias = 1.0 - self.config.decay**self.num_observed
        scale = torch.where(self.num_observed > 0, self.scale / bias.clamp(min=1e-12), 1.0)
        return value * scale.clamp(min=1e-8)

    @torch.no_grad()
    def observe_energy(self, energy: Float[Tensor, "S B"]) -> None:
        """Update the running scale from energies of uniform actions."""
        self.scale.lerp_(energy.std(0).mean(), 1.0 - self.config.decay)
        self.num_observed += 1

    @torch.no_grad()
    def observe_samples(self, samples: Float[Tensor, "S B A"]) -> Float[Tensor, ""]:
        """Move towards the target entropy from policy samples; return the estimate."""
        entropy = nearest_neighbour_entropy(samples).mean()
        self.log_value.grad = (entropy - self.target_entropy).reshape(())
        self.optimizer.step()
        return entropy

    def full_state(self) -> dict[str, Any]:
        """Return value, running scale and optimiser."""
        return {"module": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        self.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
