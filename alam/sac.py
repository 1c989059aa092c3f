"""The Gaussian agent: soft actor-critic under a constraint.

In: batches. Out: actions and metrics. SAC-ALaM (arXiv 2605.00667) with the state-wise ALaM
multiplier; SAC-Lag, SAC-PID, SAC-ADRC and FAC by another multiplier; SAC without augmentation
and with a multiplier fixed at 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from alam.acting import GaussianSampler, KeptSampler, observation_rows
from alam.config import Config
from alam.critics import CriticConfig, SafeCritics
from alam.energy import Evaluate, FrozenEnergy, differentiable_energy
from alam.gaussian import GaussianPolicy, GaussianPolicyConfig
from alam.lagrangian import Constraint, ConstraintConfig, cost_threshold
from alam.multiplier import make_multiplier
from alam.multiplier_base import Multiplier
from alam.multiplier_config import MultiplierConfig, StatewiseALaMConfig
from alam.networks import make_adam
from alam.types import Batch, Due, Metrics, require_batch


@dataclass(frozen=True)
class SACConfig(Config):
    """Policy, critics, constraint and multiplier of a Gaussian agent."""

    policy: GaussianPolicyConfig = field(default_factory=GaussianPolicyConfig)
    critics: CriticConfig = field(default_factory=CriticConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    multiplier: MultiplierConfig = field(default_factory=StatewiseALaMConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_consistent(self)


def make_constraint(
    config: ConstraintConfig, critics: CriticConfig, *, episode_length: int
) -> Constraint:
    """Return the constraint on the scale of the cost critic; reachability has threshold 0."""
    if critics.cost_target == "reachability":
        return Constraint(config, threshold=0.0)
    threshold = cost_threshold(
        cost_limit=config.cost_limit,
        episode_length=episode_length,
        cost_discount=critics.cost_discount,
    )
    return Constraint(config, threshold=threshold)


def require_consistent(config: "LearnerConfig", *, reads_threshold: bool = False) -> None:
    """Raise ValueError where critics, constraint and multiplier do not go together.

    Args:
        config: of an agent.
        reads_threshold: whether its policy does, whatever the multiplier.
    """
    constraint, multiplier = config.constraint, config.multiplier
    is_reachability = config.critics.cost_target == "reachability"
    is_calibrated = constraint.calibration_rate > 0
    if is_calibrated and is_reachability:
        raise ValueError(
            "constraint.calibration_rate needs critics.cost_target: discounted; a reachability "
            "critic has the threshold 0"
        )
    unread = multiplier.kind == "fixed" or multiplier.signal == "episode"
    if is_calibrated and unread and not reads_threshold and not constraint.augmented:
        raise ValueError(
            "constraint.calibration_rate needs what reads the threshold: constraint.augmented: "
            "true, or a multiplier that learns from the cost critics; got multiplier.kind "
            f"{multiplier.kind!r} with signal {multiplier.signal!r}"
        )
    if multiplier.signal == "episode" and is_reachability:
        raise ValueError(
            "multiplier.signal: episode needs critics.cost_target: discounted; reachability "
            "bounds the risk of every state, which the costs of episodes do not measure"
        )


def refuse_batch_hinge(constraint: ConstraintConfig, kind: str) -> None:
    """Raise ValueError where the policy's kind has no batch of its own actions to hinge."""
    if constraint.hinge == "batch":
        raise ValueError(
            "constraint.hinge: batch needs policy.kind: gaussian; it weighs costs by the mean "
            "of the policy's own actions, where a denoising policy asks for those of proposals "
            f"and cvpo has no penalty, got {kind!r}"
        )


class LearnerConfig(Protocol):
    """What the configuration of every agent has."""

    @property
    def critics(self) -> CriticConfig:
        """Of reward and cost critics."""
        ...

    @property
    def constraint(self) -> ConstraintConfig:
        """What is constrained."""
        ...

    @property
    def multiplier(self) -> MultiplierConfig:
        """Of the multiplier."""
        ...


