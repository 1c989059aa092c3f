"""One action in numpy equals the policy's, and follows its weights."""

import numpy as np
import pytest
import torch
from benchmarks.pairs import ACTION, BATCH, OBS, Agent, agent_of, make_batch, to_float64

from alam.acting import GaussianSampler
from alam.sac import SACAgent
from algd.diffusion.acting import ChainSampler

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


def sampler_of(agent: Agent) -> GaussianSampler | ChainSampler:
    if isinstance(agent, SACAgent):
        return GaussianSampler(agent.policy)
    return ChainSampler(agent.policy)


@pytest.mark.parametrize("case", CASES)
def test_numpy_action_equals_the_action_of_the_policy(case: str) -> None:
    agent = agent_of(case.split()[0], **CASES[case])
    sampler = sampler_of(agent)
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


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("preset", ["release_vesde", "release_ddpm", "sac_alam", "algd"])
def test_one_row_takes_the_action_that_it_takes_among_others(
    preset: str, deterministic: bool
) -> None:
    agent = agent_of(preset)
    row = np.random.default_rng(0).standard_normal((1, OBS)).astype(np.float32)
    alone, again = (
        agent.act(row, generator=torch.Generator().manual_seed(3), deterministic=deterministic)
        for _ in range(2)
    )
    assert alone.shape == (1, ACTION)
    assert np.array_equal(alone, again)
    in_torch = to_float64(agent)
    chain = getattr(agent.policy, "num_noises", 1)
    noise = torch.randn(chain, 1, ACTION, generator=torch.Generator().manual_seed(3))
    obs = torch.from_numpy(row).double()
    with torch.no_grad():
        if deterministic:
            expected = in_torch.policy.mode(obs)
        else:
            draws = noise[0] if isinstance(agent, SACAgent) else noise
            sampled = in_torch.policy.sample(obs, draws.double())
            expected = sampled[0] if isinstance(sampled, tuple) else sampled
    # The DDPM form divides by the norm of the score.
    np.testing.assert_allclose(alone, expected.numpy(), rtol=0.0, atol=2e-5)


def test_weights_that_move_in_memory_are_followed() -> None:
    agent = agent_of("release_vesde")
    row = np.ones((1, OBS), np.float32)
    before = agent.act(row, generator=torch.Generator(), deterministic=True)
    for parameter in agent.policy.parameters():
        parameter.data = 0.5 * parameter.data
    after = agent.act(row, generator=torch.Generator(), deterministic=True)
    with torch.no_grad():
        expected = agent.policy.mode(torch.from_numpy(row)).numpy()
    np.testing.assert_allclose(after, expected, rtol=0.0, atol=1e-6)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("preset", ["release_vesde", "sac_alam", "algd"])
def test_weights_on_another_device_are_copied_before_each_action(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, copied = agent_of(preset), agent_of(preset)
    row = np.ones((1, OBS), np.float32)
    actions = []
    for _ in range(3):
        expected = followed.act(row, generator=torch.Generator().manual_seed(5))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("alam.acting._on_host", lambda _: False)
            actual = copied.act(row, generator=torch.Generator().manual_seed(5))
        assert np.array_equal(actual, expected)
        actions.append(actual)
        for agent in (followed, copied):
            for parameter in agent.policy.parameters():
                parameter.data.mul_(1.2)  # as a replayed graph: no version counter moves
    assert not np.array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[1], actions[2])


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("preset", ["release_vesde", "sac_alam", "algd"])
def test_weights_that_diverged_act_without_a_word(preset: str, factor: float) -> None:
    agent = agent_of(preset)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.mul_(factor)
    action = agent.act(np.ones((1, OBS), np.float32), generator=torch.Generator())
    assert not np.isfinite(action).all() or np.abs(action).max() == 1.0


def test_ddpm_form_of_the_release_is_refused() -> None:
    policy = agent_of("release_ddpm").policy
    with pytest.raises(ValueError, match="variant 'vesde', got 'ddpm'"):
        ChainSampler(policy)  # pyright: ignore[reportArgumentType]
