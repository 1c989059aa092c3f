"""Reward and cost critics, their targets and their optimiser.

In: a ``Batch`` and the next actions of the policy. Out: value estimates and detached losses.
Relations: clipped double Q-learning for the reward (the minimum of two); an ensemble, read
pessimistically, for the cost (arXiv 2602.02924); reachability targets as in arXiv 2205.07536.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alam.config import Config
from alam.networks import (
    Activation,
    EnsembleMLP,
    InitialWeights,
    Slopes,
    make_adam,
    polyak_update,
)
from alam.types import Batch, Metrics

_VARIANCE_FLOOR = 1e-12  # keeps the gradient of the standard deviation finite at agreement


@dataclass(frozen=True)
class CriticConfig(Config):
    """Critics of reward and cost.

    num_cost_critics, cost_pessimism: q_cost = mean + cost_pessimism * standard deviation over the
        ensemble.
    cost_target: ``discounted`` cost to go, or ``reachability``: the worst discounted cost ahead,
        whose threshold is 0 (hard state-wise safety).
    bootstrap_pessimism: null: each member of the cost ensemble regresses to its own target
        network, so that their spread keeps measuring disagreement; a number k: all to max(0,
        mean + k * standard deviation) of the target networks. A policy that seeks low cost finds
        where a critic errs low, and such errors feed themselves; so does pessimism, by about k
        standard deviations at every step of the horizon, which is why k is to be small. One critic
        alone has no spread.
    mask_terminated_cost: stop bootstrapping the cost at terminations; the released ALGD code
        does not on Safety-Gymnasium.
    target_update_rate, target_update_interval: Polyak rate, and updates between two applications.
    hidden, reward_activation, cost_activation: of the networks. learning_rate: of their Adam.
    initial_weights: ``uniform`` as in ``torch.nn.Linear``, or ``released``, as the released codes
        of ALGD and CAL draw them: Xavier for the reward, normal for the cost (which they mean to
        truncate; the truncated copy is not used), biases 0.
    discount, cost_discount: per step, of reward and of cost; the threshold follows the latter.
    """

    hidden: tuple[int, ...] = (256, 256)
    reward_activation: Activation = "relu"
    cost_activation: Activation = "silu"
    num_cost_critics: int = 4
    cost_pessimism: float = 0.5
    discount: float = 0.99
    cost_discount: float = 0.99
    cost_target: Literal["discounted", "reachability"] = "discounted"
    bootstrap_pessimism: float | None = None
    mask_terminated_cost: bool = True
    learning_rate: float = 3e-4
    initial_weights: Literal["uniform", "released"] = "uniform"
    target_update_rate: float = 0.005
    target_update_interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be one or more positive widths, got {self.hidden}")
        if self.num_cost_critics < 1:
            raise ValueError(f"num_cost_critics must be >= 1, got {self.num_cost_critics}")
        if not math.isfinite(self.cost_pessimism):
            raise ValueError(f"cost_pessimism must be finite, got {self.cost_pessimism}")
        k = self.bootstrap_pessimism
        if k is not None and not 0.0 <= k < float("inf"):
            raise ValueError(f"bootstrap_pessimism must be null or >= 0, got {k}")
        for name in ("discount", "cost_discount"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0.0 < self.target_update_rate <= 1.0:
            raise ValueError(f"target_update_rate must be in (0, 1], got {self.target_update_rate}")
        if self.target_update_interval < 1:
            raise ValueError(
                f"target_update_interval must be >= 1, got {self.target_update_interval}"
            )
        if not 0.0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


def td_target(
    signal: Float[Tensor, " B"],
    next_value: Float[Tensor, "*E B"],
    terminated: Float[Tensor, " B"],
    *,
    discount: float,
) -> Float[Tensor, "*E B"]:
    """Return signal + discount * (1 - terminated) * next_value.

    Termination stops bootstrapping; truncation by a time limit never does, and so does not appear.
    """
    return signal + discount * (1.0 - terminated) * next_value


def reachability_target(
    cost: Float[Tensor, " B"],
    next_value: Float[Tensor, "*E B"],
    terminated: Float[Tensor, " B"],
    *,
    discount: float,
) -> Float[Tensor, "*E B"]:
    """Return (1 - discount) * cost + discount * max(cost, next_value), next_value 0 at the end."""
    ahead = torch.maximum(cost.expand_as(next_value), (1.0 - terminated) * next_value)
    return (1.0 - discount) * cost + discount * ahead


def _spread(values: Float[Tensor, "E ..."]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, deviations and standard deviation over the members."""
    # ``Tensor.var`` over the first dimension takes five times as long.
    mean = values.mean(0)
    deviation = values - mean
    variance = deviation.square().sum(0) / (len(values) - 1)
    return mean, deviation, (variance + _VARIANCE_FLOOR).sqrt()


def _is_mean(values: Float[Tensor, "E ..."], coef: float) -> bool:
    return len(values) == 1 or coef == 0.0


def _pessimistic(values: Float[Tensor, "E ..."], coef: float) -> Tensor:
    """Return mean + coef * standard deviation over the members."""
    if _is_mean(values, coef):
        return values.mean(0)
    mean, _, std = _spread(values)
    return mean + coef * std


