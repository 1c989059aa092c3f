"""The ALGD agents of several seeds updated together; see ``alam.joint``.

In: agents that differ in their seed alone, and batches with a leading seed dimension. Out: the same
agents, each as if it had been updated alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alam.joint import JointLearner, JointSAC
from alam.sac import ConstrainedLearner, SACAgent
from alam.types import Batch, Due, Metrics
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import PolicyLoss


class JointALGD(JointLearner[ALGDAgent]):
    """``ALGDAgent.take_update`` of several seeds."""

    agent_type = ALGDAgent

    def __init__(self, agents: Sequence[ALGDAgent]) -> None:
        super().__init__(agents)
        self.policy_optimizer = self._join([agent.policy_optimizer for agent in agents])

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Critics, then policies, then temperatures and multipliers, then targets."""
        agent = self.agents[0]
        shape = batch.action.shape[1:]
        noise = self.draw(lambda agent: agent.draw_noise(shape))
        num_chain = agent.policy.num_noises
        with torch.no_grad():
            next_action = self.each(agent.policy.sample, batch.next_obs, noise[:, :num_chain])
        metrics = self.update_critics(batch, next_action)
        if due.policy:
            level = self.draw(lambda agent: agent.draw_levels(shape[0]))
            result = self.each(self._policy_loss, batch, noise[:, num_chain:], level)
            self.descend(self.policy_optimizer, result.loss)
            signal = self.each(agent.multiplier_signal, batch, result.violation)
            metrics |= result.metrics | self._update_temperature(batch)
            metrics |= self.update_multiplier(batch.obs, signal, due.multiplier)
        if due.targets:
            self.polyak()
        return metrics

    def _policy_loss(
        self, batch: Batch, noise: Float[Tensor, "M B A"], level: Int[Tensor, " B"]
    ) -> PolicyLoss:
        """Return the loss of one seed."""
        agent = self.agents[0]
        evaluate = agent.energy_of(batch.obs)
        return agent.policy.loss(
            batch.obs, batch.action, evaluate, agent.temperature(), noise, level
        )

    @torch.no_grad()
    def _update_temperature(self, batch: Batch) -> Metrics:
        """Observe what the temperature's mode needs: batched networks, then one number per seed."""
        first = self.agents[0]
        config = first.config.policy.temperature
        metrics = {"train/temperature": self.each(first.temperature)}
        if config.mode == "raw":
            return metrics
        obs = batch.obs[:, : config.probe_states]
        probe = self.draw(lambda agent: agent.draw_probe(obs.shape[1]))
        if config.mode == "relative":
            energies = self.each(
                lambda obs, action: first.energy_of(obs)(obs, action)[0], obs, probe
            )
            for agent, energy in zip(self.agents, energies, strict=True):
                agent.temperature.observe_energy(energy)
            return metrics
        samples = zip(self.agents, self.each(first.sample_probe, obs, probe), strict=True)
        entropies = [agent.temperature.observe_samples(actions) for agent, actions in samples]
        return metrics | {"train/entropy": torch.stack(entropies)}


def is_joinable(agents: Sequence[object]) -> bool:
    """Say whether ``join`` knows the class of these agents, one and the same."""
    return any(all(type(agent) is kind for agent in agents) for kind in (ALGDAgent, SACAgent))


def join(agents: Sequence[ConstrainedLearner]) -> JointSAC | JointALGD:
    """Return the joint update of agents, by their class.

    Raises:
        ValueError: no joint update exists for them, or they differ in more than their seed.
    """
    if agents and all(isinstance(agent, ALGDAgent) for agent in agents):
        return JointALGD([agent for agent in agents if isinstance(agent, ALGDAgent)])
    if agents and all(isinstance(agent, SACAgent) for agent in agents):
        return JointSAC([agent for agent in agents if isinstance(agent, SACAgent)])
    kinds = sorted({type(agent).__name__ for agent in agents})
    raise ValueError(
        f"several seeds are updated together by ALGDAgent or SACAgent, one of them, got {kinds}"
    )
