"""What every reference agent shares: plain perceptrons, critics and multipliers in eager torch.

In: an agent of this project, whose weights are copied. Out: modules of ``torch.nn.Linear`` that
compute the same mathematics as published code would write it: one module per network, inputs
concatenated, autograd everywhere, the default Adam, one loop over the parameters for the targets.
Nothing here is fast on purpose; it is what speed and equality are measured against.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alam.critics import CriticConfig
from alam.lagrangian import Constraint
from alam.networks import EnsembleMLP
from alam.sac import ConstrainedLearner
from alam.scalar_multipliers import FixedMultiplier, ScalarDual
from alam.statewise_multipliers import StatewiseALaM
from alam.types import Batch

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "mish": nn.Mish}


def perceptron(ensemble: EnsembleMLP, member: int, activation: str) -> nn.Sequential:
    """Return one member of an ensemble as a stack of ``torch.nn.Linear``."""
    layers: list[nn.Module] = []
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        linear = nn.Linear(*weight.shape[1:])
        with torch.no_grad():
            linear.weight.copy_(weight[member].T)
            linear.bias.copy_(bias[member, 0])
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def concatenated(network: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    """Return the network's output at [obs, action], the observation repeated for every action."""
    return network(torch.cat([obs.expand(*action.shape[:-1], -1), action], dim=-1)).squeeze(-1)


class ReferenceCritics:
    """Two reward critics and the cost ensemble, each a module, with targets and two optimisers."""

    def __init__(self, learner: ConstrainedLearner, config: CriticConfig) -> None:
        self.config = config
        critics = learner.critics
        self.reward = nn.ModuleList(
            perceptron(critics.reward, i, config.reward_activation) for i in range(2)
        )
        self.cost = nn.ModuleList(
            perceptron(critics.cost, i, config.cost_activation)
            for i in range(config.num_cost_critics)
        )
        self.reward_target = copy.deepcopy(self.reward)
        self.cost_target = copy.deepcopy(self.cost)
        rate = config.learning_rate
        self.reward_optimizer = torch.optim.Adam(self.reward.parameters(), lr=rate)
        self.cost_optimizer = torch.optim.Adam(self.cost.parameters(), lr=rate)

    def q_reward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the minimum of the twins."""
        return torch.min(*(concatenated(network, obs, action) for network in self.reward))

    def q_cost(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return mean + pessimism * standard deviation; 1e-12 as in ``alam.critics``."""
        values = torch.stack([concatenated(network, obs, action) for network in self.cost])
        if len(self.cost) == 1 or self.config.cost_pessimism == 0.0:
            return values.mean(0)
        return values.mean(0) + self.config.cost_pessimism * (values.var(0) + 1e-12).sqrt()

    def update(self, batch: Batch, next_action: Tensor, next_bonus: Tensor | float = 0.0) -> None:
        """Regress both kinds of critics, one after the other."""
        config = self.config
        with torch.no_grad():
            next_q = torch.min(
                *(
                    concatenated(network, batch.next_obs, next_action)
                    for network in self.reward_target
                )
            )
            target = batch.reward + config.discount * (1.0 - batch.terminated) * (
                next_q + next_bonus
            )
            end = batch.terminated if config.mask_terminated_cost else 0.0 * batch.terminated
            cost_targets = [
                batch.cost
                + config.cost_discount
                * (1.0 - end)
                * concatenated(network, batch.next_obs, next_action)
                for network in self.cost_target
            ]
        loss = sum(
            F.mse_loss(concatenated(network, batch.obs, batch.action), target)
            for network in self.reward
        )
        self.reward_optimizer.zero_grad()
        torch.as_tensor(loss).backward()
        self.reward_optimizer.step()
        cost_loss = sum(
            F.mse_loss(concatenated(network, batch.obs, batch.action), cost_target)
            for network, cost_target in zip(self.cost, cost_targets, strict=True)
        )
        self.cost_optimizer.zero_grad()
        torch.as_tensor(cost_loss).backward()
        self.cost_optimizer.step()

    def polyak(self) -> None:
        """Move every target parameter towards its source."""
        rate = self.config.target_update_rate
        for targets, sources in ((self.reward_target, self.reward), (self.cost_target, self.cost)):
            for target, source in zip(targets.parameters(), sources.parameters(), strict=True):
                target.data.copy_(rate * source.data + (1.0 - rate) * target.data)


