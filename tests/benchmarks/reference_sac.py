"""SAC-ALaM in plain eager torch: the reference of ``alam.sac`` for equality and speed."""

import math

import torch
import torch.nn.functional as F
from benchmarks.reference_learner import ReferenceLearner, perceptron
from torch import Tensor, nn

from alam.sac import SACAgent
from alam.types import Batch


class ReferenceSAC(ReferenceLearner):
    """Soft actor-critic on the augmented Lagrangian, copied from an agent's weights and noise."""

    def __init__(self, agent: SACAgent) -> None:
        super().__init__(agent, agent.config.critics)
        policy = agent.config.policy
        self.policy = perceptron(agent.policy.network, 0, policy.activation)
        self.log_entropy_coef = nn.Parameter(agent.log_entropy_coef.clone())
        self.target_entropy = agent.target_entropy
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=policy.learning_rate)
        self.entropy_optimizer = torch.optim.Adam([self.log_entropy_coef], lr=policy.learning_rate)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return tanh-Gaussian actions and their log-densities."""
        mean, raw = self.policy(obs).chunk(2, dim=-1)
        log_std = -5.0 + 3.5 * (torch.tanh(raw) + 1.0)
        latent = mean + log_std.exp() * noise
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi)
        log_prob = log_prob - 2.0 * (math.log(2.0) - latent - F.softplus(-2.0 * latent))
        return torch.tanh(latent), log_prob.sum(-1)

    def update(self, batch: Batch) -> None:
        """Critics, policy, entropy coefficient, multiplier, targets."""
        self.num_updates += 1
        noise = torch.randn(2, *batch.action.shape, generator=self.generator)
        entropy_coef = self.log_entropy_coef.exp().detach()
        with torch.no_grad():
            next_action, next_log_prob = self.sample(batch.next_obs, noise[0])
        self.critics.update(batch, next_action, -entropy_coef * next_log_prob)
        action, log_prob = self.sample(batch.obs, noise[1])
        energy, violation = self.energy(batch.obs, action)
        loss = (entropy_coef * log_prob + energy).mean()
        self.policy_optimizer.zero_grad()
        loss.backward()
        self.policy_optimizer.step()
        # d/d(log alpha) of alpha (entropy - target) with alpha outside the logarithm, as alam.sac.
        entropy_loss = self.log_entropy_coef * (-log_prob.mean().detach() - self.target_entropy)
        self.entropy_optimizer.zero_grad()
        entropy_loss.backward()
        self.entropy_optimizer.step()
        self.multiplier.update(batch.obs, violation.detach())
        self.polyak_if_due()