class ConstrainedLearner:
    """What every agent here holds besides its policy: critics, constraint, multiplier, generator.

    Args:
        obs_dim, action_dim: widths.
        config: of critics, constraint and multiplier.
        episode_length: horizon that ``cost_limit`` refers to, in steps.
        seed: of the initial weights and of the noise drawn in ``update``.
        device: of all parameters.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: LearnerConfig,
        *,
        episode_length: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.initial = torch.Generator().manual_seed(seed)
        critics, constraint = config.critics, config.constraint
        self.critics = SafeCritics(obs_dim, action_dim, critics, generator=self.initial).to(device)
        self.critics.build_optimizer()
        self.constraint = make_constraint(constraint, critics, episode_length=episode_length).to(
            device
        )
        self.multiplier: Multiplier = make_multiplier(
            config.multiplier,
            obs_dim,
            penalty_coef=constraint.penalty_coef,
            generator=self.initial,
        ).to(device)
        self.multiplier.build_optimizer()
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.num_updates = 0

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.generator.device

    def _on_device(self, obs: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(obs)).to(self.device)

    def evaluate(
        self,
        obs: Float[Tensor, "B O"],
        action: Float[Tensor, "*S B A"],
        *,
        multiplier: Float[Tensor, " N"] | None = None,
    ) -> tuple[Float[Tensor, "*S B"], Float[Tensor, "*S B"]]:
        """Return energy and violation of normalised actions; gradients reach the actions alone.

        Args:
            obs, action: what is evaluated.
            multiplier: those of the batch whose first rows ``obs`` are, where they are known.
        """
        q_reward = self.critics.q_reward(obs, action, frozen=True)
        violation = self.constraint.violation(self.critics.q_cost(obs, action, frozen=True))
        if multiplier is None:
            with torch.no_grad():
                held: Tensor = self.multiplier(obs)
        else:
            held = multiplier[: len(obs)]
        return self.constraint.energy(q_reward, violation, held), violation

    def energy_of(self, obs: Float[Tensor, "N O"]) -> Evaluate:
        """Return ``evaluate`` for the first rows of a batch, its multipliers asked for once."""
        with torch.no_grad():
            multiplier = self.multiplier(obs)
        evaluate = partial(self.evaluate, multiplier=multiplier)
        if not self.critics.reward.written_out(obs):
            return evaluate
        return FrozenEnergy(evaluate, self.critics, self.constraint, multiplier)

    @torch.no_grad()
    def multiplier_signal(self, batch: Batch, policy_violation: Tensor) -> Tensor:
        """Return the violation that the multiplier learns from, by its configured signal."""
        if self.multiplier.config.signal != "replay":
            return policy_violation.detach()
        return self.constraint.violation(self.critics.q_cost(batch.obs, batch.action))

    def update(self, batch: Batch) -> Metrics:
        """Take one gradient step of every part and return detached scalars.

        Raises:
            ValueError: the batch has columns of other shapes than ``Batch`` says.
        """
        require_batch(batch, self.obs_dim, self.action_dim)
        return self.take_update(batch, self.count_update())

    def count_update(self) -> Due:
        """Count an update of every part, on the host alone; return what is due in it."""
        self.num_updates += 1
        policy = self.num_updates % self.policy_interval == 0
        return Due(
            policy=policy,
            targets=self.num_updates % self.critics.config.target_update_interval == 0,
            multiplier=self.multiplier.count_update() if policy else None,
        )

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Do what is due, on the device alone: a CUDA graph can hold it."""
        raise NotImplementedError

    @property
    def policy_interval(self) -> int:
        """How many updates of the critics go with one of the policy."""
        return 1

    @property
    def generators(self) -> list[torch.Generator]:
        """Where updates draw their noise."""
        return [self.generator]

    def _param_groups(self) -> Iterator[dict[str, Any]]:
        for holder in (self, self.critics, self.multiplier, getattr(self, "temperature", None)):
            for optimizer in vars(holder).values() if holder is not None else ():
                if isinstance(optimizer, torch.optim.Optimizer):
                    yield from optimizer.param_groups

    def scale_learning_rates(self, scale: float) -> None:
        """Set the rate of every optimiser to ``scale`` times the one that it was built with."""
        for group in self._param_groups():
            rate = scale * group.setdefault("initial_lr", group["lr"])
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def hold_learning_rates_on_device(self) -> None:
        """Turn learning rates into tensors, which an update that was captured reads anew."""
        for group in self._param_groups():
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.device)

    @property
    def holds_learning_rates_on_device(self) -> bool:
        """Return whether they are tensors; loading a state makes them numbers again."""
        return all(isinstance(group["lr"], Tensor) for group in self._param_groups())

    def observe_episode_cost(self, cost: float) -> None:
        """Tell constraint and multiplier the cost of a finished training episode.

        The multiplier is told its violation, in the constraint's unit. Episodes before the first
        update say nothing about critics or policy.
        """
        if self.num_updates == 0:
            return
        self.constraint.observe_episode(cost)
        limit = self.constraint.config.cost_limit
        relative = cost / limit - 1.0 if limit > 0 else cost
        scale = self.constraint.nominal_threshold or 1.0
        self.multiplier.observe_episode(relative * scale / float(self.constraint.unit))

    def learner_state(self) -> dict[str, Any]:
        """Return critics, threshold, multiplier, noise generator and counter."""
        return {
            "critics": self.critics.full_state(),
            "threshold": self.constraint.threshold,
            "multiplier": self.multiplier.full_state(),
            "generator": self.generator.get_state(),
            "num_updates": self.num_updates,
        }

    def load_learner_state(self, state: dict[str, Any]) -> None:
        """Restore what ``learner_state`` returned; noise goes on as it was where it is missing."""
        self.critics.load_full_state(state["critics"])
        if "threshold" in state:  # absent before 1 could be calibrated
            self.constraint.threshold.copy_(state["threshold"])
        self.multiplier.load_full_state(state["multiplier"])
        if "generator" in state:
            self.generator.set_state(state["generator"].cpu())
        self.num_updates = state["num_updates"]


