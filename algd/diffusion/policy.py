"""The denoising policy: reverse chain and the objective that trains it.

In: observations, noise, and an energy of actions. Out: actions in (-1, 1) and a scalar loss.
Relation: ALGD (arXiv 2602.02924). The chain lives in a latent u, a = tanh(u); the latent energy
carries the change of variables (ours), so that actions follow exp(-energy / temperature).
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from alam.config import Config
from alam.energy import Evaluate, differentiable_energy, energy_slopes
from alam.gaussian import log_one_minus_tanh_squared
from alam.networks import Activation
from alam.types import Metrics
from algd.diffusion.cpu_chain import ChainStep, can_run, run_chain
from algd.diffusion.denoiser import PredictionType, ScoreNetwork
from algd.diffusion.schedule import NoiseSchedule, ScheduleConfig, closed_form_levels
from algd.diffusion.score import Estimator, antithetic, estimate_score, propose
from algd.diffusion.temperature import TemperatureConfig

# Of a schedule's last level; squared, it is by how much the variance of a score target grows.
_LEAST_ALPHA = 0.1
_LATENT_LIMIT = 0.999  # replayed actions are pulled inside the box before atanh


def require_losses(chain_coef: float, score_coef: float) -> None:
    """Raise ValueError unless these coefficients of the two losses train a policy."""
    for name, value in (("chain_coef", chain_coef), ("score_coef", score_coef)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be >= 0, got {value}")
    if chain_coef == 0 and score_coef == 0:
        raise ValueError("chain_coef and score_coef are both 0: nothing would train the policy")


@dataclass(frozen=True)
class DiffusionPolicyConfig(Config):
    """A denoising policy and its training.

    loss = chain_coef * E[energy(s, a_0) / temperature], back-propagated through the last
    ``chain_steps`` reverse steps (None: all), + score_coef * E[|prediction - target|^2].

    estimator, num_score_samples, antithetic, base_std: how the score target is estimated; see
        ``algd.diffusion.score``.
    score_batch_size: rows of the batch that carry the score term; None for all.
    replay_fraction: share of the training points that are re-noised replay actions; the others are
        re-noised fresh samples of the policy.
    candidates: samples per observation of a deterministic action; 1 is the noise-free chain, more
        the best of so many by energy.
    hidden, activation, embedding_dim: of the score network; the last is the width of the level
        embedding.
    prediction_type: what the network predicts, as diffusers names it; learning_rate: of its Adam.
    chain_coef, chain_steps, score_coef: of the loss above. update_interval: updates of the critics
        per update of the policy.
    """

    kind: Literal["diffusion"] = "diffusion"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    embedding_dim: int = 16
    prediction_type: PredictionType = "v_prediction"
    learning_rate: float = 3e-4
    chain_coef: float = 0.0
    chain_steps: int | None = None
    score_coef: float = 1.0
    estimator: Estimator = "mixed"
    num_score_samples: int = 16
    antithetic: bool = True
    base_std: float | None = 1.5
    score_batch_size: int | None = 64
    replay_fraction: float = 0.5
    candidates: int = 1
    update_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {self.hidden}")
        require_losses(self.chain_coef, self.score_coef)
        if self.chain_steps is not None and self.chain_steps < 1:
            raise ValueError(
                f"chain_steps must be null or >= 1, got {self.chain_steps} (chain_coef 0 is none)"
            )
        if self.num_score_samples < 2 or (self.antithetic and self.num_score_samples % 2):
            raise ValueError(
                "num_score_samples must be >= 2, and even with antithetic noise, got "
                f"{self.num_score_samples}"
            )
        if self.base_std is not None and not 0 < self.base_std < float("inf"):
            raise ValueError(f"base_std must be null or positive, got {self.base_std}")
        if self.score_batch_size is not None and self.score_batch_size < 1:
            raise ValueError(f"score_batch_size must be null or >= 1, got {self.score_batch_size}")
        if not 0 <= self.replay_fraction <= 1:
            raise ValueError(f"replay_fraction must be in [0, 1], got {self.replay_fraction}")
        for name in ("candidates", "update_interval", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.schedule.kind == "vp":
            self._check_last_level()

    def _check_last_level(self) -> None:
        """Refuse VP levels that barely noise, and what divides by an alpha that is nearly 0.

        A chain that starts from noise must end its training in noise. Scores of clean latents are
        divided by alpha, and so is the spread of proposals without a base law.
        """
        levels = closed_form_levels(self.schedule)
        alpha, sigma = float(levels.alphas[-1]), float(levels.sigmas[-1])
        if sigma < alpha:
            raise ValueError(
                "schedule must end with more noise than signal, or its chain would start from "
                "latents that it was not trained on; beta_schedule "
                f"{self.schedule.beta_schedule!r} with beta_end {self.schedule.beta_end} and "
                f"{len(levels.alphas)} levels ends at sigma {sigma:.2g} (give a larger beta_end, "
                "or beta_schedule 'squaredcos_cap_v2')"
            )
        if alpha < _LEAST_ALPHA:
            if self.estimator == "target":
                raise ValueError(
                    "estimator must be 'mixed' or 'denoising' with a schedule of kind 'vp' that "
                    f"ends at alpha {alpha:.2g}, by which 'target' divides, got 'target'"
                )
            if self.base_std is None:
                raise ValueError(
                    "base_std must be positive with a schedule of kind 'vp' that ends at alpha "
                    f"{alpha:.2g}, where proposals are spread by sigma / alpha without, got null"
                )


class PolicyLoss(NamedTuple):
    """A loss with its graph, and what was learnt on the way (detached)."""

    loss: Float[Tensor, ""]
    action: Float[Tensor, "B A"]
    violation: Float[Tensor, " B"]
    metrics: Metrics


def latent_energy(
    evaluate: Evaluate,
    obs: Float[Tensor, "B O"],
    latent: Float[Tensor, "*S B A"],
    temperature: Float[Tensor, ""],
) -> Float[Tensor, "*S B"]:
    """Return energy(s, tanh u) - temperature * sum_i log(1 - tanh(u_i)^2)."""
    energy, _ = evaluate(obs, torch.tanh(latent))
    return energy - temperature * log_one_minus_tanh_squared(latent).sum(-1)


class LatentEnergyOf:
    """``latent_energy`` of given observations, and its gradient."""

    def __init__(self, evaluate: Evaluate, obs: Tensor, temperature: Tensor) -> None:
        self.evaluate, self.obs, self.temperature = evaluate, obs, temperature

    def __call__(self, latent: Float[Tensor, "*S B A"]) -> Float[Tensor, "*S B"]:
        """Return the latent energy."""
        return latent_energy(self.evaluate, self.obs, latent, self.temperature)

    @torch.no_grad()
    def slopes(self, latent: Float[Tensor, "*S B A"]) -> tuple[Tensor, Tensor]:
        """Return the latent energy and its gradient in the latent, detached."""
        action = torch.tanh(latent)
        energy, _, slope = energy_slopes(self.evaluate, self.obs, action)
        volume = log_one_minus_tanh_squared(latent).sum(-1)
        # d log(1 - tanh(u)^2) / du = -2 tanh(u)
        gradient = slope * (1.0 - action.square()) + 2.0 * self.temperature * action
        return energy - self.temperature * volume, gradient


class DiffusionPolicy(nn.Module):
    """Samples a = tanh(u_0) by K reverse steps of a score network."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: DiffusionPolicyConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.action_dim = action_dim
        self.schedule = NoiseSchedule(config.schedule)
        self.network = ScoreNetwork(
            obs_dim,
            action_dim,
            self.schedule,
            hidden=config.hidden,
            activation=config.activation,
            embedding_dim=config.embedding_dim,
            prediction_type=config.prediction_type,
            generator=generator,
        )

        # Noisiest first, score and reverse step in one linear form.
        self.reverse_steps: list[ChainStep] = []
        for step in reversed(range(self.schedule.num_steps)):
            level = self.schedule.inference_levels[step]
            of_latent, of_prediction, of_input = self.network.linear[level]
            c_latent, c_score, c_noise = self.schedule.steps[step]
            self.reverse_steps.append(
                ChainStep(
                    level,
                    step,
                    of_input,
                    keep=c_latent + c_score * of_latent,
                    move=c_score * of_prediction,
                    spread=c_noise,
                )
            )

    @property
    def num_noises(self) -> int:
        """Standard normals per action dimension that one sample consumes."""
        return self.schedule.num_steps + 1

    def prior_std(self) -> Tensor:
        """Return the standard deviation of u_T: the noise, and the base law it was added to."""
        alpha, sigma = self.schedule.alphas[-1], self.schedule.sigmas[-1]
        return (sigma.square() + (alpha * (self.config.base_std or 0.0)).square()).sqrt()

    def denoise(
        self,
        obs: Float[Tensor, "B O"],
        noise: Float[Tensor, "K B A"],
        *,
        gradient_steps: int | None = None,
    ) -> Float[Tensor, "B A"]:
        """Run the reverse chain and return the clean latent u_0.

        1. u_T ~ N(0, prior_std^2). 2. For each level from the noisiest: u <- c0 u + c1 score + c2
        noise. ``gradient_steps`` keeps the graph of the last so many steps alone, None of all.
        """
        latent = self.prior_std() * noise[-1]
        steps = self.schedule.num_steps
        keep = steps if gradient_steps is None else min(gradient_steps, steps)
        if isinstance(self.network, ScoreNetwork) and can_run(self.network.network, obs, noise):
            return self._denoise_written_out(obs, latent, noise, keep)
        score = self.network.along_chain(obs)
        for step in reversed(range(steps)):
            c_latent, c_score, c_noise = self.schedule.steps[step]
            with torch.set_grad_enabled(torch.is_grad_enabled() and step < keep):
                moved = c_score * score(latent, self.schedule.inference_levels[step])
                latent = torch.add(moved, latent, alpha=c_latent)
                if c_noise:
                    latent = torch.add(latent, noise[step], alpha=c_noise)
        return latent

    def _denoise_written_out(
        self, obs: Tensor, latent: Tensor, noise: Tensor, gradient_steps: int
    ) -> Tensor:
        """Run the same chain as few nodes: the steps without a graph, then those with one."""
        network = self.network
        split = len(self.reverse_steps) - gradient_steps
        for steps, with_graph in (
            (self.reverse_steps[:split], False),
            (self.reverse_steps[split:], True),
        ):
            if steps:
                with torch.set_grad_enabled(torch.is_grad_enabled() and with_graph):
                    latent = run_chain(
                        network.network, network.embedding, obs, latent, noise, steps
                    )[-1]
        return latent

    def sample(
        self, obs: Float[Tensor, "B O"], noise: Float[Tensor, "K B A"]
    ) -> Float[Tensor, "B A"]:
        """Return actions in (-1, 1)."""
        return torch.tanh(self.denoise(obs, noise))

    def mode(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]:
        """Return the action of the noise-free chain from the centre of the prior."""
        # shape[0], not len: an exporter keeps it variable.
        noise = obs.new_zeros(self.num_noises, obs.shape[0], self.action_dim)
        return self.sample(obs, noise)

    def num_loss_noises(self) -> int:
        """Standard normals per row and action dimension that ``loss`` consumes."""
        half = 2 if self.config.antithetic else 1
        return self.num_noises + 1 + self.config.num_score_samples // half

    def loss(
        self,
        obs: Float[Tensor, "B O"],
        replay_action: Float[Tensor, "B A"],
        evaluate: Evaluate,
        temperature: Float[Tensor, ""],
        noise: Float[Tensor, "M B A"],
        level: Int[Tensor, " B"],
    ) -> PolicyLoss:
        """Return the objective on a batch.

        Args:
            obs, replay_action: rows of the replay buffer.
            evaluate: energies and violations of actions; carries gradients to actions alone.
            temperature: of the Gibbs law that is the target.
            noise: ``num_loss_noises()`` standard normals.
            level: uniform noise levels of the training points.
        """
        chain_noise, rest = noise[: self.num_noises], noise[self.num_noises :]
        with torch.set_grad_enabled(self.config.chain_coef > 0):
            clean_latent = self.denoise(obs, chain_noise, gradient_steps=self.config.chain_steps)
            action = torch.tanh(clean_latent)
            energy, violation = differentiable_energy(evaluate, obs, action)
        metrics: Metrics = {"train/energy": energy.detach().mean()}
        loss = torch.zeros((), device=obs.device)
        if self.config.chain_coef > 0:
            chain_loss = (energy / temperature).mean()
            loss = loss + self.config.chain_coef * chain_loss
            metrics["loss/chain"] = chain_loss.detach()
        if self.config.score_coef > 0:
            rows = self.config.score_batch_size or len(obs)
            score_loss = self.score_loss(
                obs[:rows],
                self.training_latent(clean_latent.detach(), replay_action)[:rows],
                evaluate,
                temperature,
                rest[:, :rows],
                level[:rows],
            )
            loss = loss + self.config.score_coef * score_loss
            metrics["loss/score"] = score_loss.detach()
        metrics["loss/policy"] = loss.detach()
        return PolicyLoss(loss, action.detach(), violation.detach(), metrics)

    def training_latent(
        self, policy_latent: Float[Tensor, "B A"], replay_action: Float[Tensor, "B A"]
    ) -> Float[Tensor, "B A"]:
        """Return clean latents to re-noise: every k-th row from replay, the others fresh.

        Rows are interleaved by ``replay_fraction``, so that any leading part of the batch has the
        same mixture.
        """
        fraction = self.config.replay_fraction
        row = torch.arange(len(policy_latent), device=policy_latent.device)
        from_replay = ((row + 1) * fraction).floor() > (row * fraction).floor()
        replay_latent = torch.atanh(replay_action.clamp(-_LATENT_LIMIT, _LATENT_LIMIT))
        return torch.where(from_replay.unsqueeze(-1), replay_latent, policy_latent)

    def score_loss(
        self,
        obs: Float[Tensor, "B O"],
        clean_latent: Float[Tensor, "B A"],
        evaluate: Evaluate,
        temperature: Float[Tensor, ""],
        noise: Float[Tensor, "M B A"],
        level: Int[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        """Return E[|prediction - target|^2] at re-noised latents; the target is detached."""
        alpha, sigma = self.network.levels(level)
        noisy = alpha * clean_latent + sigma * noise[0]
        proposal_noise = antithetic(noise[1:]) if self.config.antithetic else noise[1:]
        proposals = propose(noisy, alpha, sigma, proposal_noise, base_std=self.config.base_std)
        score = estimate_score(
            self.config.estimator,
            proposals,
            LatentEnergyOf(evaluate, obs, temperature),
            level,
            self.schedule.alphas,
            self.schedule.sigmas,
            temperature,
        )
        target = self.network.prediction_target(score, noisy, level)
        prediction = self.network.predict(obs, noisy, level)
        return (prediction - target).square().sum(-1).mean()


def best_of(actions: Float[Tensor, "S B A"], energy: Float[Tensor, "S B"]) -> Float[Tensor, "B A"]:
    """Return, for each row, the candidate of lowest energy."""
    index = repeat(energy.argmin(0), "b -> 1 b a", a=actions.shape[-1])
    return actions.gather(0, index).squeeze(0)