class ReferenceMultiplier:
    """The multipliers of the measured settings: fixed, log-space dual ascent, and ALaM."""

    def __init__(self, learner: ConstrainedLearner) -> None:
        source = learner.multiplier
        self.num_updates = 0
        self.network: nn.Sequential | None = None
        if isinstance(source, StatewiseALaM):
            self.bound = source.config.multiplier_max
            self.interval = source.config.dual_target_interval
            self.penalty_coef = float(source.penalty_coef)
            self.network = perceptron(source.network.network, 0, "relu")
            self.lagged = copy.deepcopy(self.network)
            self.optimizer = torch.optim.Adam(
                self.network.parameters(), lr=source.config.learning_rate
            )
        elif isinstance(source, ScalarDual) and source.config.parameterization == "log":
            self.log_value = nn.Parameter(torch.tensor(math.log(source.config.initial_value)))
            self.optimizer = torch.optim.Adam([self.log_value], lr=source.config.learning_rate)
        else:
            assert isinstance(source, FixedMultiplier)
            self.constant = source.value.clone()

    def __call__(self, obs: Tensor) -> Tensor:
        """Return the multiplier of every observation, without gradient."""
        with torch.no_grad():
            if self.network is not None:
                return F.softplus(self.network(obs).squeeze(-1)).clamp(max=self.bound)
            value = self.log_value.exp() if hasattr(self, "log_value") else self.constant
            return value.expand(len(obs))

    def update(self, obs: Tensor, violation: Tensor) -> None:
        """Take one step of the rule."""
        self.num_updates += 1
        if self.network is not None:
            with torch.no_grad():
                lagged = F.softplus(self.lagged(obs).squeeze(-1)).clamp(max=self.bound)
                target = (lagged + self.penalty_coef * violation).clamp(0.0, self.bound)
            loss = 0.5 * F.mse_loss(F.softplus(self.network(obs).squeeze(-1)), target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.num_updates % self.interval == 0:
                self.lagged.load_state_dict(self.network.state_dict())
        elif hasattr(self, "log_value"):
            loss = -self.log_value.exp() * violation.mean().detach()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class ReferenceLearner:
    """Critics, constraint and multiplier around which the reference agents are written."""

    def __init__(self, learner: ConstrainedLearner, config: CriticConfig) -> None:
        self.critics = ReferenceCritics(learner, config)
        self.multiplier = ReferenceMultiplier(learner)
        constraint: Constraint = learner.constraint
        self.threshold = float(constraint.threshold)
        self.unit = float(constraint.unit)
        self.penalty_coef = float(constraint.penalty_coef)
        self.generator = torch.Generator()
        self.generator.set_state(learner.generator.get_state())
        self.num_updates = 0

    def violation(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return (q_cost - threshold) / unit."""
        return (self.critics.q_cost(obs, action) - self.threshold) / self.unit

    def energy(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the augmented Lagrangian of actions, and their violation."""
        violation = self.violation(obs, action)
        multiplier = self.multiplier(obs)
        hinge = torch.relu(multiplier + self.penalty_coef * violation)
        penalty = (hinge**2 - multiplier**2) / (2.0 * self.penalty_coef)
        return penalty - self.critics.q_reward(obs, action), violation

    def update(self, batch: Batch) -> None:
        """Take one gradient step of every part."""
        raise NotImplementedError

    def polyak_if_due(self) -> None:
        """Move the targets at their interval."""
        if self.num_updates % self.critics.config.target_update_interval == 0:
            self.critics.polyak()
