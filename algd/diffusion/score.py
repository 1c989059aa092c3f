"""Monte-Carlo estimators of the score of a noised Gibbs law; pure functions.

In: noised latents u_t = alpha u_0 + sigma eps, standard normal noise for S proposals, an energy.
Out: estimates of grad log p_t(u_t), where p_0 is proportional to exp(-energy / temperature).
Relations: the target-score estimator of ALGD (arXiv 2602.02924) and the denoising-score estimator
(forward passes only); both share proposals and weights, so they can be mixed by their variance.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

Estimator = Literal["target", "denoising", "mixed"]
LatentEnergy = Callable[[Float[Tensor, "S B A"]], Float[Tensor, "S B"]]


class Proposals(NamedTuple):
    """Candidate clean latents for one noised latent per row.

    latent: (S, B, A). noise: the standard normals they were made of. log_ratio: (S, B), minus the
    log-density of the base law that shapes them, up to a constant. spread: (B, 1), their standard
    deviation. base_score: (B, A), the exact score of the noised base law.
    """

    latent: Float[Tensor, "S B A"]
    noise: Float[Tensor, "S B A"]
    log_ratio: Float[Tensor, "S B"]
    spread: Float[Tensor, "B 1"]
    base_score: Float[Tensor, "B A"]


def antithetic(noise: Float[Tensor, "H B A"]) -> Float[Tensor, "S B A"]:
    """Return noise and its negative, S = 2 H samples."""
    return torch.cat([noise, -noise])


def propose(
    noisy_latent: Float[Tensor, "B A"],
    alpha: Float[Tensor, "B 1"],
    sigma: Float[Tensor, "B 1"],
    noise: Float[Tensor, "S B A"],
    *,
    base_std: float | None = None,
) -> Proposals:
    """Draw candidates for u_0 given u_t.

    Without ``base_std`` they follow the noising kernel alone, u_t / alpha + (sigma / alpha) eps
    (arXiv 2602.02924). With it they follow the posterior of a base law N(0, base_std^2) under that
    kernel (ours): the same estimators stay consistent, and at noise levels wider than the support
    of the actions the candidates stay where the actions are.
    """
    if base_std is None:
        spread = sigma / alpha
        latent = noisy_latent / alpha + spread * noise
        return Proposals(
            latent, noise, torch.zeros_like(latent[..., 0]), spread, torch.zeros_like(noisy_latent)
        )
    total_variance = (alpha * base_std).square() + sigma.square()
    spread = sigma * base_std / total_variance.sqrt()
    latent = alpha * base_std**2 / total_variance * noisy_latent + spread * noise
    log_ratio = latent.square().sum(-1) / (2.0 * base_std**2)
    return Proposals(latent, noise, log_ratio, spread, -noisy_latent / total_variance)


class ScoreEstimate(NamedTuple):
    """An estimate (B, A) and the estimated variance of each row, summed over dimensions (B,)."""

    score: Float[Tensor, "B A"]
    variance: Float[Tensor, " B"]


def importance_weights(
    energy: Float[Tensor, "S B"], log_ratio: Float[Tensor, "S B"], temperature: Tensor | float
) -> Float[Tensor, "S B"]:
    """Return self-normalised weights of the proposals under exp(-energy / temperature)."""
    return F.softmax(log_ratio - energy / temperature, dim=0)


def _weighted(
    weights: Float[Tensor, "S B"], terms: Float[Tensor, "S B A"]
) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    """Return the weighted mean and the variance of a self-normalised estimate of it."""
    mean = reduce(weights[..., None] * terms, "s b a -> b a", "sum")
    deviation = (terms - mean).square().sum(-1)
    return mean, reduce(weights.square() * deviation, "s b -> b", "sum")


def denoising_score(
    proposals: Proposals,
    weights: Float[Tensor, "S B"],
    alpha: Float[Tensor, "B 1"],
    sigma: Float[Tensor, "B 1"],
) -> ScoreEstimate:
    """Estimate the score without gradients of the energy.

    base score + alpha * spread / sigma^2 * sum_i (w_i - 1/S) eps_i: the score of the base law is
    exact, and 1/S is the control variate that removes its sampling noise. The variance is that of
    the weighted noise alone, as if proposals were independent and there were no control variate.
    """
    scale = alpha * proposals.spread / sigma.square()
    mean, variance = _weighted(weights, proposals.noise)
    score = proposals.base_score + scale * (mean - proposals.noise.mean(0))
    return ScoreEstimate(score, variance * scale.squeeze(-1).square())


def target_score(
    energy_gradient: Float[Tensor, "S B A"],
    weights: Float[Tensor, "S B"],
    alpha: Float[Tensor, "B 1"],
    temperature: Tensor | float,
) -> ScoreEstimate:
    """Estimate (1/alpha) E[-grad energy / temperature] under the posterior of u_0."""
    mean, variance = _weighted(weights, -energy_gradient / temperature)
    return ScoreEstimate(mean / alpha, variance / alpha.squeeze(-1).square())


def mix_by_variance(
    first: ScoreEstimate,
    second: ScoreEstimate,
    level: Int[Tensor, " B"],
    num_levels: int,
) -> Float[Tensor, "B A"]:
    """Weigh two estimates by the inverse of their variance, averaged over rows of one level.

    Averaging over the level keeps the weights from following the noise of a single row.
    """
    levels = torch.arange(num_levels, device=level.device)
    membership = (level.unsqueeze(-1) == levels).to(first.variance.dtype)
    variances = torch.stack([first.variance, second.variance])
    per_level = (variances @ membership) / membership.sum(0).clamp(min=1.0)
    share = per_level[1] / (per_level.sum(0) + torch.finfo(variances.dtype).tiny)
    weight = share[level].unsqueeze(-1)
    return weight * first.score + (1.0 - weight) * second.score


def slopes_of(
    energy: LatentEnergy, latent: Float[Tensor, "S B A"]
) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B A"]]:
    """Return energy and gradient, detached.

    They come from the energy's own method ``slopes`` where it has one, from autograd elsewhere.
    """
    rule = getattr(energy, "slopes", None)
    if rule is not None:
        return rule(latent)
    with torch.enable_grad():
        latent = latent.detach().requires_grad_(True)
        values = energy(latent)
        (gradient,) = torch.autograd.grad(values.sum(), latent)
    return values.detach(), gradient


def estimate_score(
    estimator: Estimator,
    proposals: Proposals,
    energy: LatentEnergy,
    level: Int[Tensor, " B"],
    alphas: Float[Tensor, " T"],
    sigmas: Float[Tensor, " T"],
    temperature: Tensor | float,
) -> Float[Tensor, "B A"]:
    """Estimate the score of the noised Gibbs law at every row; detached.

    Args:
        estimator: ``target`` needs gradients of the energy, ``denoising`` forward passes only,
            ``mixed`` weighs both by their variance at each level.
        energy: latent energy of (S, B, A) latents, change of variables included.
        level: index of each row's noise level into ``alphas`` and ``sigmas``.
    """
    alpha, sigma = alphas[level].unsqueeze(-1), sigmas[level].unsqueeze(-1)
    if estimator == "denoising":
        with torch.no_grad():
            weights = importance_weights(energy(proposals.latent), proposals.log_ratio, temperature)
            return denoising_score(proposals, weights, alpha, sigma).score
    values, gradient = slopes_of(energy, proposals.latent)
    with torch.no_grad():
        weights = importance_weights(values, proposals.log_ratio, temperature)
        by_target = target_score(gradient, weights, alpha, temperature)
        if estimator == "target":
            return by_target.score
        by_denoising = denoising_score(proposals, weights, alpha, sigma)
        return mix_by_variance(by_target, by_denoising, level, len(alphas))
