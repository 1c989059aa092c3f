"""The corrected ALGD in plain eager torch: the reference of ``algd.diffusion.policy``."""

import itertools
import math

import torch
import torch.nn.functional as F
from benchmarks.reference_learner import ReferenceLearner, perceptron
from torch import Tensor, nn

from alam.types import Batch
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import DiffusionPolicy


class Denoiser(nn.Module):
    """v-prediction of observation, noised latent scaled to unit variance, and level embedding."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        source = policy.network
        assert source.prediction_type == "v_prediction"
        self.embedding = nn.Embedding.from_pretrained(source.embedding.detach().clone(), False)
        self.network = perceptron(source.network, 0, policy.config.activation)
        self.alphas, self.sigmas = source.alphas.clone(), source.sigmas.clone()

    def predict(self, obs: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Return v."""
        alpha, sigma = self.alphas[level][:, None], self.sigmas[level][:, None]
        scaled = latent / (alpha**2 + sigma**2).sqrt()
        return self.network(torch.cat([obs, scaled, self.embedding(level)], dim=-1))

    def score(self, obs: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Return -eps / sigma of the predicted v."""
        alpha, sigma = self.alphas[level][:, None], self.sigmas[level][:, None]
        radius = (alpha**2 + sigma**2).sqrt()
        v = self.predict(obs, latent, level)
        noise = (sigma * latent / radius + alpha * v) / radius
        return -noise / sigma


class ReferenceALGD(ReferenceLearner):
    """The agent with all score samples antithetic, mixed estimator and relative temperature."""

    def __init__(self, agent: ALGDAgent) -> None:
        super().__init__(agent, agent.config.critics)
        policy = agent.policy
        assert isinstance(policy, DiffusionPolicy)
        self.config = policy.config
        assert self.config.estimator == "mixed"
        assert self.config.antithetic
        assert self.config.base_std is not None
        assert self.config.chain_steps is None
        assert self.config.score_batch_size is None
        assert self.config.temperature.mode == "relative"
        self.denoiser = Denoiser(policy)
        self.levels = list(policy.schedule.inference_levels)
        self.coefficients = policy.schedule.steps
        self.alphas, self.sigmas = policy.schedule.alphas.clone(), policy.schedule.sigmas.clone()
        self.action_dim = agent.action_dim
        self.base_std: float = self.config.base_std
        self.scale, self.num_observed = 0.0, 0
        self.policy_optimizer = torch.optim.Adam(
            self.denoiser.parameters(), lr=self.config.learning_rate
        )

    def temperature(self) -> float:
        """Return value times the bias-corrected running scale of the energy."""
        config = self.config.temperature
        if self.num_observed == 0:
            return config.value
        return config.value * max(self.scale / (1.0 - config.decay**self.num_observed), 1e-8)

    def denoise(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return the clean latent of the reverse chain."""
        base = self.alphas[-1] * self.base_std
        latent = (self.sigmas[-1] ** 2 + base**2).sqrt() * noise[-1]
        for step in reversed(range(len(self.levels))):
            level = torch.full((len(obs),), self.levels[step], dtype=torch.long)
            of_latent, of_score, of_noise = self.coefficients[step]
            score = self.denoiser.score(obs, latent, level)
            latent = of_latent * latent + of_score * score + of_noise * noise[step]
        return latent

    def score_target(self, obs: Tensor, noisy: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return the mixed estimate of the score, with proposals of the base law's posterior."""
        alpha, sigma = self.alphas[level][:, None], self.sigmas[level][:, None]
        temperature, base = self.temperature(), self.base_std
        noise = torch.cat([noise, -noise])
        variance = (alpha * base) ** 2 + sigma**2
        spread = sigma * base / variance.sqrt()
        latent = (alpha * base**2 / variance * noisy + spread * noise).detach()
        latent.requires_grad_(True)
        energy, _ = self.energy(obs, torch.tanh(latent))
        log_volume = 2.0 * (math.log(2.0) - latent - F.softplus(-2.0 * latent))
        energy = energy - temperature * log_volume.sum(-1)
        (gradient,) = torch.autograd.grad(energy.sum(), latent)
        energy, latent = energy.detach(), latent.detach()
        log_ratio = (latent**2).sum(-1) / (2.0 * base**2)
        weights = F.softmax(log_ratio - energy / temperature, dim=0)[..., None]
        estimates, variances = [], []
        gain = alpha * spread / sigma**2
        for terms, offset, scale in (
            (-gradient / temperature, 0.0, 1.0 / alpha),
            (noise, noise.mean(0), gain),
        ):
            mean = (weights * terms).sum(0)
            spread_of_terms = ((terms - mean) ** 2).sum(-1)
            estimates.append(scale * (mean - offset))
            variances.append((weights[..., 0] ** 2 * spread_of_terms).sum(0) * scale[:, 0] ** 2)
        estimates[1] = estimates[1] - noisy / variance
        share = torch.zeros_like(alpha)
        for index in range(len(self.alphas)):
            rows = level == index
            if rows.any():
                first, second = (v[rows].mean() for v in variances)
                share[rows] = second / (first + second + torch.finfo(alpha.dtype).tiny)
        return share * estimates[0] + (1.0 - share) * estimates[1]

    def score_loss(self, batch: Batch, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return the squared error of v at re-noised replay actions and policy samples."""
        fraction = self.config.replay_fraction
        count = [math.floor(row * fraction) for row in range(len(clean) + 1)]
        replayed = torch.tensor([b > a for a, b in itertools.pairwise(count)])
        stored = torch.atanh(batch.action.clamp(-0.999, 0.999))
        clean = torch.where(replayed[:, None], stored, clean)
        alpha, sigma = self.alphas[level][:, None], self.sigmas[level][:, None]
        noisy = alpha * clean + sigma * noise[0]
        score = self.score_target(batch.obs, noisy, noise[1:], level)
        variance = alpha**2 + sigma**2
        target = -(noisy + variance * score) * sigma / (alpha * variance.sqrt())
        error = self.denoiser.predict(batch.obs, noisy, level) - target
        return (error**2).sum(-1).mean()

    def update(self, batch: Batch) -> None:
        """Critics, policy, temperature, multiplier, targets."""
        self.num_updates += 1
        config, shape = self.config, batch.action.shape
        chain = len(self.levels) + 1
        counts = [chain, chain, 1 + config.num_score_samples // 2]
        noise = torch.randn(sum(counts), *shape, generator=self.generator)
        first, second, rest = noise.split(counts)
        with torch.no_grad():
            next_action = torch.tanh(self.denoise(batch.next_obs, first))
        self.critics.update(batch, next_action)
        level = torch.randint(len(self.alphas), shape[:1], generator=self.generator)
        clean = self.denoise(batch.obs, second)
        energy, violation = self.energy(batch.obs, torch.tanh(clean))
        chain_loss = (energy / self.temperature()).mean()
        score_loss = self.score_loss(batch, clean.detach(), rest, level)
        loss = config.chain_coef * chain_loss + config.score_coef * score_loss
        self.policy_optimizer.zero_grad()
        loss.backward()
        self.policy_optimizer.step()
        self.observe_scale(batch.obs)
        self.multiplier.update(batch.obs, violation.detach())
        self.polyak_if_due()

    @torch.no_grad()
    def observe_scale(self, obs: Tensor) -> None:
        """Update the running scale of the energy from uniform actions."""
        config = self.config.temperature
        probes = obs[: config.probe_states]
        uniform = torch.rand(
            config.probe_actions, len(probes), self.action_dim, generator=self.generator
        )
        energy, _ = self.energy(probes, 2.0 * uniform - 1.0)
        self.scale = config.decay * self.scale + (1.0 - config.decay) * float(energy.std(0).mean())
        self.num_observed += 1
