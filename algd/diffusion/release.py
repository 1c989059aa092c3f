"""The denoising policies of the released ALGD code, kept as it computes them, for comparison.

In and out: as ``algd.diffusion.policy``. Differences from the corrected policy, each deliberate
in the presets ``release_vesde`` and ``release_ddpm``: the score network reads the squashed action
while its output moves the latent; score proposals are drawn in action space, unclipped, without
the 1 / alpha of VP; the change of variables is left out; the training point is recorded after the
step whose level labels it, with its graph.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alam.config import Config
from alam.energy import Evaluate, differentiable_energy, energy_slopes
from alam.networks import MLP, Projection
from alam.types import Metrics
from algd.diffusion.cpu_chain import ChainStep, can_run, run_chain
from algd.diffusion.policy import PolicyLoss, require_losses
from algd.diffusion.schedule import ScheduleConfig, noise_levels
from algd.diffusion.temperature import TemperatureConfig

_GUIDANCE_SCALE = 0.05  # DDPM variant: step along the normalised score
_NORM_FLOOR = 1e-8


@dataclass(frozen=True)
class ReleasePolicyConfig(Config):
    """Settings of the released code: VE sigmas .01 to 1, or linear betas 1e-4 to .02, 5 levels.

    variant: ``vesde`` or ``ddpm``. num_timesteps: noise levels. hidden, embedding_dim: of the score
        network.
    chain_coef, score_coef: of energy and score loss. num_score_samples: proposals per score target.
    candidates: samples per deterministic action, the best by energy taken. learning_rate: of Adam.
    update_interval: updates of the critics per update of the policy.
    """

    kind: Literal["release"] = "release"
    variant: Literal["vesde", "ddpm"] = "vesde"
    num_timesteps: int = 5
    hidden: tuple[int, ...] = (128, 128, 128)
    embedding_dim: int = 16
    learning_rate: float = 3e-4
    temperature: TemperatureConfig = field(
        default_factory=lambda: TemperatureConfig(mode="raw", value=1.0)
    )
    chain_coef: float = 1.0
    score_coef: float = 0.1
    num_score_samples: int = 4
    candidates: int = 1
    update_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *("num_timesteps", "num_score_samples", "candidates", "update_interval"),
            "embedding_dim",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        require_losses(self.chain_coef, self.score_coef)
        if self.variant == "vesde" and self.num_timesteps == 1:
            raise ValueError("num_timesteps of variant 'vesde' must be >= 2, got 1")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {self.hidden}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    @property
    def schedule(self) -> ScheduleConfig:
        """The noising process of the variant."""
        if self.variant == "vesde":
            return ScheduleConfig(
                kind="ve",
                num_train_timesteps=self.num_timesteps,
                sigma_min=0.01,
                sigma_max=1.0,
                sampler="euler_sde",
            )
        return ScheduleConfig(
            kind="vp",
            num_train_timesteps=self.num_timesteps,
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
        )


class ReleasePolicy(nn.Module):
    """Reverse chain and objective of the released code (VE by default, or its DDPM form)."""

    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: ReleasePolicyConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        levels = noise_levels(config.schedule)
        self.register_buffer("alphas", torch.tensor(levels.alphas, dtype=torch.float32))
        self.register_buffer("sigmas", torch.tensor(levels.sigmas, dtype=torch.float32))
        variances = [0.0, *self.sigmas.double().square().tolist()]
        self.growth = [b - a for a, b in pairwise(variances)]
        # Noisiest first: u <- u + growth * score(tanh u) + sqrt(growth) * noise.
        self.reverse_steps = [
            ChainStep(k, k, None, 1.0, self.growth[k], self.growth[k] ** 0.5 if k else 0.0)
            for k in reversed(range(config.num_timesteps))
        ]
        table = torch.empty(config.num_timesteps, config.embedding_dim)
        self.embedding = nn.Parameter(table.normal_(generator=generator))
        # One trunk with a score head, and for DDPM an epsilon head beside it.
        heads = 2 if config.variant == "ddpm" else 1
        self.network = MLP(
            (obs_dim, action_dim, config.embedding_dim),
            config.hidden,
            heads * action_dim,
            initial="xavier",
            generator=generator,
        )

    @property
    def num_noises(self) -> int:
        """Standard normals per action dimension that one sample consumes."""
        return self.config.num_timesteps + 1

    def prior_std(self) -> Tensor:
        """Return the standard deviation of the chain's starting point."""
        sigma = self.sigmas[-1]
        return sigma if self.config.variant == "vesde" else torch.ones_like(sigma)

    def num_loss_noises(self) -> int:
        """Standard normals per row and action dimension that ``loss`` consumes."""
        return self.num_noises + self.config.num_score_samples

    def heads(
        self,
        obs: Float[Tensor, "B O"] | Projection,
        x: Float[Tensor, "B A"],
        level: Float[Tensor, "*B D"] | Projection,
    ) -> tuple[Tensor, ...]:
        """Return the score head and, for DDPM, the epsilon head; ``level`` is embedded."""
        return self.network(obs, x, level).split(self.action_dim, dim=-1)

    def step(
        self,
        obs: Float[Tensor, "B O"] | Projection,
        latent: Float[Tensor, "B A"],
        noise: Tensor,
        index: int,
        level: Projection | None = None,
    ) -> Float[Tensor, "B A"]:
        """Take one reverse step from level ``index``; the last (index 0) adds no noise.

        ``level`` is the embedding of the index, where the caller has projected it.
        """
        embedded = self.embedding[index] if level is None else level
        score = self.heads(obs, torch.tanh(latent), embedded)[0]
        if self.config.variant == "vesde":
            growth = self.growth[index]
            moved = torch.add(latent, score, alpha=growth)
            return torch.add(moved, noise, alpha=growth**0.5) if index else moved
        epsilon = self.heads(obs, latent, embedded)[1]
        alpha, sigma = self.alphas[index], self.sigmas[index]
        one = torch.ones_like(alpha)
        previous_alpha = self.alphas[index - 1] if index else one
        ratio = alpha / previous_alpha
        beta = 1.0 - ratio.square()
        clean = (latent - sigma * epsilon) / alpha
        previous_variance = 1.0 - previous_alpha.square()
        mean = (previous_alpha * beta * clean + ratio * previous_variance * latent) / sigma.square()
        direction = score / (score.norm(dim=-1, keepdim=True) + _NORM_FLOOR)
        moved = mean + _GUIDANCE_SCALE * direction
        spread = (beta * previous_variance / sigma.square()).sqrt()
        return moved + spread * noise if index else moved

    def rollout(
        self,
        obs: Float[Tensor, "B O"],
        noise: Float[Tensor, "K B A"],
        level: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Return the action, and each row's squashed latent after the step of its level.

        Without levels nothing is recorded, and the second result is the starting point.
        """
        latent = self.prior_std() * noise[-1]
        recorded = latent
        if self.config.variant == "vesde" and can_run(self.network, obs, noise):
            return self._rollout_written_out(obs, latent, noise, level)
        # Observation and levels meet the first layer once, not at every step.
        obs_part = self.network.project(obs, 0)
        level_parts = self.network.project(self.embedding, 2).value.unbind(1)
        for index in reversed(range(self.config.num_timesteps)):
            part = Projection(level_parts[index])
            latent = self.step(obs_part, latent, noise[index], index, part)
            if level is not None:
                here = (level == index).unsqueeze(-1)
                recorded = torch.where(here, torch.tanh(latent), recorded)
        return torch.tanh(latent), recorded

    def _rollout_written_out(
        self, obs: Tensor, latent: Tensor, noise: Tensor, level: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the same of the VE chain, by one node."""
        latents = run_chain(self.network, self.embedding, obs, latent, noise, self.reverse_steps)
        action = torch.tanh(latents[-1])
        if level is None:
            return action, latent
        indices = torch.arange(len(latents) - 1, -1, -1, device=level.device)
        here = (level == indices.unsqueeze(-1)).to(latents.dtype).unsqueeze(-1)
        return action, torch.tanh((here * latents).sum(0))

    def sample(
        self, obs: Float[Tensor, "B O"], noise: Float[Tensor, "K B A"]
    ) -> Float[Tensor, "B A"]:
        """Return actions in (-1, 1)."""
        return self.rollout(obs, noise, None)[0]

    def mode(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]:
        """Return the action of the noise-free chain from latent 0."""
        noise = obs.new_zeros(self.num_noises, obs.shape[0], self.action_dim)
        return self.sample(obs, noise)

    def score_target(
        self,
        obs: Float[Tensor, "B O"],
        noisy_action: Float[Tensor, "B A"],
        evaluate: Evaluate,
        temperature: Float[Tensor, ""],
        noise: Float[Tensor, "S B A"],
        level: Int[Tensor, " B"],
    ) -> Float[Tensor, "B A"]:
        """Return -sum_i w_i grad energy(a_i) / temperature at a_i = a_tau + sigma eps_i."""
        proposals = (noisy_action.detach() + self.sigmas[level].unsqueeze(-1) * noise).detach()
        energy, _, gradient = energy_slopes(evaluate, obs, proposals)
        with torch.no_grad():
            weights = F.softmax(-energy / temperature, dim=0).unsqueeze(-1)
            return -(weights * gradient).sum(0) / temperature

    def loss(
        self,
        obs: Float[Tensor, "B O"],
        replay_action: Float[Tensor, "B A"],  # noqa: ARG002
        evaluate: Evaluate,
        temperature: Float[Tensor, ""],
        noise: Float[Tensor, "M B A"],
        level: Int[Tensor, " B"],
    ) -> PolicyLoss:
        """Return chain_coef * E[energy] + score_coef * mean squared score error.

        ``replay_action`` is not used: training points are levels of the policy's own chain.
        """
        action, recorded = self.rollout(obs, noise[: self.num_noises], level)
        energy, violation = differentiable_energy(evaluate, obs, action)
        target = self.score_target(
            obs, recorded, evaluate, temperature, noise[self.num_noises :], level
        )
        score_loss = F.mse_loss(self.heads(obs, recorded, self.embedding[level])[0], target)
        chain_loss = energy.mean()
        loss = self.config.chain_coef * chain_loss + self.config.score_coef * score_loss
        metrics: Metrics = {
            "train/energy": chain_loss.detach(),
            "loss/chain": chain_loss.detach(),
            "loss/score": score_loss.detach(),
            "loss/policy": loss.detach(),
        }
        return PolicyLoss(loss, action.detach(), violation.detach(), metrics)
