"""The score network: what it predicts, and how that becomes a score.

In: observations, noised latents, levels. Out: predictions, and scores converted from them as
diffusers' ``prediction_type`` defines them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from alam.networks import MLP, Activation, Projection
from algd.diffusion.schedule import NoiseSchedule

# Small, so that observation and latent are heard from the first update on.
_EMBEDDING_STD = 0.3

PredictionType = Literal["epsilon", "sample", "v_prediction"]


class LinearScore(NamedTuple):
    """score = of_latent * u_t + of_prediction * prediction(of_input * u_t), at one level."""

    of_latent: float
    of_prediction: float
    of_input: float


def linear_score(kind: PredictionType, alpha: float, sigma: float) -> LinearScore:
    """Return the conversion of ``ScoreNetwork.forward`` as coefficients, in double precision."""
    squared = alpha**2 + sigma**2
    of_input = squared**-0.5
    if kind == "epsilon":
        return LinearScore(0.0, -1.0 / sigma, of_input)
    if kind == "sample":
        return LinearScore(-1.0 / sigma**2, alpha / sigma**2, of_input)
    return LinearScore(-1.0 / squared, -alpha / sigma * of_input, of_input)


ScoreAt = Callable[[Tensor, int], Tensor]
"""(noised latents (B, A), index of their common level) -> scores (B, A)."""


class Score(nn.Module):
    """score(obs, noisy_latent, level): what the reverse chain asks for."""

    def along_chain(self, obs: Float[Tensor, "B O"]) -> ScoreAt:
        """Return the score of these observations where all rows have one level."""

        def score(noisy_latent: Tensor, index: int) -> Tensor:
            level = torch.full(noisy_latent.shape[:-1], index, device=noisy_latent.device)
            return self(obs, noisy_latent, level)

        return score


class ScoreNetwork(Score):
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
        pairs = zip(self.alphas.tolist(), self.sigmas.tolist(), strict=True)
        self.linear = [linear_score(prediction_type, alpha, sigma) for alpha, sigma in pairs]

    def levels(self, level: Int[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of each row, (B, 1)."""
        return self.alphas[level].unsqueeze(-1), self.sigmas[level].unsqueeze(-1)

    def along_chain(self, obs: Float[Tensor, "B O"]) -> ScoreAt:
        """Return the score at one level for all rows; observation and levels projected once."""
        obs_part = self.network.project(obs, 0)
        level_parts = self.network.project(self.embedding, 2).value.unbind(1)

        def score(noisy_latent: Tensor, index: int) -> Tensor:
            of_latent, of_prediction, of_input = self.linear[index]
            prediction = self.network(
                obs_part, of_input * noisy_latent, Projection(level_parts[index])
            )
            if of_latent == 0.0:
                return of_prediction * prediction
            return of_latent * noisy_latent + of_prediction * prediction

        return score

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
