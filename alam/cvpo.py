"""Constrained variational policy optimisation: a Gaussian policy by expectation-maximisation.

In: batches. Out: actions and metrics. Relation: CVPO (arXiv 2201.11927), whose steps are

    E   q(a|s) ~ pi_old(a|s) exp( (Q_r(s,a) - lambda v(s,a)) / eta ),  v the violation, where
        (eta, lambda) minimise the convex dual
            eta kl_bound + eta E_s log E_{a ~ pi_old} exp( (Q_r - lambda v) / eta )
        so that E_q[v] <= 0 and E_s KL(q || pi_old) <= kl_bound
    M   maximise E_q[log pi(a|s)] with KL(pi_old || pi) bounded, mean and deviation apart, by
        Lagrange multipliers that follow the excess of each bound

Deviations: the policy is a tanh-Gaussian with independent dimensions (likelihoods and KLs are
those of the latents, which tanh leaves as they are); the dual is solved by damped Newton steps on
the device in place of scipy's SLSQP; gradients are not clipped.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alam.config import Config
from alam.critics import CriticConfig
from alam.gaussian import GaussianPolicy, GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import FixedConfig, MultiplierConfig
from alam.networks import Activation, make_adam, polyak_update
from alam.sac import GaussianLearner, refuse_batch_hinge, require_consistent
from alam.scalar_multipliers import FixedMultiplier
from alam.types import Batch, Due, Metrics
from alam.variational_dual import Dual, mean_kl_to_uniform, solve_dual


@dataclass(frozen=True)
class CVPOPolicyConfig(Config):
    """A Gaussian policy trained by CVPO; defaults as released (arXiv 2201.11927).

    num_action_samples: actions per state of the E-step. dual_kl_bound: of the E-step.
    dual_steps: Newton steps on the dual per update, from where the last update ended.
    multiplier_max: bound of lambda, for states where no action is safe.
    policy_steps: gradient steps of the M-step per update. mean_kl_bound, std_kl_bound: its trust
        region. mean_kl_rate, std_kl_rate, mean_kl_coef_max, std_kl_coef_max: how fast the
        multipliers of these bounds move, and how far.
    target_update_rate: Polyak rate of pi_old.
    hidden, activation: of the policy network. learning_rate: of its Adam.
    """

    kind: Literal["cvpo"] = "cvpo"
    hidden: tuple[int, ...] = (256, 256)
    activation: Activation = "relu"
    learning_rate: float = 2e-3
    num_action_samples: int = 32
    dual_kl_bound: float = 0.1
    dual_steps: int = 5
    multiplier_max: float = 1e5
    policy_steps: int = 6
    mean_kl_bound: float = 1e-3
    std_kl_bound: float = 1e-3
    mean_kl_rate: float = 1.0
    std_kl_rate: float = 100.0
    mean_kl_coef_max: float = 0.1
    std_kl_coef_max: float = 10.0
    target_update_rate: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {self.hidden}")
        if self.num_action_samples < 2:
            raise ValueError(f"num_action_samples must be >= 2, got {self.num_action_samples}")
        for name in ("dual_steps", "policy_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in (
            *("learning_rate", "dual_kl_bound", "multiplier_max", "mean_kl_bound"),
            *("std_kl_bound", "mean_kl_rate", "std_kl_rate", "mean_kl_coef_max"),
            "std_kl_coef_max",
        ):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.0 < self.target_update_rate <= 1.0:
            raise ValueError(f"target_update_rate must be in (0, 1], got {self.target_update_rate}")


@dataclass(frozen=True)
class CVPOConfig(Config):
    """Policy, critics and constraint of a CVPO agent; the multiplier is a result of the E-step."""

    policy: CVPOPolicyConfig = field(default_factory=CVPOPolicyConfig)
    critics: CriticConfig = field(default_factory=CriticConfig)
    constraint: ConstraintConfig = field(default_factory=lambda: ConstraintConfig(augmented=False))
    multiplier: MultiplierConfig = field(default_factory=FixedConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.multiplier, FixedConfig):
            raise ValueError(
                "multiplier.kind must be 'fixed' with policy.kind 'cvpo', which finds the "
                f"multiplier itself, got {self.multiplier.kind!r}"
            )
        if self.constraint.augmented:
            raise ValueError("constraint.augmented must be false with policy.kind 'cvpo', got true")
        refuse_batch_hinge(self.constraint, self.policy.kind)
        require_consistent(self, reads_threshold=True)


class GaussianKL(NamedTuple):
    """KL(old || new) of diagonal Gaussians, mean and deviation apart, averaged over states."""

    mean: Float[Tensor, ""]
    std: Float[Tensor, ""]


def decoupled_kl(
    old_mean: Float[Tensor, "B A"],
    old_log_std: Float[Tensor, "B A"],
    mean: Float[Tensor, "B A"],
    log_std: Float[Tensor, "B A"],
) -> GaussianKL:
    """Return KL to N(mean, old std) and KL to N(old mean, std)."""
    shift = ((mean - old_mean) / old_log_std.exp()).square().sum(-1)
    ratio = old_log_std - log_std
    spread = ((2.0 * ratio).exp() - 1.0 - 2.0 * ratio).sum(-1)
    return GaussianKL(0.5 * shift.mean(), 0.5 * spread.mean())


def weighted_likelihood(
    latent: Float[Tensor, "S B A"],
    weights: Float[Tensor, "S B"],
    mean: Float[Tensor, "*#B A"],
    log_std: Float[Tensor, "*#B A"],
) -> Float[Tensor, ""]:
    """Return E_s sum_i w_i log N(latent_i; mean, std), without its constant."""
    log_density = -0.5 * ((latent - mean) / log_std.exp()).square() - log_std
    return (weights * log_density.sum(-1)).sum(0).mean()


class CVPOAgent(GaussianLearner):
    """Constrained variational policy optimisation; ``multiplier`` holds the dual's lambda."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: CVPOConfig,
        *,
        episode_length: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            obs_dim, action_dim, config, episode_length=episode_length, seed=seed, device=device
        )
        self.config = config
        shape = GaussianPolicyConfig(
            hidden=config.policy.hidden, activation=config.policy.activation
        )
        self.policy = GaussianPolicy(obs_dim, action_dim, shape, generator=self.initial).to(device)
        self.old_policy = deepcopy(self.policy).requires_grad_(False)
        self.policy_optimizer = make_adam(
            list(self.policy.parameters()), learning_rate=config.policy.learning_rate
        )
        start = torch.tensor([1.0, 0.0], dtype=torch.float64, device=device)
        self.dual = Dual(start[0], start[1])
        # Of the bounds on mean and deviation, in this order.
        p = config.policy
        self.kl_bounds = torch.tensor([p.mean_kl_bound, p.std_kl_bound], device=device)
        self.kl_rates = torch.tensor([p.mean_kl_rate, p.std_kl_rate], device=device)
        self.kl_coefs_max = torch.tensor([p.mean_kl_coef_max, p.std_kl_coef_max], device=device)
        self.kl_coefs = torch.zeros(2, device=device)

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Critics, E-step, M-step, then targets."""
        samples = self.config.policy.num_action_samples
        noise = torch.randn(
            1 + samples, *batch.action.shape, generator=self.generator, device=self.device
        )
        with torch.no_grad():
            next_action, _ = self.policy.sample(batch.next_obs, noise[0])
        metrics = self.critics.update(batch, next_action)
        with torch.no_grad():
            old_mean, old_log_std = self.old_policy(batch.obs)
            latent = old_mean + old_log_std.exp() * noise[1:]
            weights, e_metrics = self._expectation(batch.obs, torch.tanh(latent))
        metrics |= e_metrics | self._maximization(batch.obs, latent, weights, old_mean, old_log_std)
        if due.targets:
            self.critics.polyak()
        polyak_update(self.old_policy, self.policy, rate=self.config.policy.target_update_rate)
        return metrics

    def _expectation(
        self, obs: Float[Tensor, "B O"], action: Float[Tensor, "S B A"]
    ) -> tuple[Float[Tensor, "S B"], Metrics]:
        """Solve the dual and return the weights of the actions."""
        config = self.config.policy
        q_reward, q_cost = self.critics.target_values(obs, action)
        violation = self.constraint.violation(q_cost)
        dual = solve_dual(
            q_reward,
            violation,
            self.dual,
            kl_bound=config.dual_kl_bound,
            multiplier_max=config.multiplier_max,
            steps=config.dual_steps,
        )
        for held, value in zip(self.dual, dual, strict=True):
            held.copy_(value)
        multiplier = dual.multiplier.to(q_reward.dtype)
        cast("FixedMultiplier", self.multiplier).value.copy_(multiplier)
        weights = F.softmax(
            (q_reward - multiplier * violation) / dual.temperature.to(q_reward.dtype), dim=0
        )
        return weights, {
            "train/multiplier": multiplier,
            "train/dual_temperature": dual.temperature,
            "train/dual_kl": mean_kl_to_uniform(weights),
            "train/violation": violation.mean(),
            "train/target_violation": (weights * violation).sum(0).mean(),
        }

    def _maximization(
        self,
        obs: Float[Tensor, "B O"],
        latent: Float[Tensor, "S B A"],
        weights: Float[Tensor, "S B"],
        old_mean: Float[Tensor, "B A"],
        old_log_std: Float[Tensor, "B A"],
    ) -> Metrics:
        """Fit the policy to the weighted actions inside its trust region."""
        metrics: Metrics = {}
        for _ in range(self.config.policy.policy_steps):
            mean, log_std = self.policy(obs)
            kl = torch.stack(decoupled_kl(old_mean, old_log_std, mean, log_std))
            excess = kl - self.kl_bounds
            self.kl_coefs.add_(self.kl_rates * excess.detach()).clamp_(min=0.0)
            torch.minimum(self.kl_coefs, self.kl_coefs_max, out=self.kl_coefs)
            likelihood = weighted_likelihood(
                latent, weights, mean, old_log_std
            ) + weighted_likelihood(latent, weights, old_mean, log_std)
            # A mean over the samples, as its code takes it: its coefficients go with that.
            loss = -likelihood / len(latent) + (self.kl_coefs * excess).sum()
            self.policy_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.policy_optimizer.step()
            metrics = {
                "loss/policy": loss.detach(),
                "train/mean_kl": kl[0].detach(),
                "train/std_kl": kl[1].detach(),
                "train/policy_std": log_std.detach().exp().mean(),
            }
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bitwise continuation needs."""
        return self.learner_state() | {
            "policy": self.policy.state_dict(),
            "old_policy": self.old_policy.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "dual": tuple(self.dual),
            "kl_coefs": self.kl_coefs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.load_learner_state(state)
        self.policy.load_state_dict(state["policy"])
        self.old_policy.load_state_dict(state["old_policy"])
        self.policy_optimizer.load_state_dict(state["policy_optimizer"])
        for held, value in zip(self.dual, state["dual"], strict=True):
            held.copy_(value)
        self.kl_coefs.copy_(state["kl_coefs"])
