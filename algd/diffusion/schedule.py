"""Noise levels and the coefficients of the reverse steps.

In: a ``ScheduleConfig``. Out: buffers alpha_t and sigma_t of u_t = alpha_t u_0 + sigma_t eps, level
0 the least noisy, and for each reverse step the coefficients of u, score and noise. The tables come
from diffusers' schedulers, which are also the oracle of the tests; the hot loop is ours, because
one ``scheduler.step`` costs several times a fused hand-written one.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alam.config import Config

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Sampler = Literal["ancestral", "ddim", "euler_sde"]


@dataclass(frozen=True)
class ScheduleConfig(Config):
    """A discrete noising process.

    kind: ``ve`` (alpha 1, sigma geometric from sigma_min to sigma_max) or ``vp`` (alpha^2 =
        alphas_cumprod of the betas, sigma^2 = 1 - alpha^2).
    num_train_timesteps: noise levels; num_inference_steps: reverse steps, None for all levels.
    sampler: ``ancestral`` draws from the posterior of the previous level (DDPM), ``ddim`` is its
        deterministic limit, ``euler_sde`` steps the reverse-time SDE of VE as the release does.
    sigma_min, sigma_max: smallest and largest noise of ``ve``, in latent units; equal where
        there is one level.
    beta_schedule, beta_start, beta_end: of ``vp``, as diffusers names them; start and end are those
        of the linear schedules.
    """

    kind: Literal["ve", "vp"] = "ve"
    num_train_timesteps: int = 10
    num_inference_steps: int | None = None
    sigma_min: float = 0.05
    sigma_max: float = 1.5
    beta_schedule: BetaSchedule = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sampler: Sampler = "ancestral"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps must be >= 1, got {self.num_train_timesteps}")
        steps = self.num_inference_steps
        if steps is not None and not 1 <= steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be in [1, num_train_timesteps = "
                f"{self.num_train_timesteps}], got {steps}"
            )
        if not 0 < self.sigma_min <= self.sigma_max < float("inf"):
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min <= sigma_max, got "
                f"{self.sigma_min} and {self.sigma_max}"
            )
        one_level = self.num_train_timesteps == 1
        if self.kind == "ve" and one_level != (self.sigma_min == self.sigma_max):
            raise ValueError(
                "sigma_min and sigma_max of kind 've' must be equal with num_train_timesteps 1, "
                "whose one level must carry all the noise, and differ with more, got "
                f"num_train_timesteps {self.num_train_timesteps}, {self.sigma_min} and "
                f"{self.sigma_max}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                "beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, got "
                f"{self.beta_start} and {self.beta_end}"
            )
        if self.sampler == "euler_sde" and self.kind != "ve":
            raise ValueError("sampler 'euler_sde' needs kind 've', got kind 'vp'")


class Levels(NamedTuple):
    """alpha_t and sigma_t, each (T,), noise increasing."""

    alphas: np.ndarray
    sigmas: np.ndarray


def closed_form_levels(config: ScheduleConfig) -> Levels:
    """Return the levels to 1e-4 from their formulas; diffusers takes seconds to import."""
    steps = config.num_train_timesteps
    if config.kind == "ve":
        ends = np.log([config.sigma_min, config.sigma_max])
        sigmas = np.exp(np.linspace(ends[0], ends[1], steps))
        return Levels(np.ones(steps), sigmas)
    if config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, steps)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
    else:
        # Cosine: alphas_cumprod follows cos^2 with offset 0.008, each beta capped at 0.999
        # (Nichol and Dhariwal 2021, arXiv 2102.09672).
        time = np.arange(steps + 1) / steps
        curve = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1.0 - curve[1:] / curve[:-1], 0.999)
    alphas_cumprod = np.cumprod(1.0 - betas)
    return Levels(np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod))


def noise_levels(config: ScheduleConfig) -> Levels:
    """Return the levels that diffusers' schedulers hold."""
    steps = config.num_train_timesteps
    if config.kind == "ve":
        from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

        scheduler = ScoreSdeVeScheduler(
            num_train_timesteps=steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max
        )
        return Levels(np.ones(steps), scheduler.discrete_sigmas.double().numpy())
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
    )
    alphas_cumprod = scheduler.alphas_cumprod.double().numpy()
    return Levels(np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod))


def reverse_coefficients(alphas: np.ndarray, sigmas: np.ndarray, sampler: Sampler) -> np.ndarray:
    """Return (K, 3): u_prev = c[0] u + c[1] score + c[2] noise, most noisy step last.

    Row k leads from level k to level k - 1, row 0 to the clean sample and without noise.
    """
    previous_alpha = np.concatenate([[1.0], alphas[:-1]])
    previous_sigma = np.concatenate([[0.0], sigmas[:-1]])
    if sampler == "euler_sde":
        growth = sigmas**2 - previous_sigma**2
        noise = np.sqrt(growth)
        noise[0] = 0.0
        return np.stack([np.ones_like(growth), growth, noise], axis=1)
    if sampler == "ddim":
        # u_prev = alpha_prev u_0 + sigma_prev eps with u_0 = (u + sigma^2 score) / alpha.
        scale = previous_alpha / alphas
        return np.stack(
            [scale, scale * sigmas**2 - previous_sigma * sigmas, np.zeros_like(scale)], axis=1
        )
    ratio = alphas / previous_alpha
    step_variance = sigmas**2 - ratio**2 * previous_sigma**2
    keep = ratio * previous_sigma**2 / sigmas**2
    clean = previous_alpha * step_variance / sigmas**2
    noise = np.sqrt(step_variance) * previous_sigma / sigmas
    return np.stack([keep + clean / alphas, clean * sigmas**2 / alphas, noise], axis=1)


class NoiseSchedule(nn.Module):
    """Levels and reverse coefficients as buffers on the device."""

    alphas: Tensor
    sigmas: Tensor
    coefficients: Tensor

    def __init__(self, config: ScheduleConfig) -> None:
        super().__init__()
        self.config = config
        levels = noise_levels(config)
        total = config.num_train_timesteps
        steps = config.num_inference_steps or total
        # Inference levels are spread evenly and always include the noisiest.
        self.inference_levels = [round((k + 1) * total / steps) - 1 for k in range(steps)]
        chosen = np.array(self.inference_levels)
        coefficients = reverse_coefficients(
            levels.alphas[chosen], levels.sigmas[chosen], config.sampler
        )
        self.register_buffer("alphas", torch.tensor(levels.alphas, dtype=torch.float32))
        self.register_buffer("sigmas", torch.tensor(levels.sigmas, dtype=torch.float32))
        self.steps = [tuple(map(float, row)) for row in coefficients]
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float32))

    @property
    def num_steps(self) -> int:
        """Reverse steps per sample."""
        return len(self.inference_levels)

    @property
    def num_levels(self) -> int:
        """Noise levels."""
        return len(self.alphas)
