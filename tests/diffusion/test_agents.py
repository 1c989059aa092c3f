"""Contracts of both agents: every combination runs, repeats, continues, and never waits."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from alam.critics import CriticConfig
from alam.gaussian import GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import (
    FixedConfig,
    ScalarADRCConfig,
    ScalarDualConfig,
    ScalarPIDConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)
from alam.sac import SACAgent, SACConfig
from alam.types import Batch
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.release import ReleasePolicyConfig
from algd.diffusion.schedule import ScheduleConfig
from algd.diffusion.temperature import TemperatureConfig

ROWS, OBS_DIM, ACTION_DIM = 8, 3, 2

MULTIPLIERS = {
    "fixed": FixedConfig(value=0.5),
    "scalar_dual": ScalarDualConfig(learning_rate=0.1),
    "scalar_dual_log": ScalarDualConfig(parameterization="log", initial_value=0.6931),
    "scalar_pid": ScalarPIDConfig(interval=2),
    "scalar_adrc": ScalarADRCConfig(interval=2),
    "statewise_dual": StatewiseDualConfig(hidden=(8,), interval=2),
    "statewise_alam": StatewiseALaMConfig(hidden=(8,), dual_target_interval=2),
}


def small_diffusion(kind: str = "ve", **settings) -> DiffusionPolicyConfig:
    return DiffusionPolicyConfig(
        schedule=ScheduleConfig(kind=kind, num_train_timesteps=4),
        **(
            {
                "hidden": (8,),
                "embedding_dim": 4,
                "num_score_samples": 4,
                "temperature": TemperatureConfig(probe_states=4, probe_actions=4),
            }
            | settings
        ),
    )


POLICIES = {
    "gaussian": GaussianPolicyConfig(hidden=(8,)),
    "diffusion_ve": small_diffusion("ve"),
    "diffusion_vp": small_diffusion("vp"),
    "release_vesde": ReleasePolicyConfig(variant="vesde", hidden=(8,), num_timesteps=3),
    "release_ddpm": ReleasePolicyConfig(variant="ddpm", hidden=(8,), num_timesteps=3),
}

VARIANTS = {
    "fixed temperature": small_diffusion(temperature=TemperatureConfig(mode="raw", value=1.0)),
    "tuned temperature": small_diffusion(
        temperature=TemperatureConfig(mode="entropy", probe_states=4, probe_actions=4)
    ),
    "score only": small_diffusion(chain_coef=0.0, estimator="denoising", base_std=None),
    "chain only": small_diffusion(chain_coef=1.0, score_coef=0.0, chain_steps=2),
    "chain and score": small_diffusion(chain_coef=1.0),
    "target score": small_diffusion(estimator="target", antithetic=False, score_batch_size=4),
    "fixed entropy": GaussianPolicyConfig(hidden=(8,), entropy_coef=0.1),
}


def agent_of(
    policy=POLICIES["diffusion_ve"],
    multiplier=MULTIPLIERS["statewise_alam"],
    *,
    critics: dict | None = None,
    constraint: dict | None = None,
    seed: int = 0,
) -> SACAgent | ALGDAgent:
    parts: dict[str, Any] = {
        "policy": policy,
        "critics": CriticConfig(**({"hidden": (8,)} | (critics or {}))),
        "constraint": ConstraintConfig(**({"cost_limit": 1.0} | (constraint or {}))),
        "multiplier": multiplier,
    }
    if isinstance(policy, GaussianPolicyConfig):
        return SACAgent(OBS_DIM, ACTION_DIM, SACConfig(**parts), episode_length=10, seed=seed)
    return ALGDAgent(OBS_DIM, ACTION_DIM, ALGDConfig(**parts), episode_length=10, seed=seed)


def batches() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield Batch(
            torch.randn(ROWS, OBS_DIM, generator=generator),
            torch.rand(ROWS, ACTION_DIM, generator=generator) * 2 - 1,
            torch.randn(ROWS, generator=generator),
            torch.rand(ROWS, generator=generator),
            torch.randn(ROWS, OBS_DIM, generator=generator),
            (torch.rand(ROWS, generator=generator) < 0.2).float(),
        )


def train(agent, updates: int, source: Iterator[Batch] | None = None) -> list[dict]:
    source = source or batches()
    return [agent.update(next(source)) for _ in range(updates)]


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Return every leaf of a nested state by its path."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {path: state}
    return {
        name: leaf for key, value in items for name, leaf in leaves(value, f"{path}/{key}").items()
    }


def assert_same_state(first, second) -> None:
    mine, other = leaves(first.state_dict()), leaves(second.state_dict())
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        same = torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        assert same, name


def check_update(agent) -> None:
    """Take three updates: finite detached scalars, a moving policy, actions in the box."""
    before = copy.deepcopy(agent.policy.state_dict())
    history = train(agent, 3)
    for metrics in history:
        assert metrics.keys() == history[0].keys()
        for name, value in metrics.items():
            assert value.shape == (), name
            assert not value.requires_grad, name
            assert torch.isfinite(value), name
            assert name.split("/")[0] in ("loss", "train"), name
    after = agent.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    action = agent.act(next(batches()).obs.numpy(), generator=torch.Generator().manual_seed(0))
    assert np.isfinite(action).all()
    assert np.abs(action).max() <= 1


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_updates_with_every_multiplier(policy, multiplier):
    check_update(agent_of(POLICIES[policy], MULTIPLIERS[multiplier]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_a_policy_updates(variant):
    check_update(agent_of(VARIANTS[variant]))


@pytest.mark.parametrize("policy", ["gaussian", "diffusion_ve"])
@pytest.mark.parametrize(
    ("critics", "constraint"),
    [
        ({"cost_target": "reachability"}, {}),
        ({"mask_terminated_cost": False, "num_cost_critics": 1}, {"unit": "raw"}),
        ({"cost_discount": 1.0}, {}),
        ({"cost_discount": 0.0}, {"augmented": False}),
        ({}, {"cost_limit": 0.0}),
    ],
)
def test_every_kind_of_constraint_updates(policy, critics, constraint):
    check_update(agent_of(POLICIES[policy], critics=critics, constraint=constraint))


def test_a_gaussian_agent_updates_under_the_hinge_of_the_batch():
    check_update(agent_of(POLICIES["gaussian"], constraint={"hinge": "batch"}))


@pytest.mark.parametrize("policy", POLICIES)
def test_updates_are_decided_by_the_seed(policy):
    first, second, other = (agent_of(POLICIES[policy], seed=seed) for seed in (3, 3, 4))
    for agent in (first, second, other):
        # Global generators play no part.
        torch.manual_seed(int(agent is second))
        train(agent, 3)
    assert_same_state(first, second)
    with pytest.raises(AssertionError):
        assert_same_state(first, other)


def assert_continues(policy, multiplier) -> None:
    source = batches()
    first = agent_of(policy, multiplier)
    first.observe_episode_cost(3.0)
    train(first, 3, source)
    second = agent_of(policy, multiplier, seed=99)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert_same_state(first, second)
    rest = [next(source) for _ in range(3)]
    for batch in rest:
        mine, other = first.update(batch), second.update(batch)
        assert {name: value.item() for name, value in mine.items()} == {
            name: value.item() for name, value in other.items()
        }
    assert_same_state(first, second)
    actions = [
        agent.act(rest[0].obs.numpy(), generator=torch.Generator().manual_seed(5))
        for agent in (first, second)
    ]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("policy", [*POLICIES, *VARIANTS])
def test_loaded_agent_continues_bitwise_with_every_policy(policy):
    assert_continues((POLICIES | VARIANTS)[policy], MULTIPLIERS["statewise_alam"])


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
def test_loaded_agent_continues_bitwise_with_every_multiplier(multiplier):
    assert_continues(POLICIES["gaussian"], MULTIPLIERS[multiplier])


def test_loaded_agent_continues_bitwise_with_episodes_waiting():
    signal = ScalarPIDConfig(signal="episode", interval=4)
    assert_continues(POLICIES["gaussian"], signal)


class HostRead(Exception):
    """The host would have to wait for the device."""


class NoHostReadOperators(TorchDispatchMode):
    """Raise where an operator reads a value, or has a data-dependent shape."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.forbidden:
            raise HostRead(str(func))
        if name in ("index", "index_put", "index_put_"):
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                raise HostRead(f"{func} with a mask")
        return func(*args, **(kwargs or {}))