class GaussianLearner(ConstrainedLearner):
    """A learner whose policy is a squashed Gaussian, and how that acts."""

    policy: GaussianPolicy

    @torch.no_grad()
    def act(
        self,
        obs: Num[np.ndarray, "N O"],
        *,
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> Float[np.ndarray, "N A"]:
        """Return normalised actions; ``deterministic`` gives tanh of the latent mean."""
        obs = observation_rows(obs, self.obs_dim, self.policy)
        sampler = self._row_sampler.get(self.policy) if len(obs) == 1 else None
        if deterministic:
            if sampler is not None:
                return sampler.sample(obs[0], None)[None]
            return self.policy.mode(self._on_device(obs)).cpu().numpy()
        noise = torch.randn(len(obs), self.action_dim, generator=generator, device=generator.device)
        if sampler is not None:
            return sampler.sample(obs[0], noise[0].cpu().numpy())[None]
        return self.policy.sample(self._on_device(obs), noise.to(self.device))[0].cpu().numpy()

    @cached_property
    def _row_sampler(self) -> KeptSampler[GaussianPolicy]:
        return KeptSampler(GaussianSampler)


class SACAgent(GaussianLearner):
    """Soft actor-critic on the augmented Lagrangian."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: SACConfig,
        *,
        episode_length: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            obs_dim, action_dim, config, episode_length=episode_length, seed=seed, device=device
        )
        self.config = config
        policy = config.policy
        self.policy = GaussianPolicy(obs_dim, action_dim, policy, generator=self.initial).to(device)
        self.auto_entropy = policy.entropy_coef == "auto"
        start = policy.initial_entropy_coef if self.auto_entropy else policy.entropy_coef
        # A fixed coefficient of 0 has no logarithm; it is kept as a tiny one.
        self.log_entropy_coef = torch.tensor(float(start), device=device).clamp(min=1e-12).log()
        self.target_entropy = (
            -float(action_dim) if policy.target_entropy is None else policy.target_entropy
        )
        self.policy_optimizer = make_adam(
            list(self.policy.parameters()), learning_rate=policy.learning_rate
        )
        self.entropy_optimizer = make_adam(
            [self.log_entropy_coef], learning_rate=policy.learning_rate
        )

    @property
    def policy_interval(self) -> int:
        """How many updates of the critics go with one of the policy."""
        return self.config.policy.update_interval

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Critics, then policy and entropy coefficient, then multiplier, then targets."""
        noise = self.draw_noise(batch.action.shape)
        entropy_coef = self.log_entropy_coef.exp()
        with torch.no_grad():
            next_action, next_log_prob = self.policy.sample(batch.next_obs, noise[0])
        metrics = self.critics.update(batch, next_action, -entropy_coef * next_log_prob)
        if due.policy:
            violation, policy_metrics = self._update_policy(batch, noise[1], entropy_coef)
            signal = self.multiplier_signal(batch, violation)
            metrics |= policy_metrics
            metrics |= self.multiplier.take_update(batch.obs, signal, due.multiplier)
        if due.targets:
            self.critics.polyak()
        return metrics

    def draw_noise(self, shape: tuple[int, ...]) -> Float[Tensor, "2 B A"]:
        """Draw the normals of one update, those of the next action and those of the loss."""
        return torch.randn(2, *shape, generator=self.generator, device=self.device)

    def policy_loss(
        self, batch: Batch, noise: Float[Tensor, "B A"], entropy_coef: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " B"], Metrics]:
        """Return E[entropy_coef * log pi + energy], the multiplier detached; the violation."""
        action, log_prob = self.policy.sample(batch.obs, noise)
        evaluate = self.energy_of(batch.obs)
        energy, violation = differentiable_energy(evaluate, batch.obs, action)
        loss = (entropy_coef * log_prob + energy).mean()
        return (
            loss,
            violation.detach(),
            {
                "loss/policy": loss.detach(),
                "train/energy": energy.detach().mean(),
                "train/entropy": -log_prob.detach().mean(),
                "train/entropy_coef": entropy_coef,
            },
        )

    def _update_policy(
        self, batch: Batch, noise: Tensor, entropy_coef: Tensor
    ) -> tuple[Float[Tensor, " B"], Metrics]:
        """Take one step of the policy and of the entropy coefficient."""
        loss, violation, metrics = self.policy_loss(batch, noise, entropy_coef)
        self.policy_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.policy_optimizer.step()
        if self.auto_entropy:
            excess = metrics["train/entropy"] - self.target_entropy
            self.log_entropy_coef.grad = excess.reshape(())
            self.entropy_optimizer.step()
        return violation, metrics

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bitwise continuation needs."""
        return self.learner_state() | {
            "policy": self.policy.state_dict(),
            "log_entropy_coef": self.log_entropy_coef,
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "entropy_optimizer": self.entropy_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.load_learner_state(state)
        self.policy.load_state_dict(state["policy"])
        self.log_entropy_coef.copy_(state["log_entropy_coef"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        self.entropy_optimizer.load_state_dict(state["entropy_optimizer"])
