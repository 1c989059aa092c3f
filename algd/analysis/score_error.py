"""Bias and variance of score-target estimators against an exact noised score.

In: a law with two modes whose noised score is known in closed form, a noise schedule, an estimator
of ``algd.diffusion.score``. Out: per noise level the relative squared bias, variance and mean
squared error of the estimate. Relation: the score target of ALGD (arXiv 2602.02924).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from algd.diffusion.schedule import ScheduleConfig, noise_levels
from algd.diffusion.score import Estimator, antithetic, estimate_score, propose


@dataclass(frozen=True)
class TwoModeLaw:
    """Two round Gaussians in the latent space, on either side of the origin along the diagonal.

    Added Gaussian noise only widens the two, so density and score stay in closed form at every
    noise level.

    action_dim: A. separation: distance of the centres. width: standard deviation of either mode.
    first_share: probability of the mode on the negative side.
    """

    action_dim: int = 2
    separation: float = 1.6
    width: float = 0.3
    first_share: float = 0.3

    def __post_init__(self) -> None:
        if self.action_dim < 1:
            raise ValueError(f"action_dim must be >= 1, got {self.action_dim}")
        for name in ("separation", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 < self.first_share < 1.0:
            raise ValueError(f"first_share must be in (0, 1), got {self.first_share}")

    def log_density(
        self, latent: Float[Tensor, "*B A"], *, alpha: float = 1.0, sigma: float = 0.0
    ) -> Float[Tensor, "*B"]:
        """Return log p_t(u) of u_t = alpha u_0 + sigma eps; the law itself by default."""
        variance = (alpha * self.width) ** 2 + sigma**2
        centres = alpha * self._centres().to(latent)
        shares = torch.tensor([self.first_share, 1.0 - self.first_share]).to(latent)
        square = (latent.unsqueeze(-2) - centres).square().sum(-1)
        normaliser = 0.5 * self.action_dim * torch.log(torch.tensor(2.0 * torch.pi * variance))
        return torch.logsumexp(shares.log() - 0.5 * square / variance, dim=-1) - normaliser

    def noised_score(
        self, latent: Float[Tensor, "*B A"], *, alpha: float, sigma: float
    ) -> Float[Tensor, "*B A"]:
        """Return grad log p_t(u_t), exact."""
        variance = (alpha * self.width) ** 2 + sigma**2
        offset = alpha * self._centres().to(latent) - latent.unsqueeze(-2)
        shares = torch.tensor([self.first_share, 1.0 - self.first_share]).to(latent)
        weight = torch.softmax(shares.log() - 0.5 * offset.square().sum(-1) / variance, dim=-1)
        return (weight.unsqueeze(-1) * offset).sum(-2) / variance

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "B A"]:
        """Draw clean latents."""
        second = torch.rand(count, generator=generator) >= self.first_share
        spread = torch.randn(count, self.action_dim, generator=generator)
        return self._centres()[second.long()] + self.width * spread

    def _centres(self) -> Float[Tensor, "2 A"]:
        half = 0.5 * self.separation / self.action_dim**0.5
        return torch.tensor([[-half], [half]]).expand(2, self.action_dim)


@dataclass(frozen=True)
class ScoreError:
    """Error of an estimator at every noise level, each (T,), in units of E|score|^2.

    sigmas: standard deviation of the noise. squared_bias, variance: their sum is ``total``, the
    relative mean squared error. The bias is that of self-normalised weights at few samples.
    """

    sigmas: Float[Tensor, " T"]
    squared_bias: Float[Tensor, " T"]
    variance: Float[Tensor, " T"]

    @property
    def total(self) -> Float[Tensor, " T"]:
        """Relative mean squared error."""
        return self.squared_bias + self.variance


def score_error(
    law: TwoModeLaw,
    schedule: ScheduleConfig,
    estimator: Estimator,
    *,
    num_samples: int,
    use_antithetic: bool = True,
    base_std: float | None = 1.5,
    num_points: int = 256,
    num_repeats: int = 64,
    seed: int = 0,
) -> ScoreError:
    """Measure an estimator at noised samples of the law.

    Args:
        law: the truth.
        schedule: its noise levels are measured, all of them.
        estimator: of ``algd.diffusion.score``.
        num_samples: proposals per estimate; even with antithetic noise.
        use_antithetic: draw proposals in pairs.
        base_std: of the base law that shapes the proposals, or None.
        num_points: noised latents per level.
        num_repeats: independent estimates per latent, >= 2.
        seed: of all draws.
    """
    if num_repeats < 2:
        raise ValueError(f"num_repeats must be >= 2, got {num_repeats}")
    if num_samples < 2 or (use_antithetic and num_samples % 2):
        raise ValueError(f"num_samples must be >= 2, even with antithetic noise, got {num_samples}")
    levels = noise_levels(schedule)
    alphas = torch.tensor(levels.alphas, dtype=torch.float32)
    sigmas = torch.tensor(levels.sigmas, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    biases, variances = [], []
    for index in range(len(sigmas)):
        alpha, sigma = float(alphas[index]), float(sigmas[index])
        clean = law.sample(num_points, generator)
        noisy = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        rows = noisy.repeat(num_repeats, 1)
        half = num_samples // 2 if use_antithetic else num_samples
        noise = torch.randn(half, *rows.shape, generator=generator)
        noise = antithetic(noise) if use_antithetic else noise
        proposals = propose(
            rows,
            alphas[index].expand(len(rows), 1),
            sigmas[index].expand(len(rows), 1),
            noise,
            base_std=base_std,
        )
        estimate = estimate_score(
            estimator,
            proposals,
            lambda latent: -law.log_density(latent),
            torch.full((len(rows),), index),
            alphas,
            sigmas,
            1.0,
        ).unflatten(0, (num_repeats, num_points))
        exact = law.noised_score(noisy, alpha=alpha, sigma=sigma)
        scale = exact.square().sum(-1).mean()
        variance = estimate.var(0).sum(-1).mean()
        # The mean of R estimates still carries variance / R, which is no bias.
        squared = (estimate.mean(0) - exact).square().sum(-1).mean() - variance / num_repeats
        biases.append(squared.clamp(min=0.0) / scale)
        variances.append(variance / scale)
    return ScoreError(sigmas, torch.stack(biases), torch.stack(variances))
