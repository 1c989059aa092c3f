"""What a trained agent holds of one state: energies, multiplier, samples, scores.

In: a loaded policy. Out: numpy arrays in the units of the task: energies and temperatures in
reward, multipliers in reward per unit of the cost critic, actions normalised to [-1, 1].
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from alam.cvpo import CVPOAgent
from alam.gaussian import log_one_minus_tanh_squared
from alam.lagrangian import augmented_lagrangian, lagrangian
from alam.sac import SACAgent
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import DiffusionPolicy
from algd.training.load import LoadedPolicy

Floats = NDArray[np.float64]
_LATENT_LIMIT = 1.0 - 1e-6  # an old policy's density is read this far inside the box
Form = Literal["own", "plain", "augmented"]
"""The agent's energy as configured, or the Lagrangian without or with the augmentation."""


class AgentEnergy:
    """Reads energies and samples off an agent; changes nothing in it.

    The law that CVPO fits its policy to, pi_old exp(-L / eta), is the Boltzmann law at temperature
    eta of L - eta log pi_old: that is its own energy here.

    Args:
        loaded: from ``algd.load``. Observations given to the methods are raw, as the environment
            returns them.
    """

    def __init__(self, loaded: LoadedPolicy) -> None:
        agent = loaded.agent
        if not isinstance(agent, SACAgent | ALGDAgent | CVPOAgent):
            raise ValueError(
                f"agent must be a SACAgent, an ALGDAgent or a CVPOAgent, got {type(agent)}"
            )
        self.agent = agent
        self.reward_scale = loaded.reward_scale
        self._normalizer = loaded.normalizer

    @property
    def action_dim(self) -> int:
        """Number of action entries."""
        return self.agent.action_dim

    @property
    def threshold(self) -> float:
        """Limit on the cost critic, in cost."""
        return float(self.agent.constraint.threshold)

    @property
    def nominal_threshold(self) -> float:
        """The threshold before any calibration, in cost."""
        return self.agent.constraint.nominal_threshold

    @property
    def unit(self) -> float:
        """Cost that counts as a violation of 1."""
        return float(self.agent.constraint.unit)

    @property
    def temperature(self) -> float:
        """Temperature of the policy, in reward."""
        if isinstance(self.agent, ALGDAgent):
            return float(self.agent.temperature()) / self.reward_scale
        if isinstance(self.agent, CVPOAgent):
            return float(self.agent.dual.temperature) / self.reward_scale
        return float(self.agent.log_entropy_coef.exp()) / self.reward_scale

    @property
    def penalty_coef(self) -> float:
        """The augmentation's coefficient, in reward per squared cost."""
        coef = float(self.agent.constraint.penalty_coef)
        return coef / (self.reward_scale * self.unit**2)

    def tensor(self, obs: NDArray[np.floating]) -> Float[Tensor, "B O"]:
        """Return observations (B, O) as the agent sees them."""
        array = self._normalizer.normalize(np.asarray(obs, dtype=np.float32))
        return torch.from_numpy(np.ascontiguousarray(array))

    @torch.no_grad()
    def multiplier(self, obs: NDArray[np.floating]) -> Floats:
        """lambda(s) of observations (B, O), in reward per unit of cost, (B,)."""
        value = self.agent.multiplier(self.tensor(obs))
        return value.double().numpy() / (self.unit * self.reward_scale)

    @torch.no_grad()
    def q_cost(self, obs: NDArray[np.floating], actions: NDArray[np.floating]) -> Floats:
        """Cost critic as the policy reads it, pessimism included, (B,) for (B, O) and (B, A)."""
        action = torch.from_numpy(np.asarray(actions, dtype=np.float32))
        return self.agent.critics.q_cost(self.tensor(obs), action).double().numpy()

    def torch_energy(
        self, obs: NDArray[np.floating], form: Form = "own"
    ) -> Callable[[Float[Tensor, "B A"]], Float[Tensor, " B"]]:
        """Return the energy of actions (B, A) at one observation (O,), differentiable, in reward.

        A batch hinge weighs every violation alike; one state has no batch, and the weight is that
        of the fixed point, where the batch keeps the limit on average: the multiplier itself.
        """
        agent, row = self.agent, self.tensor(np.asarray(obs)[None])
        settings = agent.constraint.config
        own = settings.augmented and settings.hinge == "sample"
        augmented = own if form == "own" else form == "augmented"
        with torch.no_grad():
            multiplier = agent.multiplier(row)

        def energy(action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
            points = action.float()
            rows = row.expand(len(points), -1)
            q_reward = agent.critics.q_reward(rows, points, frozen=True)
            violation = agent.constraint.violation(agent.critics.q_cost(rows, points, frozen=True))
            price = multiplier.expand(len(points))
            if augmented:
                coef = agent.constraint.penalty_coef
                value = augmented_lagrangian(q_reward, violation, price, penalty_coef=coef)
            else:
                value = lagrangian(q_reward, violation, price)
            if form == "own" and isinstance(agent, CVPOAgent):
                value = value - agent.dual.temperature.float() * _old_log_density(
                    agent, rows, points
                )
            return value / self.reward_scale

        return energy

    def energy(
        self, obs: NDArray[np.floating], actions: NDArray[np.floating], form: Form = "own"
    ) -> Floats:
        """Energies (P,) of actions (P, A) at one observation (O,), in reward."""
        with torch.no_grad():
            points = torch.from_numpy(np.asarray(actions, dtype=np.float32))
            return self.torch_energy(obs, form)(points).double().numpy()

    @torch.no_grad()
    def samples(self, obs: NDArray[np.floating], count: int, *, seed: int = 0) -> Floats:
        """Stochastic actions (count, A) of the policy at one observation (O,)."""
        row = self.tensor(np.asarray(obs)[None]).expand(count, -1).numpy()
        generator = torch.Generator().manual_seed(seed)
        return self.agent.act(row, generator=generator).astype(np.float64)

    @torch.no_grad()
    def mode(self, obs: NDArray[np.floating]) -> Floats:
        """Deterministic action (A,) at one observation (O,)."""
        row = self.tensor(np.asarray(obs)[None]).numpy()
        generator = torch.Generator().manual_seed(0)
        action = self.agent.act(row, generator=generator, deterministic=True)
        return action[0].astype(np.float64)

    @property
    def denoises(self) -> bool:
        """Whether the policy is a denoising chain whose levels can be shown."""
        return isinstance(self.agent, ALGDAgent) and isinstance(self.agent.policy, DiffusionPolicy)

    @torch.no_grad()
    def trajectories(self, obs: NDArray[np.floating], count: int, *, seed: int = 0) -> Floats:
        """Actions tanh(u_k) along the reverse chain, (K + 1, count, A), the noisiest first.

        Raises:
            ValueError: the policy is no denoising chain.
        """
        policy = self._denoiser()
        row = self.tensor(np.asarray(obs)[None]).expand(count, -1)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(policy.num_noises, count, self.action_dim, generator=generator)
        latent = policy.prior_std() * noise[-1]
        path = [latent]
        for step in reversed(range(policy.schedule.num_steps)):
            level = torch.full((count,), policy.schedule.inference_levels[step])
            score = policy.network(row, latent, level)
            keep, drift, spread = policy.schedule.coefficients[step].unbind()
            latent = keep * latent + drift * score + spread * noise[step]
            path.append(latent)
        return torch.tanh(torch.stack(path)).double().numpy()

    @torch.no_grad()
    def score(self, obs: NDArray[np.floating], latent: Floats, level: int) -> Floats:
        """Learnt score (P, A) of noised latents (P, A) at one observation and noise level."""
        policy = self._denoiser()
        points = torch.from_numpy(np.asarray(latent, dtype=np.float32))
        row = self.tensor(np.asarray(obs)[None]).expand(len(points), -1)
        levels = torch.full((len(points),), level)
        return policy.network(row, points, levels).double().numpy()

    @property
    def sigmas(self) -> Floats:
        """Standard deviations of the noise levels, increasing."""
        return self._denoiser().schedule.sigmas.double().numpy()

    @property
    def alphas(self) -> Floats:
        """Scales of the clean latent at the noise levels."""
        return self._denoiser().schedule.alphas.double().numpy()

    def _denoiser(self) -> DiffusionPolicy:
        policy = self.agent.policy
        if not isinstance(policy, DiffusionPolicy):
            raise ValueError(f"needs a denoising policy, got {type(policy).__name__}")
        return policy


def _old_log_density(
    agent: CVPOAgent, obs: Float[Tensor, "B O"], action: Float[Tensor, "B A"]
) -> Float[Tensor, " B"]:
    """Log-density on the box of the policy that the E-step reweighs."""
    mean, log_std = agent.old_policy(obs)
    latent = torch.atanh(action.clamp(-_LATENT_LIMIT, _LATENT_LIMIT))
    normal = torch.distributions.Normal(mean, log_std.exp(), validate_args=False)
    return (normal.log_prob(latent) - log_one_minus_tanh_squared(latent)).sum(-1)
