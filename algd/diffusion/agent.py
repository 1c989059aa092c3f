"""The ALGD agent: a denoising policy under an augmented-Lagrangian energy.

In: batches. Out: actions and metrics. Relation: arXiv 2602.02924. Whatever multiplier the config
names takes the place of lambda(s).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, Int, Num
from torch import Tensor

from alam.acting import KeptSampler, observation_rows
from alam.config import Config
from alam.critics import CriticConfig
from alam.energy import Evaluate
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import MultiplierConfig, StatewiseALaMConfig
from alam.networks import make_adam
from alam.sac import ConstrainedLearner, refuse_batch_hinge, require_consistent
from alam.types import Batch, Due, Metrics
from algd.diffusion.acting import ChainSampler
from algd.diffusion.policy import (
    DiffusionPolicy,
    DiffusionPolicyConfig,
    PolicyLoss,
    best_of,
)
from algd.diffusion.release import ReleasePolicy, ReleasePolicyConfig
from algd.diffusion.temperature import Temperature


@dataclass(frozen=True)
class ALGDConfig(Config):
    """Policy, critics, constraint and multiplier of a diffusion agent."""

    policy: DiffusionPolicyConfig | ReleasePolicyConfig = field(
        default_factory=DiffusionPolicyConfig
    )
    critics: CriticConfig = field(default_factory=CriticConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    multiplier: MultiplierConfig = field(default_factory=StatewiseALaMConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_batch_hinge(self.constraint, self.policy.kind)
        require_consistent(self)


def make_policy(
    obs_dim: int,
    action_dim: int,
    config: DiffusionPolicyConfig | ReleasePolicyConfig,
    *,
    generator: torch.Generator | None = None,
) -> DiffusionPolicy | ReleasePolicy:
    """Build the denoising policy that a config describes."""
    if isinstance(config, ReleasePolicyConfig):
        return ReleasePolicy(obs_dim, action_dim, config, generator=generator)
    return DiffusionPolicy(obs_dim, action_dim, config, generator=generator)


class ALGDAgent(ConstrainedLearner):
    """Augmented-Lagrangian-guided diffusion, off-policy and online."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: ALGDConfig,
        *,
        episode_length: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            obs_dim, action_dim, config, episode_length=episode_length, seed=seed, device=device
        )
        self.config = config
        self.policy = make_policy(obs_dim, action_dim, config.policy, generator=self.initial).to(
            device
        )
        self.num_levels = config.policy.schedule.num_train_timesteps
        # The DDPM form of the release has no sampler of its own.
        self._row_sampler = (
            KeptSampler(ChainSampler) if getattr(config.policy, "variant", None) != "ddpm" else None
        )
        self.policy_optimizer = make_adam(
            list(self.policy.parameters()), learning_rate=config.policy.learning_rate
        )
        self.temperature = Temperature(config.policy.temperature, action_dim).to(device)
        self.temperature.build_optimizer()

    @torch.no_grad()
    def act(
        self,
        obs: Num[np.ndarray, "N O"],
        *,
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> Float[np.ndarray, "N A"]:
        """Return normalised actions.

        ``deterministic`` gives the noise-free chain, or with ``candidates`` > 1 the best of so many
        samples by energy (then the generator is used).
        """
        obs = observation_rows(obs, self.obs_dim, self.policy)
        candidates = self.config.policy.candidates if deterministic else 1
        rows = candidates * len(obs)
        sampler = self._row_sampler.get(self.policy) if rows == 1 and self._row_sampler else None
        if deterministic and candidates == 1:
            if sampler is not None:
                return sampler.sample(obs[0], None)[None]
            return self.policy.mode(self._on_device(obs)).cpu().numpy()
        noise = torch.randn(
            self.policy.num_noises,
            rows,
            self.action_dim,
            generator=generator,
            device=generator.device,
        )
        if sampler is not None:
            return sampler.sample(obs[0], noise[:, 0].cpu().numpy())[None]
        tensor, noise = self._on_device(obs), noise.to(self.device)
        if candidates == 1:
            return self.policy.sample(tensor, noise).cpu().numpy()
        repeated = repeat(tensor, "b o -> (s b) o", s=candidates)
        actions = self.policy.sample(repeated, noise).unflatten(0, (candidates, len(obs)))
        return best_of(actions, self.evaluate(tensor, actions)[0]).cpu().numpy()

    @property
    def policy_interval(self) -> int:
        """How many updates of the critics go with one of the policy."""
        return self.config.policy.update_interval

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Critics, then policy, then temperature and multiplier, then targets."""
        noise = self.draw_noise(batch.action.shape)
        chain_noise, loss_noise = noise.tensor_split([self.policy.num_noises])
        with torch.no_grad():
            next_action = self.policy.sample(batch.next_obs, chain_noise)
        metrics = self.critics.update(batch, next_action)
        if due.policy:
            evaluate = self.energy_of(batch.obs)
            result = self._update_policy(batch, evaluate, loss_noise)
            signal = self.multiplier_signal(batch, result.violation)
            metrics |= result.metrics | self._update_temperature(batch, evaluate)
            metrics |= self.multiplier.take_update(batch.obs, signal, due.multiplier)
        if due.targets:
            self.critics.polyak()
        return metrics

    def draw_noise(self, shape: tuple[int, ...]) -> Float[Tensor, "N B A"]:
        """Draw all normals of one update at once: those of the next action, those of the loss."""
        count = self.policy.num_noises + self.policy.num_loss_noises()
        return torch.randn(count, *shape, generator=self.generator, device=self.device)

    def draw_levels(self, rows: int) -> Int[Tensor, " B"]:
        """Draw the noise level of each row of the loss."""
        return torch.randint(self.num_levels, (rows,), generator=self.generator, device=self.device)

    def _update_policy(self, batch: Batch, evaluate: Evaluate, noise: Tensor) -> PolicyLoss:
        level = self.draw_levels(len(batch.reward))
        result = self.policy.loss(
            batch.obs, batch.action, evaluate, self.temperature(), noise, level
        )
        self.policy_optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        self.policy_optimizer.step()
        return result

    @torch.no_grad()
    def _update_temperature(self, batch: Batch, evaluate: Evaluate) -> Metrics:
        """Observe what the temperature's mode needs: uniform actions, or the policy's own."""
        config = self.config.policy.temperature
        metrics = {"train/temperature": self.temperature()}
        if config.mode == "raw":
            return metrics
        obs = batch.obs[: config.probe_states]
        probe = self.draw_probe(len(obs))
        if config.mode == "relative":
            self.temperature.observe_energy(evaluate(obs, probe)[0])
            return metrics
        samples = self.sample_probe(obs, probe)
        return metrics | {"train/entropy": self.temperature.observe_samples(samples)}

    def draw_probe(self, states: int) -> Float[Tensor, "N M A"]:
        """Draw uniform actions (relative temperature), or the noise of ``sample_probe``."""
        config, stream = self.config.policy.temperature, self.generator
        rows = (config.probe_actions, states)
        if config.mode == "relative":
            uniform = torch.rand(*rows, self.action_dim, generator=stream, device=self.device)
            return 2.0 * uniform - 1.0
        shape = (self.policy.num_noises, rows[0] * rows[1], self.action_dim)
        return torch.randn(shape, generator=stream, device=self.device)

    def sample_probe(
        self, obs: Float[Tensor, "B O"], noise: Float[Tensor, "K N A"]
    ) -> Float[Tensor, "S B A"]:
        """Sample as many actions of each observation as the temperature is probed with."""
        actions = self.config.policy.temperature.probe_actions
        repeated = repeat(obs, "b o -> (s b) o", s=actions)
        return self.policy.sample(repeated, noise).unflatten(0, (actions, len(obs)))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bitwise continuation needs."""
        return self.learner_state() | {
            "policy": self.policy.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "temperature": self.temperature.full_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.load_learner_state(state)
        self.policy.load_state_dict(state["policy"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.temperature.load_full_state(state["temperature"])
