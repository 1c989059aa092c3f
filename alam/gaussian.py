"""The tanh-Gaussian policy of soft actor-critic.

In: observations and standard normal noise. Out: actions in (-1, 1) and their log-densities.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alam.config import Config
from alam.networks import MLP, Activation


@dataclass(frozen=True)
class GaussianPolicyConfig(Config):
    """A squashed Gaussian policy and how its entropy is held.

    entropy_coef: the coefficient of the entropy bonus (the temperature of the policy); ``auto``
        tunes it to ``target_entropy``, as SAC does.
    target_entropy: in nats; None stands for minus the number of action dimensions.
    hidden, activation: of the policy network. learning_rate: of its Adam and of the coefficient's.
    initial_entropy_coef: where ``auto`` starts. update_interval: updates of the critics per update
        of the policy.
    """

    kind: Literal["gaussian"] = "gaussian"
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    learning_rate: float = 3e-4
    entropy_coef: float | Literal["auto"] = "auto"
    initial_entropy_coef: float = 1.0
    target_entropy: float | None = None
    update_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {self.hidden}")
        if self.entropy_coef != "auto" and not 0 <= self.entropy_coef < float("inf"):
            raise ValueError(f"entropy_coef must be 'auto' or >= 0, got {self.entropy_coef}")
        if not 0 < self.initial_entropy_coef < float("inf"):
            raise ValueError(
                f"initial_entropy_coef must be positive, got {self.initial_entropy_coef}"
            )
        if self.target_entropy is not None and not math.isfinite(self.target_entropy):
            raise ValueError(f"target_entropy must be null or finite, got {self.target_entropy}")
        if self.update_interval < 1:
            raise ValueError(f"update_interval must be >= 1, got {self.update_interval}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # range of the log standard deviation, as in CleanRL's SAC


def log_one_minus_tanh_squared(latent: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return log(1 - tanh(u)^2) without cancellation: 2 (log 2 - u - softplus(-2 u))."""
    return 2.0 * (math.log(2.0) - latent - F.softplus(-2.0 * latent))


class GaussianPolicy(nn.Module):
    """a = tanh(mean(s) + std(s) * noise)."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: GaussianPolicyConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.network = MLP(
            (obs_dim,),
            config.hidden,
            2 * action_dim,
            activation=config.activation,
            generator=generator,
        )

    def forward(self, obs: Float[Tensor, "*B O"]) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation of the latent, each (*B, A)."""
        mean, raw = self.network(obs).chunk(2, dim=-1)
        span = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
        return mean, LOG_STD_MIN + span * (torch.tanh(raw) + 1.0)

    def sample(
        self, obs: Float[Tensor, "*B O"], noise: Float[Tensor, "*B A"]
    ) -> tuple[Float[Tensor, "*B A"], Float[Tensor, "*B"]]:
        """Return actions and log-densities; gradients flow through both."""
        mean, log_std = self(obs)
        latent = mean + log_std.exp() * noise
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_prob = log_prob - log_one_minus_tanh_squared(latent)
        return torch.tanh(latent), log_prob.sum(-1)

    def mode(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B A"]:
        """Return tanh of the latent mean, the deterministic action."""
        return torch.tanh(self(obs)[0])
