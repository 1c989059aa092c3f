"""Noise levels and reverse steps against diffusers' schedulers, and against closed forms."""

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler

from algd.diffusion.schedule import (
    NoiseSchedule,
    ScheduleConfig,
    closed_form_levels,
    noise_levels,
    reverse_coefficients,
)

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
CONFIGS = [
    ScheduleConfig(),
    ScheduleConfig(num_train_timesteps=5, sigma_min=0.01, sigma_max=1.0),
    *(
        ScheduleConfig(kind="vp", num_train_timesteps=steps, beta_schedule=name)
        for name in BETA_SCHEDULES
        for steps in (5, 100)
    ),
]


def diffusers_arguments(config: ScheduleConfig) -> dict:
    return {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "clip_sample": False,
    }


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_closed_forms_equal_the_levels_of_diffusers(config):
    ours, theirs = closed_form_levels(config), noise_levels(config)
    np.testing.assert_allclose(ours.alphas, theirs.alphas, rtol=2e-5)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=2e-4)


def test_variance_exploding_levels_are_geometric():
    config = ScheduleConfig(num_train_timesteps=5, sigma_min=0.01, sigma_max=1.0)
    schedule = NoiseSchedule(config)
    assert schedule.sigmas.tolist() == pytest.approx([0.01, 0.0316228, 0.1, 0.316228, 1.0], 1e-4)
    assert schedule.alphas.tolist() == [1.0] * 5
    theirs = ScoreSdeVeScheduler(num_train_timesteps=5, sigma_min=0.01, sigma_max=1.0)
    torch.testing.assert_close(schedule.sigmas, theirs.discrete_sigmas)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_variance_preserving_levels_are_the_root_of_alphas_cumprod(name):
    config = ScheduleConfig(kind="vp", num_train_timesteps=20, beta_schedule=name)
    schedule = NoiseSchedule(config)
    theirs = DDPMScheduler(**diffusers_arguments(config)).alphas_cumprod
    torch.testing.assert_close(schedule.alphas.square(), theirs, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(schedule.alphas.square() + schedule.sigmas.square(), torch.ones(20))


def test_linear_betas_of_five_levels_by_hand():
    config = ScheduleConfig(kind="vp", num_train_timesteps=5, beta_schedule="linear")
    betas = [1e-4, 0.005075, 0.01005, 0.015025, 0.02]
    products = np.cumprod([1 - beta for beta in betas])
    np.testing.assert_allclose(closed_form_levels(config).alphas, np.sqrt(products))


def rows(seed: int, count: int = 400) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def our_step(schedule: NoiseSchedule, step: int, latent, score, noise) -> torch.Tensor:
    c_latent, c_score, c_noise = schedule.coefficients[step]
    return c_latent * latent + c_score * score + c_noise * noise


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("inference_steps", [None, 5, 3])
def test_ancestral_step_equals_the_step_of_diffusers_ddpm(name, inference_steps):
    config = ScheduleConfig(
        kind="vp",
        num_train_timesteps=10,
        num_inference_steps=inference_steps,
        beta_schedule=name,
        sampler="ancestral",
    )
    schedule = NoiseSchedule(config)
    theirs = DDPMScheduler(**diffusers_arguments(config), variance_type="fixed_small")
    theirs.set_timesteps(timesteps=schedule.inference_levels[::-1])
    latent, epsilon = rows(0), rows(1)
    for step in reversed(range(schedule.num_steps)):
        level = schedule.inference_levels[step]
        score = -epsilon / schedule.sigmas[level]
        # diffusers draws (*latent.shape) from the generator, nothing at timestep 0
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(9))
        expected = theirs.step(
            epsilon, level, latent, generator=torch.Generator().manual_seed(9)
        ).prev_sample
        mine = our_step(schedule, step, latent, score, noise)
        torch.testing.assert_close(mine, expected, rtol=2e-4, atol=2e-4)
    assert schedule.coefficients[0, 2] == 0


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("inference_steps", [10, 5, 2])
def test_ddim_step_equals_the_step_of_diffusers_ddim(name, inference_steps):
    config = ScheduleConfig(
        kind="vp",
        num_train_timesteps=10,
        num_inference_steps=inference_steps,
        beta_schedule=name,
        sampler="ddim",
    )
    schedule = NoiseSchedule(config)
    # Its trailing spacing ends at the noisiest level, as ours does.
    theirs = DDIMScheduler(
        **diffusers_arguments(config), set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(inference_steps)
    assert theirs.timesteps.tolist() == schedule.inference_levels[::-1]
    latent, epsilon = rows(0), rows(1)
    for step in reversed(range(inference_steps)):
        level = schedule.inference_levels[step]
        expected = theirs.step(epsilon, level, latent, eta=0.0).prev_sample
        mine = our_step(schedule, step, latent, -epsilon / schedule.sigmas[level], rows(2))
        torch.testing.assert_close(mine, expected, rtol=2e-4, atol=2e-4)


def test_euler_step_equals_the_predictor_of_diffusers_sde_ve():
    config = ScheduleConfig(sampler="euler_sde")
    schedule = NoiseSchedule(config)
    theirs = ScoreSdeVeScheduler(
        num_train_timesteps=10, sigma_min=config.sigma_min, sigma_max=config.sigma_max
    )
    theirs.set_timesteps(10)
    theirs.set_sigmas(10)
    latent, score = rows(0, 4).reshape(4, 2, 1, 1), rows(1, 4).reshape(4, 2, 1, 1)
    # Its "model output" is the score, its timesteps run from 1 down to 1e-5 in steps that meet
    # every level; it adds noise to prev_sample_mean itself, from its generator.
    for step in reversed(range(10)):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(9))
        time = torch.tensor((step + 0.01) / 9 if step < 9 else 1.0)
        output = theirs.step_pred(score, time, latent, generator=torch.Generator().manual_seed(9))
        expected = output.prev_sample if step else output.prev_sample_mean
        mine = our_step(schedule, step, latent, score, noise)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ve", "vp"])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_exact_scores_carry_a_point_mass_down_the_noising_process_exactly(kind, sampler):
    # Both samplers are exact where u_0 is one point: mean and variance of every level are met.
    levels = closed_form_levels(ScheduleConfig(kind=kind))
    coefficients = reverse_coefficients(levels.alphas, levels.sigmas, sampler)
    clean = 0.7  # score = (alpha 0.7 - u) / sigma^2
    mean, variance = levels.alphas[-1] * clean, levels.sigmas[-1] ** 2
    for step in reversed(range(len(coefficients))):
        c_latent, c_score, c_noise = coefficients[step]
        alpha, sigma = levels.alphas[step], levels.sigmas[step]
        slope = c_latent - c_score / sigma**2
        mean = slope * mean + c_score * alpha * clean / sigma**2
        variance = slope**2 * variance + c_noise**2
        below = (levels.alphas[step - 1], levels.sigmas[step - 1]) if step else (1.0, 0.0)
        assert mean == pytest.approx(below[0] * clean)
        assert variance == pytest.approx(below[1] ** 2, abs=1e-12)


