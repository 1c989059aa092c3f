"""The reverse chain with exact scores against the exact Boltzmann density in one dimension."""

import pytest
import torch

from algd.analysis.density import (
    boltzmann_density,
    box_grid,
    total_variation,
    total_variation_floor,
    wasserstein1_1d,
)
from algd.diffusion.denoiser import Score
from algd.diffusion.policy import DiffusionPolicy, DiffusionPolicyConfig, latent_energy
from algd.diffusion.schedule import NoiseSchedule, ScheduleConfig


def double_well(obs, action):
    energy = 8 * (action[..., 0].square() - 0.3).square() - 0.15 * action[..., 0]
    return energy, torch.zeros_like(energy)


class ExactScore(Score):
    """The score of exp(-double_well / temperature) noised to each level, by quadrature."""

    def __init__(self, schedule: NoiseSchedule, temperature: float) -> None:
        super().__init__()
        self.schedule = schedule
        self.clean = torch.linspace(-6, 6, 601)
        energy = latent_energy(
            double_well,
            torch.zeros(1, 3),
            self.clean[:, None, None],
            torch.tensor(temperature),
        )
        self.log_density = -energy[:, 0] / temperature
        self.points = torch.linspace(-10, 10, 1001)

    def forward(self, obs, latent, level):
        alpha, sigma = self.schedule.alphas[level[0]], self.schedule.sigmas[level[0]]
        distance = (self.points[:, None] - alpha * self.clean) / sigma
        posterior = torch.softmax(self.log_density - 0.5 * distance.square(), 1)
        scores = (alpha * posterior @ self.clean - self.points) / sigma.square()
        place = ((latent[:, 0] + 10) / 0.02).clamp(0, 999.99)
        left = place.long()
        share = place - left
        return torch.lerp(scores[left], scores[left + 1], share)[:, None]


TEMPERATURE, SAMPLES = 0.2, 20_000
GRID = box_grid(1, 2001)
DENSITY = boltzmann_density(
    lambda actions: double_well(None, torch.from_numpy(actions))[0].numpy(), GRID, TEMPERATURE
)


def distances(schedule: dict) -> tuple[float, float]:
    config = DiffusionPolicyConfig(schedule=ScheduleConfig(**schedule))
    policy = DiffusionPolicy(3, 1, config)
    policy.network = ExactScore(policy.schedule, TEMPERATURE)
    with torch.no_grad():
        noise = torch.randn(
            policy.num_noises, SAMPLES, 1, generator=torch.Generator().manual_seed(0)
        )
        actions = policy.sample(torch.zeros(SAMPLES, 3), noise)
    samples = actions.numpy()
    return total_variation(samples, DENSITY, GRID), wasserstein1_1d(samples, DENSITY, GRID)


@pytest.mark.parametrize(
    # what a finite number of reverse steps leaves over, with exact scores
    ("schedule", "variation", "transport"),
    [
        ({}, 0.073, 0.029),
        ({"sigma_min": 0.02, "sigma_max": 2.0}, 0.10, 0.031),
        ({"num_train_timesteps": 20}, 0.05, 0.034),
        ({"num_train_timesteps": 20, "num_inference_steps": 10}, 0.073, 0.029),
        ({"sampler": "ddim"}, 0.104, 0.087),
        ({"kind": "vp"}, 0.16, 0.051),
        ({"kind": "vp", "num_train_timesteps": 40}, 0.07, 0.015),
    ],
    ids=str,
)
def test_chain_with_exact_scores_samples_the_boltzmann_density(schedule, variation, transport):
    found = distances(schedule)
    assert found[0] == pytest.approx(variation, abs=0.012)
    assert found[1] == pytest.approx(transport, abs=0.008)


def test_error_of_the_chain_vanishes_with_the_number_of_levels():
    coarse, fine = (
        distances({"num_train_timesteps": count, "sigma_min": 0.01, "sigma_max": 2.0})[0]
        for count in (5, 60)
    )
    floor = total_variation_floor(DENSITY, GRID, num_samples=SAMPLES)
    assert fine < 0.03
    assert fine - floor < (coarse - floor) / 10