class NoHostReadMethods(TorchFunctionMode):
    """Raise where a method copies to the host without any operator, as on a CPU tensor."""

    forbidden = ("tolist", "numpy", "cpu", "__array__")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.forbidden:
            raise HostRead(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: 1 if x.sum() > 0 else 0,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.unique(x),
        lambda x: f"{x.sum():.2f}",
    ],
)
def test_guard_notices_every_way_of_reading_on_the_host(read):
    with pytest.raises(HostRead), NoHostReadOperators(), NoHostReadMethods():
        read(torch.ones(3))


def assert_reads_nothing(agent) -> None:
    source = batches()
    train(agent, 2, source)  # the optimisers create their state on their first step
    later = [next(source) for _ in range(2)]
    with NoHostReadOperators(), NoHostReadMethods():
        for batch in later:
            agent.update(batch)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_update_reads_nothing_on_the_host(policy, multiplier):
    assert_reads_nothing(agent_of(POLICIES[policy], MULTIPLIERS[multiplier]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_of_every_variant_reads_nothing_on_the_host(variant):
    assert_reads_nothing(agent_of(VARIANTS[variant]))


@pytest.mark.parametrize("policy", ["diffusion_ve", "diffusion_vp"])
def test_noise_free_action_needs_no_generator(policy):
    agent, obs = agent_of(POLICIES[policy]), next(batches()).obs.numpy()
    first, second = (
        agent.act(obs, generator=torch.Generator().manual_seed(seed), deterministic=True)
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
    sampled = agent.act(obs, generator=torch.Generator().manual_seed(0))
    assert np.abs(sampled - first).min() > 0


def test_best_of_several_candidates_has_the_lowest_energy():
    agent, obs = agent_of(small_diffusion(candidates=5)), next(batches()).obs
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(agent.policy.num_noises, 5 * ROWS, ACTION_DIM, generator=generator)
    chosen = agent.act(obs.numpy(), generator=torch.Generator().manual_seed(2), deterministic=True)
    with torch.no_grad():
        actions = agent.policy.sample(obs.repeat(5, 1), noise).unflatten(0, (5, ROWS))
        energy, _ = agent.evaluate(obs, actions)
        best, _ = agent.evaluate(obs, torch.from_numpy(chosen))
    torch.testing.assert_close(best, energy.amin(0))


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_signal_is_the_violation_of_replayed_actions(policy):
    agent = agent_of(POLICIES[policy], ScalarDualConfig(signal="replay"))
    batch = next(batches())
    reported = agent.update(batch)["train/violation"].item()
    # The critics have moved before the multiplier reads them, their targets only after.
    q_cost = agent.critics.q_cost(batch.obs, batch.action)
    assert reported == pytest.approx(agent.constraint.violation(q_cost).mean().item(), rel=1e-5)


def test_scale_of_the_energy_is_probed_over_the_whole_box(monkeypatch):
    agent, probed = agent_of(), []
    settings = agent.config.policy.temperature
    evaluate = agent.evaluate

    def recording(obs, action, **held):
        if action.shape == (settings.probe_actions, settings.probe_states, ACTION_DIM):
            probed.append(action)
        return evaluate(obs, action, **held)

    monkeypatch.setattr(agent, "evaluate", recording)
    train(agent, 40)
    actions = torch.stack(probed)
    assert len(actions) == 40
    assert actions.mean().item() == pytest.approx(0.0, abs=0.05)
    assert actions.std().item() == pytest.approx(3**-0.5, rel=0.05)


def test_diffusion_policy_moves_at_its_interval_alone():
    agent, source = agent_of(small_diffusion(update_interval=3)), batches()
    for step in range(1, 7):
        before = copy.deepcopy(agent.policy.state_dict())
        train(agent, 1, source)
        after = agent.policy.state_dict()
        assert any(not torch.equal(before[k], after[k]) for k in before) == (step % 3 == 0)


def test_policy_loss_leaves_no_gradient_in_critics_or_multiplier():
    agent, batch = agent_of(), next(batches())
    noise = torch.randn(agent.policy.num_loss_noises(), ROWS, ACTION_DIM)
    level = torch.arange(ROWS) % agent.num_levels
    result = agent.policy.loss(
        batch.obs, batch.action, agent.evaluate, agent.temperature(), noise, level
    )
    result.loss.backward()
    for part in (agent.critics, agent.multiplier, agent.temperature):
        assert all(parameter.grad is None for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in agent.policy.parameters())


def test_reward_target_of_the_diffusion_agent_carries_no_entropy_bonus():
    agent, batch = agent_of(), next(batches())
    generator = torch.Generator()
    generator.set_state(agent.generator.get_state())
    counts = agent.policy.num_noises + agent.policy.num_loss_noises()
    noise = torch.randn(counts, ROWS, ACTION_DIM, generator=generator)
    with torch.no_grad():
        next_action = agent.policy.sample(batch.next_obs, noise[: agent.policy.num_noises])
        target, _ = agent.critics.targets(batch, next_action)
        current = agent.critics.reward(batch.obs, batch.action).squeeze(-1)
    expected = (current - target).square().mean(-1).sum().item()
    assert agent.update(batch)["loss/reward_critic"].item() == pytest.approx(expected, rel=1e-5)


def test_another_denoising_policy_acts_at_once():
    agent, other = agent_of(), agent_of(seed=1)
    obs, stream = np.ones((2, OBS_DIM)), torch.Generator()
    agent.act(obs[:1], generator=stream, deterministic=True)
    agent.policy = other.policy
    expected = other.act(obs, generator=stream, deterministic=True)
    alone = agent.act(obs[:1], generator=stream, deterministic=True)
    assert alone == pytest.approx(expected[:1], abs=1e-6)


def test_the_entropy_is_probed_by_several_actions_of_each_state(monkeypatch):
    agent = agent_of(VARIANTS["tuned temperature"])
    obs = torch.arange(4.0)[:, None].expand(4, OBS_DIM)
    monkeypatch.setattr(agent.policy, "sample", lambda rows, _: rows[:, :ACTION_DIM])
    samples = agent.sample_probe(obs, agent.draw_probe(4))
    assert samples.shape == (4, 4, ACTION_DIM)
    assert torch.equal(samples, obs[:, :ACTION_DIM].expand(4, 4, ACTION_DIM))
