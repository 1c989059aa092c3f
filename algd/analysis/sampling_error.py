"""How far a denoising policy's samples are from the exact law of an energy.

In: an energy of actions in [-1, 1]^A (A = 1 or 2), a policy configuration. Out: a policy trained
on that energy alone, and the distances of its samples to the Boltzmann
law. No critic and no environment take part: what is measured is the sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from alam.networks import make_adam
from algd.analysis.density import (
    Grid,
    boltzmann_density,
    box_grid,
    sliced_wasserstein1,
    total_variation,
    total_variation_floor,
    wasserstein1_1d,
)
from algd.diffusion.agent import make_policy
from algd.diffusion.policy import DiffusionPolicy, DiffusionPolicyConfig
from algd.diffusion.release import ReleasePolicy, ReleasePolicyConfig

ActionEnergy = Callable[[Float[Tensor, "*B A"]], Float[Tensor, "*B"]]

_BINS = {1: 40, 2: 20}  # cells per axis: 400 in two dimensions, 25 samples each of 10,000
_MEMORY = 64  # batches of past actions
_GRID_POINTS = {1: 401, 2: 161}


@dataclass(frozen=True)
class SamplingError:
    """Distances of samples to a law.

    total_variation: in [0, 1], over equal cells. floor: what exact samples would show.
    wasserstein1: in units of the action; averaged over projections in two dimensions.
    """

    total_variation: float
    floor: float
    wasserstein1: float


def sampling_error(samples: ArrayLike, density: NDArray[np.float64], grid: Grid) -> SamplingError:
    """Compare samples (n, A) with a density on a grid of one or two dimensions."""
    bins, points = _BINS[len(grid)], np.asarray(samples, dtype=np.float64)
    distance = wasserstein1_1d if len(grid) == 1 else sliced_wasserstein1
    return SamplingError(
        total_variation=total_variation(points, density, grid, bins=bins),
        floor=total_variation_floor(density, grid, num_samples=len(points), bins=bins),
        wasserstein1=distance(points, density, grid),
    )


def two_mode_energy(action_dim: int) -> ActionEnergy:
    """Return an energy whose law at temperature 1 has modes of 0.35 and 0.65 inside the box.

    Two Gaussians of standard deviation 0.15 at +-0.45 along the first axis, and in two dimensions
    at -+0.3 along the second.
    """
    centres = torch.tensor([[-0.45, 0.3], [0.45, -0.3]])[:, :action_dim]
    log_shares = torch.tensor([0.35, 0.65]).log()

    def energy(action: Float[Tensor, "*B A"]) -> Float[Tensor, "*B"]:
        square = (action.unsqueeze(-2) - centres.to(action)).square().sum(-1)
        return -torch.logsumexp(log_shares.to(action) - square / (2.0 * 0.15**2), dim=-1)

    return energy


def exact_density(
    energy: ActionEnergy, action_dim: int, *, temperature: float = 1.0
) -> tuple[NDArray[np.float64], Grid]:
    """Return the Boltzmann law of the energy on the box, and its grid."""
    grid = box_grid(action_dim, _GRID_POINTS[action_dim])

    def values(actions: NDArray[np.float64]) -> NDArray[np.float64]:
        return energy(torch.from_numpy(actions)).numpy()

    return boltzmann_density(values, grid, temperature), grid


def train_sampler(
    config: DiffusionPolicyConfig | ReleasePolicyConfig,
    energy: ActionEnergy,
    action_dim: int,
    *,
    updates: int,
    batch_size: int = 256,
    temperature: float = 1.0,
    score_only: bool = True,
    seed: int = 0,
) -> DiffusionPolicy | ReleasePolicy:
    """Train a policy to sample exp(-energy / temperature) without critics or environment.

    The policy is unconditional: its one observation is 0. Replayed actions, where the config asks
    for any, are those of its own last 64 batches, uniform before that.

    Args:
        config: of the policy; its learning rate falls linearly to 0.
        energy: of actions (*B, A).
        action_dim: A.
        updates: gradient steps.
        batch_size: rows per step.
        temperature: of the law.
        score_only: leave out the chain term, whatever the config says. The DDPM form of the
            release cannot be trained so: nothing else reaches its epsilon head.
        seed: of weights and noise.
    """
    if score_only:
        config = replace(config, chain_coef=0.0, score_coef=1.0)
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(1, action_dim, config, generator=generator)
    optimizer = make_adam(list(policy.parameters()), learning_rate=config.learning_rate)
    obs = torch.zeros(batch_size, 1)
    levels = config.schedule.num_train_timesteps
    memory = 2.0 * torch.rand(_MEMORY, batch_size, action_dim, generator=generator) - 1.0

    def evaluate(_: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        value = energy(action)
        return value, torch.zeros_like(value)

    for update in range(updates):
        # A falling rate ends the training on the mean of the noisy targets.
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1.0 - update / updates)
        noise = torch.randn(policy.num_loss_noises(), batch_size, action_dim, generator=generator)
        level = torch.randint(levels, (batch_size,), generator=generator)
        slot = torch.randint(_MEMORY, (batch_size,), generator=generator)
        replayed = memory[slot, torch.arange(batch_size)]
        result = policy.loss(obs, replayed, evaluate, torch.tensor(temperature), noise, level)
        memory[update % _MEMORY] = result.action
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        optimizer.step()
    return policy


@torch.no_grad()
def draw_samples(
    policy: DiffusionPolicy | ReleasePolicy, count: int, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return actions (count, A) of an unconditional policy."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(policy.num_noises, count, policy.action_dim, generator=generator)
    return policy.sample(torch.zeros(count, 1), noise).double().numpy()
