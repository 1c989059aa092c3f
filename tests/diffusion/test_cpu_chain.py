"""The reverse chain written out for a CPU equals the chain in plain operations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from algd.diffusion import policy as policy_module
from algd.diffusion import release as release_module
from algd.diffusion.policy import DiffusionPolicy, DiffusionPolicyConfig
from algd.diffusion.release import ReleasePolicy, ReleasePolicyConfig
from algd.diffusion.schedule import ScheduleConfig

pytestmark = pytest.mark.usefixtures("float64")

SETTINGS: list[dict[str, Any]] = [
    {},
    {"prediction_type": "epsilon", "activation": "silu"},
    {"prediction_type": "sample", "activation": "tanh"},
    {"schedule": ScheduleConfig(kind="vp", num_inference_steps=4), "activation": "mish"},
]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(policy: torch.nn.Module, output: Tensor) -> list[Tensor]:
    weights = normals(*output.shape, seed=9)
    return list(torch.autograd.grad((weights * output).sum(), list(policy.parameters())))


@pytest.mark.parametrize("gradient_steps", [None, 2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_denoising_and_its_gradients(
    settings: dict[str, Any], gradient_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DiffusionPolicyConfig(hidden=(20, 18), **settings)
    policy = DiffusionPolicy(4, 2, config, generator=torch.Generator().manual_seed(0)).double()
    obs, noise = normals(7, 4, seed=1), normals(policy.num_noises, 7, 2, seed=2)
    written_out = policy.denoise(obs, noise, gradient_steps=gradient_steps)
    monkeypatch.setattr(policy_module, "can_run", lambda *_: False)
    plain = policy.denoise(obs, noise, gradient_steps=gradient_steps)
    assert type(written_out.grad_fn) is not type(plain.grad_fn)
    torch.testing.assert_close(written_out, plain, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(gradients(policy, written_out), gradients(policy, plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_released_rollout_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ReleasePolicyConfig(hidden=(20, 18))
    policy = ReleasePolicy(4, 2, config, generator=torch.Generator().manual_seed(0)).double()
    obs, noise = normals(7, 4, seed=1), normals(policy.num_noises, 7, 2, seed=2)
    level = torch.arange(7) % 5
    written_out = torch.cat(policy.rollout(obs, noise, level))
    monkeypatch.setattr(release_module, "can_run", lambda *_: False)
    plain = torch.cat(policy.rollout(obs, noise, level))
    torch.testing.assert_close(written_out, plain, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(gradients(policy, written_out), gradients(policy, plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_observations_that_ask_for_a_gradient_get_one() -> None:
    policy = DiffusionPolicy(4, 2, DiffusionPolicyConfig(hidden=(20, 18))).double()
    obs = normals(7, 4, seed=1).requires_grad_(True)
    action = policy.sample(obs, normals(policy.num_noises, 7, 2, seed=2))
    (gradient,) = torch.autograd.grad(action.sum(), obs)
    assert gradient.abs().min() > 0.0
