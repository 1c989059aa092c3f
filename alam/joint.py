"""Several seeds of one configuration updated together, as one sequence of batched products.

In: agents that differ in their seed alone, and batches with a leading seed dimension. Out: the same
agents, each as if it had been updated alone, and metrics of shape (Z,).

Every tensor lives once, stacked over seeds; the tensors of the agents become views of their slices,
so that acting, checkpoints and evaluation of one seed go on as ever. ``torch.vmap`` runs what the
agents compute over all seeds. Adam is elementwise, so that one over the stack does what one per
seed does. The gain is on a GPU: a CPU is faster with the written-out passes of one agent at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from alam.critics import SafeCritics
from alam.networks import make_adam
from alam.sac import ConstrainedLearner, SACAgent
from alam.statewise_multipliers import StatewiseALaM, StatewiseDual, network_metrics
from alam.types import Batch, Due, Metrics

AgentT = TypeVar("AgentT", bound=ConstrainedLearner)
_PARTS = ("critics", "constraint", "multiplier", "policy", "temperature")


class _Parts(nn.Module):
    """The modules of one agent under one roof; calls whatever function it is given."""

    def __init__(self, agent: ConstrainedLearner) -> None:
        super().__init__()
        for name in _PARTS:
            if hasattr(agent, name):
                self.add_module(name, getattr(agent, name))

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name."""
        return dict(self.named_parameters()) | dict(self.named_buffers())