def _pessimistic_with_weights(
    values: Float[Tensor, "E ..."], coef: float
) -> tuple[Tensor, Float[Tensor, "E ..."]]:
    """Return what ``_pessimistic`` returns, and its derivative by each member."""
    weight = torch.full_like(values, 1 / len(values))
    if _is_mean(values, coef):
        return values.mean(0), weight
    mean, deviation, std = _spread(values)
    weight += coef / (len(values) - 1) * deviation / std
    return mean + coef * std, weight


class SafeCritics(nn.Module):
    """Twin reward critics and a cost ensemble with Polyak targets and one optimiser.

    Call ``build_optimizer`` once the module is on its device. Policies ask for values with
    ``frozen=True``: gradients then flow to the action and never to the weights.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: CriticConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        parts = (obs_dim, action_dim)

        def ensemble(members: int, activation: Activation, released: InitialWeights) -> EnsembleMLP:
            return EnsembleMLP(
                *(members, parts, config.hidden, 1),
                activation=activation,
                initial=released if config.initial_weights == "released" else "uniform",
                generator=generator,
            )

        def both() -> tuple[EnsembleMLP, EnsembleMLP]:
            return (
                ensemble(2, config.reward_activation, "xavier"),
                ensemble(config.num_cost_critics, config.cost_activation, "normal"),
            )

        self.reward, self.cost = both()
        self.reward_target, self.cost_target = (net.requires_grad_(False) for net in both())
        self.reward_target.load_state_dict(self.reward.state_dict())
        self.cost_target.load_state_dict(self.cost.state_dict())

    def build_optimizer(self) -> None:
        """Create the optimiser over both critics."""
        self.optimizer = make_adam(
            [*self.reward.parameters(), *self.cost.parameters()],
            learning_rate=self.config.learning_rate,
        )

    def q_reward(self, obs: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the minimum of the twins, shape of the broadcast leading dimensions."""
        return self.reward(obs, action, frozen=frozen).squeeze(-1).amin(0)

    def q_cost(self, obs: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        """Return mean + cost_pessimism * std of the ensemble."""
        members = self.cost(obs, action, frozen=frozen).squeeze(-1)
        return _pessimistic(members, self.config.cost_pessimism)

    def target_values(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``q_reward`` and ``q_cost`` return, by the target networks."""
        q_reward = self.reward_target(obs, action).squeeze(-1).amin(0)
        members = self.cost_target(obs, action).squeeze(-1)
        return q_reward, _pessimistic(members, self.config.cost_pessimism)

    @torch.no_grad()
    def slopes(self, obs: Tensor, action: Tensor) -> tuple[Slopes, Slopes]:
        """Return ``q_reward`` and ``q_cost`` with their slopes; for eager computation on a CPU."""
        twins = self.reward.slopes(obs, action)
        q_reward = twins.value.amin(0)
        smaller = (twins.value == q_reward).to(q_reward.dtype)
        # Where both agree, each counts half, as in the gradient of ``amin``.
        share = smaller / smaller.sum(0)
        members = self.cost.slopes(obs, action)
        q_cost, weight = _pessimistic_with_weights(members.value, self.config.cost_pessimism)
        return (
            Slopes(q_reward, (share.unsqueeze(-1) * twins.slope).sum(0)),
            Slopes(q_cost, (weight.unsqueeze(-1) * members.slope).sum(0)),
        )

    @torch.no_grad()
    def targets(
        self,
        batch: Batch,
        next_action: Float[Tensor, "B A"],
        next_bonus: Float[Tensor, " B"] | float = 0.0,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "E B"]]:
        """Return the reward target and the target of each cost critic.

        ``next_bonus`` (the entropy bonus of SAC) enters the reward target alone.
        """
        config = self.config
        next_q = self.reward_target(batch.next_obs, next_action).squeeze(-1).amin(0) + next_bonus
        reward = td_target(batch.reward, next_q, batch.terminated, discount=config.discount)
        next_cost = self.cost_target(batch.next_obs, next_action).squeeze(-1)
        if config.bootstrap_pessimism is not None:
            ahead = _pessimistic(next_cost, config.bootstrap_pessimism)
            # Costs are never negative, so neither is what is ahead.
            next_cost = ahead.clamp(min=0.0).expand_as(next_cost)
        end = batch.terminated
        if not config.mask_terminated_cost:
            end = torch.zeros_like(end)
        rule = td_target if config.cost_target == "discounted" else reachability_target
        return reward, rule(batch.cost, next_cost, end, discount=config.cost_discount)

    def update(
        self,
        batch: Batch,
        next_action: Float[Tensor, "B A"],
        next_bonus: Float[Tensor, " B"] | float = 0.0,
    ) -> Metrics:
        """Take one regression step of all critics."""
        reward_target, cost_target = self.targets(batch, next_action, next_bonus)
        q_reward = self.reward.regress(batch.obs, batch.action, target=reward_target)
        q_cost = self.cost.regress(batch.obs, batch.action, target=cost_target)
        self.optimizer.step()
        return {
            "loss/reward_critic": (q_reward - reward_target).square().mean(-1).sum(),
            "loss/cost_critic": (q_cost - cost_target).square().mean(-1).sum(),
            "train/q_reward": q_reward.mean(),
            "train/q_cost": q_cost.mean(),
        }

    def polyak(self) -> None:
        """Move both targets towards their critics."""
        polyak_update(self.reward_target, self.reward, rate=self.config.target_update_rate)
        polyak_update(self.cost_target, self.cost, rate=self.config.target_update_rate)

    def full_state(self) -> dict[str, Any]:
        """Return weights, targets and optimiser."""
        return {"module": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        self.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
