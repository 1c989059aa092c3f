"""The score network: what it predicts, and how that becomes a score.

In: observations, noised latents, levels. Out: predictions, and scores converted from them as
diffusers' ``prediction_type`` defines them.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alam.networks import MLP, Activation
from algd.diffusion.schedule import NoiseSchedule

# Small, so that observation and latent are heard from the first update on.
_EMBEDDING_STD = 0.3

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class ScoreNetwork(nn.Module):
    """MLP of [observation, noised latent, level embedding].

    The latent enters divided by sqrt(alpha^2 + sigma^2), so that its scale is that of a standard
    normal at every level. ``v_prediction`` is the well-conditioned choice at both ends: with
    alpha' = alpha / r, sigma' = sigma / r, r^2 = alpha^2 + sigma^2 (1 for VP), v = alpha' eps -
    sigma' u_0 (Salimans and Ho 2022, arXiv 2202.00512).
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        schedule: NoiseSchedule,
        *,
        hidden: tuple[int, ...],
        activation: Activation,
        embedding_dim: int,
        prediction_type: PredictionType,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.prediction_type = prediction_type
        self.network = MLP(
            (obs_dim, action_dim, embedding_dim),
            hidden,
            action_dim,
            activation=activation,
            generator=generator,
        )
        table = torch.empty(schedule.num_levels, embedding_dim)
        self.embedding = nn.Parameter(table.normal_(0.0, _EMBEDDING_STD, generator=generator))
        self.register_buffer("alphas", schedule.alphas.clone())
        self.register_buffer("sigmas", schedule.sigmas.clone())

    def levels(self, level: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of each row, (B, 1)."""
        return self.alphas[level].unsqueeze(-1), self.sigmas[level].unsqueeze(-1)

    def predict(
        self,
        obs: Float[Tensor, "B O"],
        noisy_latent: Float[Tensor, "B A"],
        level: Int[Tensor, " B"],
    ) -> Float[Tensor, "B A"]:
        """Return the raw prediction (epsilon, sample or v)."""
        alpha, sigma = self.levels(level)
        scale = (alpha.square() + sigma.square()).rsqrt()
        return self.network(obs, scale * noisy_latent, self.embedding[level])

    def forward(
        self,
        obs: Float[Tensor, "B O"],
        noisy_latent: Float[Tensor, "B A"],
        level: Int[Tensor, " B"],
    ) -> Float[Tensor, "B A"]:
        """Return the score -eps / sigma."""
        prediction = self.predict(obs, noisy_latent, level)
        alpha, sigma = self.levels(level)
        if self.prediction_type == "epsilon":
            return -prediction / sigma
        if self.prediction_type == "sample":
            return (alpha * prediction - noisy_latent) / sigma.square()
        squared = alpha.square() + sigma.square()
        return -(noisy_latent + prediction * alpha * squared.sqrt() / sigma) / squared

    def prediction_target(
        self,
        score: Float[Tensor, "B A"],
        noisy_latent: Float[Tensor, "B A"],
        level: Int[Tensor, " B"],
    ) -> Float[Tensor, "B A"]:
        """Return what ``predict`` should have said for this score; the inverse of ``forward``."""
        alpha, sigma = self.levels(level)
        if self.prediction_type == "epsilon":
            return -sigma * score
        if self.prediction_type == "sample":
            return (noisy_latent + sigma.square() * score) / alpha
        squared = alpha.square() + sigma.square()
        return -(noisy_latent + squared * score) * sigma / (alpha * squared.sqrt())