@pytest.mark.parametrize("total", range(1, 25))
def test_inference_levels_are_distinct_increasing_and_end_at_the_noisiest(total):
    for steps in range(1, total + 1):
        config = ScheduleConfig("vp", num_train_timesteps=total, num_inference_steps=steps)
        levels = NoiseSchedule(config).inference_levels
        assert len(levels) == steps
        assert levels == sorted(set(levels))
        assert levels[0] >= 0
        assert levels[-1] == total - 1


def test_five_of_ten_levels_are_every_second_one():
    schedule = NoiseSchedule(ScheduleConfig(num_inference_steps=5))
    assert schedule.inference_levels == [1, 3, 5, 7, 9]
    assert (schedule.num_steps, schedule.num_levels) == (5, 10)
    assert schedule.coefficients.shape == (5, 3)


def test_ancestral_coefficients_of_two_levels_by_hand():
    # VE with sigma 1 and 2: from 2 to 1, keep 1/4 and step variance 3, noise sqrt(3) / 2.
    coefficients = reverse_coefficients(np.ones(2), np.array([1.0, 2.0]), "ancestral")
    np.testing.assert_allclose(coefficients, [[1, 1, 0], [1, 3, math.sqrt(3) / 2]])
    euler = reverse_coefficients(np.ones(2), np.array([1.0, 2.0]), "euler_sde")
    np.testing.assert_allclose(euler, [[1, 1, 0], [1, 3, math.sqrt(3)]])
    ddim = reverse_coefficients(np.ones(2), np.array([1.0, 2.0]), "ddim")
    np.testing.assert_allclose(ddim, [[1, 1, 0], [1, 2, 0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps must be >= 1, got 0"),
        ({"num_inference_steps": 11}, r"num_inference_steps must be in \[1, .*10\], got 11"),
        ({"sigma_min": 3.0}, "sigma_min <= sigma_max, got 3.0 and 1.5"),
        ({"num_train_timesteps": 1}, "must be equal with num_train_timesteps 1, .*0.05 and 1.5"),
        ({"sigma_min": 1.5}, "and differ with more, got num_train_timesteps 10, 1.5 and 1.5"),
        ({"beta_start": 0.5}, "beta_start <= beta_end < 1, got 0.5 and 0.02"),
        ({"kind": "vp", "sampler": "euler_sde"}, "'euler_sde' needs kind 've', got kind 'vp'"),
    ],
)
def test_impossible_schedules_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**changes)
