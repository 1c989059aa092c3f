"""Captured updates are the eager ones, whatever is due, and whatever moves in between."""

import copy
from typing import Any

import pytest
import torch
from benchmarks.pairs import ACTION, OBS, make_batch
from replayed_calls import Recorder, record
from torch import Tensor
from torch.utils._pytree import tree_flatten

from alam.captured import CapturedUpdates
from alam.sac import ConstrainedLearner
from alam.types import Batch
from algd.diffusion.joint import join
from algd.experiments.config import load_config, make_agent

# Rates that float32 holds exactly: graphs read them from tensors.
SMALL: dict[str, Any] = {
    "policy.hidden": [16, 16],
    "policy.learning_rate": 2**-10,
    "critics.hidden": [16, 16],
    "critics.learning_rate": 2**-10,
    "critics.target_update_interval": 2,
}
NETWORK = {"multiplier.hidden": [16], "multiplier.learning_rate": 2**-10}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac_alam": ("sac_alam", {**NETWORK, "multiplier.dual_target_interval": 3}),
    "sac_alam, delayed": ("sac_alam", {**NETWORK, "policy.update_interval": 3}),
    "sac_alam, slow multiplier": ("sac_alam", {**NETWORK, "multiplier.interval": 2}),
    "fac": ("fac", {**NETWORK, "multiplier.interval": 3}),
    "sac_lag": ("sac_lag", {}),
    "sac_pid": ("sac_pid", {"multiplier.interval": 2, "multiplier.signal": "policy"}),
    "episodes": ("sac_pid", {"multiplier.interval": 2, "multiplier.signal": "episode"}),
    "sac_adrc": ("sac_adrc", {}),
    "sac": ("sac", {}),
    "algd": ("algd", {**NETWORK, "multiplier.dual_target_interval": 3}),
    "algd, chain": ("algd", {**NETWORK, "policy.chain_coef": 1.0, "policy.update_interval": 2}),
    "algd, denoising": ("algd", {**NETWORK, "policy.estimator": "denoising"}),
    "algd, entropy": ("algd", {**NETWORK, "policy.temperature.mode": "entropy"}),
    "release_vesde": ("release_vesde", {}),
    "release_ddpm": ("release_ddpm", {}),
    "cvpo": ("cvpo", {"policy.num_action_samples": 4, "policy.policy_steps": 2}),
}


def agent_of(case: str, *, seed: int = 0) -> ConstrainedLearner:
    preset, changes = CASES[case]
    config = load_config([preset], SMALL | changes | {"seed": seed})
    agent = make_agent(config, OBS, ACTION, 100, "cpu")
    assert isinstance(agent, ConstrainedLearner)
    return agent


def leaves(agent: ConstrainedLearner) -> list[Any]:
    return [
        leaf.clone() if isinstance(leaf, Tensor) else leaf
        for leaf in tree_flatten(agent.state_dict())[0]
    ]


def assert_same(actual: ConstrainedLearner, expected: ConstrainedLearner) -> None:
    for left, right in zip(leaves(actual), leaves(expected), strict=True):
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            assert left.equal(right)
        else:
            assert left == right


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("case", CASES)
def test_captured_updates_equal_the_eager_ones_bit_for_bit(case: str) -> None:
    eager, agent = agent_of(case), agent_of(case)
    eager.hold_learning_rates_on_device()
    captured = CapturedUpdates(agent, capture=record)
    for number in range(36):
        for one in (eager, agent):
            if number % 5 == 0:
                one.observe_episode_cost(float(number))
            if number == 30:
                one.scale_learning_rates(0.25)
        batch = make_batch(8, seed=number)
        expected, actual = eager.update(batch), captured.update(batch)
        for name, value in expected.items():
            assert actual[name].equal(value), (number, name)
    assert captured._graphs
    assert_same(agent, eager)


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("case", ["sac_alam", "episodes", "algd"])
def test_captured_updates_of_several_seeds_equal_their_eager_ones(case: str) -> None:
    eager, agents = ([agent_of(case, seed=seed) for seed in range(2)] for _ in range(2))
    joint = join(eager)
    joint.hold_learning_rates_on_device()
    captured = CapturedUpdates(join(agents), capture=record)
    for number in range(24):
        for one in (*eager, *agents):
            if number % (5 + one.generator.initial_seed()) == 0:  # not the same episodes
                one.observe_episode_cost(float(number))
        rows = [make_batch(8, seed=2 * number + seed) for seed in range(2)]
        batch = Batch(*(torch.stack(columns) for columns in zip(*rows, strict=True)))
        joint.update(batch)
        captured.update(batch)
    assert captured._graphs
    for one, other in zip(agents, eager, strict=True):
        assert_same(one, other)


def test_a_state_saved_between_captured_updates_goes_on_eagerly() -> None:
    agent, later = agent_of("algd"), agent_of("algd")
    captured = CapturedUpdates(agent, capture=record)
    for number in range(20):
        captured.update(make_batch(8, seed=number))
    later.load_state_dict(copy.deepcopy(agent.state_dict()))
    (group,) = later.critics.optimizer.param_groups
    assert group["lr"] == 2**-10
    assert not isinstance(group["lr"], Tensor)
    batch = make_batch(8, seed=20)
    captured.update(batch)
    later.update(batch)
    for left, right in zip(agent.policy.parameters(), later.policy.parameters(), strict=True):
        assert left.equal(right)


def test_a_state_loaded_into_a_captured_agent_is_refused() -> None:
    agent = agent_of("sac")
    captured = CapturedUpdates(agent, capture=record)
    captured.update(make_batch(8))
    agent.load_state_dict(copy.deepcopy(agent.state_dict()))
    with pytest.raises(RuntimeError, match="capture the agent anew"):
        captured.update(make_batch(8))


def test_kinds_beyond_a_number_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alam.captured._MAX_GRAPHS", 1)
    eager, agent = agent_of("sac_alam"), agent_of("sac_alam")
    captured = CapturedUpdates(agent, capture=record)
    eager.hold_learning_rates_on_device()
    for number in range(24):
        eager.update(make_batch(8, seed=number))
        captured.update(make_batch(8, seed=number))
    assert len(captured._graphs) == 1
    assert_same(agent, eager)


def test_without_a_cuda_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    agent = agent_of("sac")
    with pytest.raises(RuntimeError, match="need a CUDA device, and torch sees none"):
        CapturedUpdates(agent)
    assert not agent.holds_learning_rates_on_device


def test_batches_of_another_shape_are_refused() -> None:
    captured = CapturedUpdates(agent_of("sac"), capture=record)
    captured.update(make_batch(8))
    with pytest.raises(ValueError, match=r"obs had \(8, 60\), got \(9, 60\)"):
        captured.update(make_batch(9))


def test_the_recorder_freezes_what_python_does() -> None:
    """Else the comparisons above would prove nothing."""
    total, count = torch.zeros(()), 0

    def body() -> dict[str, Tensor]:
        nonlocal count
        count += 1
        total.add_(count)
        return {"twice": 2 * total}

    replay, metrics = record(body, [])
    replay()
    assert count == 1
    assert total.item() == 2.0
    assert metrics["twice"].item() == 4.0
    for ask in (torch.Tensor.item, torch.Tensor.nonzero, lambda x: x[x > 0]):
        with Recorder(), pytest.raises(AssertionError, match="waits for the device"):
            ask(torch.ones(1))
