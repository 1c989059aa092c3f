"""One action in numpy equals the policy's, and follows its weights."""

import numpy as np
import pytest
import torch
from benchmarks.pairs import ACTION, BATCH, OBS, agent_of, make_batch

from algd.diffusion.acting import make_sampler

CASES = {
    "release_vesde": {},
    "sac_alam": {},
    "algd": {},
    "algd silu ddim": {"policy.activation": "silu", "policy.schedule.sampler": "ddim"},
    "algd few steps": {"policy.schedule.num_inference_steps": 3, "policy.activation": "mish"},
    "algd vp": {"policy.schedule.kind": "vp", "policy.activation": "tanh"},
    "algd epsilon": {"policy.prediction_type": "epsilon"},
    "algd sample": {"policy.prediction_type": "sample"},
}


@pytest.mark.parametrize("case", CASES)
def test_numpy_action_equals_the_action_of_the_policy(case: str) -> None:
    agent = agent_of(case.split()[0], **CASES[case])
    sampler = make_sampler(agent.policy)
    agent.update(make_batch(BATCH))  # the views must follow the optimiser
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(5, OBS, generator=generator)
    chain = getattr(agent.policy, "num_noises", 0)
    noise = torch.randn(*([chain] if chain else []), 5, ACTION, generator=generator)
    with torch.no_grad():
        sampled = agent.policy.sample(obs, noise)
        expected = (sampled[0] if isinstance(sampled, tuple) else sampled).numpy()
        mode = agent.policy.mode(obs).numpy()
    for row in range(5):
        got = sampler.sample(obs[row].numpy(), noise[..., row, :].numpy())
        np.testing.assert_allclose(got, expected[row], rtol=0.0, atol=1e-6)
        got = sampler.sample(obs[row].numpy(), None)
        np.testing.assert_allclose(got, mode[row], rtol=0.0, atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_ddpm_form_of_the_release_is_refused() -> None:
    with pytest.raises(ValueError, match="variant 'vesde', got 'ddpm'"):
        make_sampler(agent_of("release_ddpm").policy)