class JointLearner(Generic[AgentT]):
    """What every joint update holds: the stack, its optimisers, critics and multiplier.

    Between here and ``release`` this object alone updates the agents. They may act, and their
    ``state_dict`` is that of an ordinary agent at any time; to load one, load it into the agent
    first and join the agents afterwards.

    Args:
        agents: of one class, configuration and device, with equally many updates behind them.

    Raises:
        ValueError: the agents cannot be updated together.
    """

    agent_type: type[ConstrainedLearner] = ConstrainedLearner

    def __init__(self, agents: Sequence[AgentT]) -> None:
        _require_alike(agents, self.agent_type)
        self.agents = list(agents)
        parts = [_Parts(agent) for agent in agents]
        self._parts = parts[0]
        owned = [part.tensors() for part in parts]
        self._stacks = {name: _share([row[name] for row in owned]) for name in owned[0]}
        self._stack_of = {owned[0][name]: stack for name, stack in self._stacks.items()}
        self._joined: list[torch.optim.Optimizer] = []
        self._leading: dict[torch.optim.Optimizer, dict[str, Any]] = {}
        self.critic_optimizer = self._join([agent.critics.optimizer for agent in agents])
        multipliers = [agent.multiplier for agent in agents]
        self._networks = [m for m in multipliers if isinstance(m, StatewiseDual | StatewiseALaM)]
        if self._networks:
            self.multiplier_optimizer = self._join([m.optimizer for m in self._networks])

    def each(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``function(*inputs)`` of every seed, stacked.

        Args:
            function: computes with the modules of ``agents[0]``, which stand for those of any seed.
            inputs: tensors, or tuples of them, with a leading seed dimension.
        """

        def of_one(stacks: dict[str, Tensor], inputs: tuple[Any, ...]) -> Any:
            return functional_call(self._parts, stacks, (function, *inputs))

        return torch.vmap(of_one)(self._stacks, inputs)

    def draw(self, function: Callable[[AgentT], Tensor]) -> Tensor:
        """Return what each agent draws from its own generator, stacked."""
        return torch.stack([function(agent) for agent in self.agents])

    def descend(self, optimizer: torch.optim.Optimizer, losses: Float[Tensor, " Z"]) -> None:
        """Step on the sum over seeds; no loss reaches the weights of another seed."""
        parameters = optimizer.param_groups[0]["params"]
        gradients = torch.autograd.grad(losses.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.step(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step at the rate of the first agent, which ``scale_learning_rates`` may have changed."""
        optimizer.param_groups[0]["lr"] = self._leading[optimizer]["lr"]
        optimizer.step()

    def update(self, batch: Batch) -> Metrics:
        """Update every seed on its slice of a batch with a leading seed dimension."""
        return self.take_update(batch, self.count_update())

    def count_update(self) -> Due:
        """Count an update of every agent; return what is due in it, by seed for the multiplier."""
        _require_same(self.agents, "num_updates")  # none was updated alone in between
        dues = [agent.count_update() for agent in self.agents]
        return dues[0]._replace(multiplier=tuple(due.multiplier for due in dues))

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Do what is due, on the device alone: a CUDA graph can hold it."""
        raise NotImplementedError

    @property
    def generators(self) -> list[torch.Generator]:
        """Where updates draw their noise."""
        return [agent.generator for agent in self.agents]

    def hold_learning_rates_on_device(self) -> None:
        """Turn learning rates into tensors, which an update that was captured reads anew."""
        for agent in self.agents:
            agent.hold_learning_rates_on_device()

    @property
    def holds_learning_rates_on_device(self) -> bool:
        """Return whether they are tensors; loading a state makes them numbers again."""
        return all(agent.holds_learning_rates_on_device for agent in self.agents)

    def update_critics(self, batch: Batch, next_action: Tensor, *next_bonus: Tensor) -> Metrics:
        """Take one regression step of all critics of all seeds."""
        loss_of = partial(_critic_loss, self.agents[0].critics)
        losses, metrics = self.each(loss_of, batch, next_action, *next_bonus)
        self.descend(self.critic_optimizer, losses)
        return _detached(metrics)

    def update_multiplier(
        self, obs: Float[Tensor, "Z B O"], violation: Float[Tensor, "Z B"], due: tuple[Any, ...]
    ) -> Metrics:
        """Take the step of every multiplier; networks together, single numbers in turn."""
        if self._networks:
            return self._update_networks(obs, violation, due[0])
        rows = [
            agent.multiplier.take_update(obs[seed], violation[seed], due[seed])
            for seed, agent in enumerate(self.agents)
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _update_networks(self, obs: Tensor, violation: Tensor, due: Any) -> Metrics:
        """Take the same steps as ``take_update`` of the two kinds of networks."""
        multiplier = self._networks[0]
        step_due = due.regression if isinstance(multiplier, StatewiseALaM) else due
        aim, steps = violation, 1
        if isinstance(multiplier, StatewiseALaM):
            aim, steps = self.each(multiplier.target, obs, violation), multiplier.config.dual_steps

        def value_and_loss(obs: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
            value = multiplier.network(obs)
            return value, multiplier.loss(value, aim)

        with torch.set_grad_enabled(step_due):
            value, loss = self.each(value_and_loss, obs, aim)
        for step in range(steps if step_due else 0):
            if step:
                loss = self.each(value_and_loss, obs, aim)[1]
            self.descend(self.multiplier_optimizer, loss)
        if isinstance(multiplier, StatewiseALaM):
            if not step_due:
                loss = torch.zeros_like(loss)
            if due.lagged_copy:
                rate = multiplier.config.dual_target_rate
                self._polyak("multiplier.lagged", "multiplier.network", rate)
        with torch.no_grad():
            return self.each(partial(network_metrics, multiplier), value, violation, loss)

    def polyak(self) -> None:
        """Move the target critics of all seeds."""
        rate = self.agents[0].critics.config.target_update_rate
        for kind in ("reward", "cost"):
            self._polyak(f"critics.{kind}_target", f"critics.{kind}", rate)

    @torch.no_grad()
    def _polyak(self, target: str, source: str, rate: float) -> None:
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            self._stacks_under(target), self._stacks_under(source), rate
        )

    def _stacks_under(self, module: str) -> list[Tensor]:
        return [stack for name, stack in self._stacks.items() if name.startswith(module + ".")]

    def _join(self, optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Return one Adam over the stacks; the state of the agents' own becomes views of its."""
        self._joined += optimizers
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        stacks = [self._stack_of[parameter] for parameter in groups[0]["params"]]
        joint = make_adam(stacks, learning_rate=groups[0]["lr"])
        self._leading[joint] = groups[0]
        for place, stack in enumerate(stacks):
            parameters = [group["params"][place] for group in groups]
            states = [_state_of(*pair) for pair in zip(optimizers, parameters, strict=True)]
            for state in states:
                state["step"] = states[0]["step"]
            joint.state[stack] = {"step": states[0]["step"]} | {
                name: _share([state[name] for state in states]) for name in _MOMENTS
            }
        return joint

    def release(self) -> list[AgentT]:
        """Give every agent memory of its own again and return them; this object is then spent."""
        for agent in self.agents:
            for tensor in _Parts(agent).tensors().values():
                tensor.data = tensor.data.clone()
        for optimizer in self._joined:
            for parameter, state in optimizer.state.items():
                parameter.data = parameter.data.clone()
                optimizer.state[parameter] = {name: state[name].clone() for name in state}
        agents, self.agents, self._networks = self.agents, [], []
        return agents


class JointSAC(JointLearner[SACAgent]):
    """``SACAgent.take_update`` of several seeds."""

    agent_type = SACAgent

    def __init__(self, agents: Sequence[SACAgent]) -> None:
        super().__init__(agents)
        coefs = [agent.log_entropy_coef for agent in agents]
        self.log_entropy_coef = self._stack_of[coefs[0]] = _share(coefs)
        self.policy_optimizer = self._join([agent.policy_optimizer for agent in agents])
        self.entropy_optimizer = self._join([agent.entropy_optimizer for agent in agents])

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Critics, then policies and entropy coefficients, then multipliers, then targets."""
        agent = self.agents[0]
        noise = self.draw(lambda agent: agent.draw_noise(batch.action.shape[1:]))
        entropy_coef = self.log_entropy_coef.exp()
        with torch.no_grad():
            next_action, next_log_prob = self.each(agent.policy.sample, batch.next_obs, noise[:, 0])
        bonus = -entropy_coef.unsqueeze(-1) * next_log_prob
        metrics = self.update_critics(batch, next_action, bonus)
        if due.policy:
            violation, policy_metrics = self._update_policy(batch, noise[:, 1], entropy_coef)
            signal = self.each(agent.multiplier_signal, batch, violation)
            metrics |= policy_metrics
            metrics |= self.update_multiplier(batch.obs, signal, due.multiplier)
        if due.targets:
            self.polyak()
        return metrics

    def _update_policy(
        self, batch: Batch, noise: Tensor, entropy_coef: Tensor
    ) -> tuple[Float[Tensor, "Z B"], Metrics]:
        agent = self.agents[0]
        losses, violation, metrics = self.each(agent.policy_loss, batch, noise, entropy_coef)
        self.descend(self.policy_optimizer, losses)
        if agent.auto_entropy:
            self.log_entropy_coef.grad = metrics["train/entropy"] - agent.target_entropy
            self.step(self.entropy_optimizer)
        return violation, metrics


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _critic_loss(
    critics: SafeCritics, batch: Batch, next_action: Tensor, *next_bonus: Tensor
) -> tuple[Tensor, Metrics]:
    """Return the loss of one seed, as ``SafeCritics.update`` has it."""
    targets = critics.targets(batch, next_action, *next_bonus)
    values = [
        ensemble(batch.obs, batch.action).squeeze(-1) for ensemble in (critics.reward, critics.cost)
    ]
    reward, cost = (
        (value - target).square().mean(-1).sum()
        for value, target in zip(values, targets, strict=True)
    )
    return reward + cost, {
        "loss/reward_critic": reward,
        "loss/cost_critic": cost,
        "train/q_reward": values[0].mean(),
        "train/q_cost": values[1].mean(),
    }


def _detached(metrics: Metrics) -> Metrics:
    return {name: value.detach() for name, value in metrics.items()}


def _share(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors, and make each a view of its slice."""
    stack = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, slice_ in zip(tensors, stack, strict=True):
        tensor.data = slice_
        tensor.grad = None
    return stack.requires_grad_(tensors[0].requires_grad)


def _state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return Adam's state of a parameter; before its first step, what that would start from."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state |= {name: torch.zeros_like(parameter) for name in _MOMENTS}
    return state


def _require_alike(agents: Sequence[ConstrainedLearner], kind: type[ConstrainedLearner]) -> None:
    if not agents or len({id(agent) for agent in agents}) < len(agents):
        raise ValueError(f"a joint update needs one or more distinct agents, got {len(agents)}")
    for agent in agents:
        if type(agent) is not kind:
            raise ValueError(
                f"this joint update is for {kind.__name__}, got {type(agent).__name__}"
            )
    for what in ("config", "obs_dim", "action_dim", "device", "num_updates"):
        _require_same(agents, what)


def _require_same(agents: Sequence[ConstrainedLearner], what: str) -> None:
    values = [getattr(agent, what) for agent in agents]
    if any(value != values[0] for value in values):
        raise ValueError(f"agents updated together must have the same {what}, got {values}")
