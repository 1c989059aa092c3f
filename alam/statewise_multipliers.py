"""Multipliers that are networks over states: dual ascent, and regression to a lagged dual target.

In: observations and violations, one for each. Out: multipliers >= 0, and their losses.
"""

from copy import deepcopy
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alam.lagrangian import dual_target
from alam.multiplier_base import Multiplier
from alam.multiplier_config import Output, StatewiseALaMConfig, StatewiseDualConfig
from alam.networks import MLP, make_adam, polyak_update
from alam.types import Metrics

_OUTPUT_BIAS = -3.0  # softplus(-3) = 0.05: start near 0, which softplus itself never reaches
_AT_REST = 2.5e-3  # softplus(-6): what counts as 0
_AT_BOUND = 0.99  # share of the bound that counts as reached: regression meets it in the limit only


class MultiplierNetwork(nn.Module):
    """A perceptron with a non-negative output, started near 0.

    ``softplus`` never reaches 0; ``relu`` does, with a leaky gradient so that it cannot die;
    ``squared`` is smooth and does.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: tuple[int, ...],
        output: Output,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.output = output
        self.network = MLP((obs_dim,), hidden, 1, generator=generator)
        with torch.no_grad():
            start = {"softplus": _OUTPUT_BIAS, "squared": 0.2, "relu": 0.0}[output]
            self.network.biases[-1].fill_(start)

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return multipliers >= 0."""
        raw = self.network(obs).squeeze(-1)
        if self.output == "softplus":
            return F.softplus(raw)
        if self.output == "squared":
            return raw.square()
        leaky = F.leaky_relu(raw, 0.01)
        return leaky + (raw.clamp(min=0.0) - leaky).detach()


_Config = TypeVar("_Config", StatewiseDualConfig, StatewiseALaMConfig)


class StatewiseMultiplier(Multiplier, Generic[_Config]):
    """A network of multipliers over states, its Adam and its counter, without a rule to learn."""

    def __init__(
        self,
        config: _Config,
        obs_dim: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: _Config = config
        self.network = MultiplierNetwork(obs_dim, config.hidden, config.output, generator=generator)
        self.num_updates = 0

    def build_optimizer(self) -> None:
        """Create Adam over the network."""
        self.optimizer = make_adam(
            list(self.network.parameters()), learning_rate=self.config.learning_rate
        )

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return multipliers clipped to [0, multiplier_max]."""
        return self.network(obs).clamp(max=self.config.multiplier_max)

    def full_state(self) -> dict[str, Any]:
        """Return networks, optimiser and counter."""
        return {
            **super().full_state(),
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        super().load_full_state(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]


class StatewiseDual(StatewiseMultiplier[StatewiseDualConfig]):
    """Dual ascent on a network: gradient of -E[multiplier(s) * violation(s)]."""

    def loss(self, value: Float[Tensor, " B"], violation: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return -E[value * violation]; beyond the bound ascent stops, descent does not.

        A clipped multiplier would carry no gradient there, and so never come back. An output that
        reaches 0 stops there, as projected ascent does: what went on down would have to come back
        first. ``softplus`` goes on, as in FAC's code.
        """
        held = (value >= self.config.multiplier_max) & (violation > 0)
        if self.config.output != "softplus":
            held = held | ((value < _AT_REST) & (violation < 0))
        return -(torch.where(held, value.detach(), value) * violation).mean()

    def count_update(self) -> bool:
        """Count an update; return whether it takes a step, one every ``interval`` updates."""
        self.num_updates += 1
        return self.num_updates % self.config.interval == 0

    def take_update(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"], due: bool
    ) -> Metrics:
        """Take one step where it is due."""
        value, violation = self.network(obs), violation.detach()
        loss = self.loss(value, violation)
        if due:
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return network_metrics(self, value, violation, loss)


class DueALaM(NamedTuple):
    """What an update of ``StatewiseALaM`` does."""

    regression: bool
    lagged_copy: bool


class StatewiseALaM(StatewiseMultiplier[StatewiseALaMConfig]):
    """Regression of a network to the dual target of its own lagged copy (arXiv 2605.00667).

    Beware: without lag (rate 1, interval 1, one step) and with the hinge active the gradient of
    this loss is -penalty_coef * violation * grad multiplier, which is plain dual ascent.
    """

    def __init__(
        self,
        config: StatewiseALaMConfig,
        obs_dim: int,
        *,
        penalty_coef: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, obs_dim, generator=generator)
        self.penalty_coef = config.penalty_coef or penalty_coef
        self.lagged = deepcopy(self.network).requires_grad_(False)

    @torch.no_grad()
    def target(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the dual target of the lagged network, clipped to multiplier_max."""
        lagged = self.lagged(obs).clamp(max=self.config.multiplier_max)
        if self.config.target_hinge == "mean":
            return (lagged + self.penalty_coef * violation).clamp(max=self.config.multiplier_max)
        return dual_target(
            lagged,
            violation,
            penalty_coef=self.penalty_coef,
            multiplier_max=self.config.multiplier_max,
        )

    def loss(self, value: Float[Tensor, " B"], target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return 1/2 E[(value - target)^2] of unclipped multipliers, which carry the gradient.

        A multiplier that is 0 is not pulled further down: it would have to come back first.
        """
        if self.config.target_hinge == "mean":  # else no target is below 0
            at_rest = (value < _AT_REST) & (target < value)
            value = torch.where(at_rest, value.detach(), value)
        return 0.5 * (value - target).square().mean()

    def count_update(self) -> DueALaM:
        """Count an update; return what is due in it."""
        self.num_updates += 1
        return DueALaM(
            regression=self.num_updates % self.config.interval == 0,
            lagged_copy=self.num_updates % self.config.dual_target_interval == 0,
        )

    def take_update(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"], due: DueALaM
    ) -> Metrics:
        """Regress ``dual_steps`` times to one target, then move the lagged copy, where due."""
        target = self.target(obs, violation)
        loss = torch.zeros((), device=obs.device)
        with torch.set_grad_enabled(due.regression):
            value: Tensor = self.network(obs)
        if due.regression:
            for step in range(self.config.dual_steps):
                loss = self.loss(self.network(obs) if step else value, target)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
        if due.lagged_copy:
            polyak_update(self.lagged, self.network, rate=self.config.dual_target_rate)
        return network_metrics(self, value, violation, loss)


@torch.no_grad()
def network_metrics(
    multiplier: StatewiseDual | StatewiseALaM, value: Tensor, violation: Tensor, loss: Tensor
) -> Metrics:
    """Report the multipliers that an update began with; ``value`` is the unclipped network's."""
    bound = multiplier.config.multiplier_max
    value = value.clamp(max=bound)
    at_bound = (value >= _AT_BOUND * bound).float().mean()
    return {
        "train/multiplier": value.mean(),
        "train/multiplier_std": value.std(unbiased=False),
        "train/multiplier_at_bound": at_bound,
        "train/violation": violation.mean(),
        "loss/multiplier": loss.detach(),
    }
