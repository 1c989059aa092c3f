"""The VE setting of the released ALGD code as a plain eager implementation (`release_vesde`).

The reference of ``algd.diffusion.release`` for equality and speed, and the released sampler in
eager torch that one action is timed against.
"""

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.reference_learner import ReferenceLearner, perceptron
from torch import Tensor, nn

from alam.types import Batch
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.release import ReleasePolicy


class ReleaseScore(nn.Module):
    """score(s, x, level): a perceptron of observation, squashed action and level embedding."""

    def __init__(self, policy: ReleasePolicy) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(policy.embedding.detach().clone(), False)
        self.network = perceptron(policy.network, 0, "relu")

    def forward(self, obs: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return the score, (B, A)."""
        return self.network(torch.cat([obs, x, self.embedding(level)], dim=-1))


class ReferenceRelease(ReferenceLearner):
    """The released agent, copied from an agent's weights and noise."""

    def __init__(self, agent: ALGDAgent) -> None:
        super().__init__(agent, agent.config.critics)
        policy = agent.policy
        assert isinstance(policy, ReleasePolicy)
        assert policy.config.variant == "vesde"
        self.config = policy.config
        self.action_dim = agent.action_dim
        self.sigmas = policy.sigmas.clone()
        self.growth = torch.diff(self.sigmas**2, prepend=torch.zeros(1))
        self.score = ReleaseScore(policy)
        self.policy_optimizer = torch.optim.Adam(
            self.score.parameters(), lr=self.config.learning_rate
        )

    def rollout(self, obs: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions, and each row's squashed latent after the step of its level."""
        latent = self.sigmas[-1] * noise[-1]
        recorded = torch.zeros_like(latent)
        for t in reversed(range(self.config.num_timesteps)):
            index = torch.full((len(obs),), t, dtype=torch.long)
            score = self.score(obs, torch.tanh(latent), index)
            previous = self.sigmas[t - 1] ** 2 if t > 0 else torch.zeros_like(self.sigmas[0])
            growth = self.sigmas[t] ** 2 - previous
            latent = latent + growth * score
            if t > 0:
                latent = latent + growth.sqrt() * noise[t]
            recorded = torch.where((level == t)[:, None], torch.tanh(latent), recorded)
        return torch.tanh(latent), recorded

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Return actions in (-1, 1)."""
        return self.rollout(obs, noise, torch.zeros(len(obs), dtype=torch.long))[0]

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return the action at one observation (O,), as the released code acts.

        Coefficients are gathered and noise is drawn step by step, and the graph is recorded: the
        release does not turn gradients off when it acts.
        """
        row = torch.FloatTensor(obs).unsqueeze(0)
        latent = torch.randn(1, self.action_dim) * self.sigmas[-1]
        for t in reversed(range(self.config.num_timesteps)):
            level = torch.full((1,), t, dtype=torch.long)
            growth = self.growth.gather(-1, level).view(-1, 1).clamp(min=1e-8)
            spread = torch.sqrt(growth)
            latent = latent + growth * self.score(row, torch.tanh(latent), level)
            if t > 0:
                latent = latent + spread * torch.randn_like(latent)
        return torch.tanh(latent).detach().cpu().numpy()[0]

    def score_target(self, obs: Tensor, recorded: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return -sum_i w_i grad energy(a_i) over noised copies a_i of the recorded action."""
        proposals = recorded.detach() + self.sigmas[level][:, None] * noise
        proposals = proposals.detach().requires_grad_(True)
        energy, _ = self.energy(obs, proposals)
        (gradient,) = torch.autograd.grad(energy.sum(), proposals)
        weights = F.softmax(-energy.detach(), dim=0)[..., None]
        return -(weights * gradient).sum(0)

    def update(self, batch: Batch) -> None:
        """Critics, policy, multiplier on replayed actions, targets."""
        self.num_updates += 1
        config, shape = self.config, batch.action.shape
        steps = config.num_timesteps + 1
        noise = torch.randn(2 * steps + config.num_score_samples, *shape, generator=self.generator)
        with torch.no_grad():
            next_action = self.sample(batch.next_obs, noise[:steps])
        self.critics.update(batch, next_action)
        level = torch.randint(config.num_timesteps, shape[:1], generator=self.generator)
        action, recorded = self.rollout(batch.obs, noise[steps : 2 * steps], level)
        energy, _ = self.energy(batch.obs, action)
        target = self.score_target(batch.obs, recorded, noise[2 * steps :], level)
        score_loss = F.mse_loss(self.score(batch.obs, recorded, level), target)
        loss = config.chain_coef * energy.mean() + config.score_coef * score_loss
        self.policy_optimizer.zero_grad()
        loss.backward()
        self.policy_optimizer.step()
        with torch.no_grad():
            violation = self.violation(batch.obs, batch.action)
        self.multiplier.update(batch.obs, violation)
        self.polyak_if_due()
