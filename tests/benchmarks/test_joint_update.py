"""Several seeds updated together: each comes out as if it had been updated alone."""

import copy
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu_update import StepUpdates, launches
from benchmarks.pairs import (
    ACTION,
    EPISODE_LENGTH,
    OBS,
    Agent,
    agent_of,
    make_batch,
    tensors_of_agent,
    to_float64,
    update_alone,
)
from torch import Tensor

from alam.types import Batch, Metrics
from algd.diffusion.joint import join
from algd.experiments.config import load_config, make_agent

SEEDS = 3
FLOAT32_TOLERANCE = 1e-5
SMALL: dict[str, Any] = {"policy.hidden": [16, 16], "critics.hidden": [16, 16]}
ALAM: dict[str, Any] = {
    "multiplier.hidden": [16, 16],
    "multiplier.dual_target_interval": 7,
    "multiplier.dual_steps": 2,
    "multiplier.interval": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "sac_alam": {"base": "sac_alam"} | ALAM,
    "sac_fixed_entropy": {"base": "sac_alam", "policy.entropy_coef": 0.2},
    "sac_lag": {"base": "sac_lag"},
    "fac": {"base": "fac", "multiplier.interval": 2},
    "algd": {"base": "algd"} | ALAM,
    "algd_scalar_dual": {"base": "algd", "multiplier.kind": "scalar_dual"},
    "algd_log_dual_on_replay": {
        "base": "algd",
        "multiplier.kind": "scalar_dual",
        "multiplier.parameterization": "log",
        "multiplier.initial_value": 0.7,
        "multiplier.signal": "replay",
    },
    "sac_pid_batch_hinge": {
        "base": "sac_alam",
        "multiplier.kind": "scalar_pid",
        "constraint.hinge": "batch",
    },
    "algd_entropy": {"base": "algd", "policy.temperature.mode": "entropy"},
    "algd_delayed": {"base": "algd", "policy.update_interval": 2},
    "corrected": {"base": "corrected"},
    "release_vesde": {"base": "release_vesde"},
    "release_ddpm": {"base": "release_ddpm"},
}

LONG = ("sac_alam", "algd", "algd_scalar_dual", "release_vesde")


def agents_of(case: str, *, num_seeds: int = SEEDS, **changes: Any) -> list[Agent]:
    """Return small agents of a case that differ in their seed."""
    settings = SMALL | CASES[case] | changes
    base = settings.pop("base")
    return [agent_of(base, seed=seed, **settings) for seed in range(num_seeds)]


def batch_of(update: int, size: int = 32) -> Batch:
    """Return batches of all seeds, stacked."""
    rows = [make_batch(size, seed=SEEDS * update + seed) for seed in range(SEEDS)]
    return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def everything(agent: Agent) -> dict[str, Tensor]:
    """Return every parameter, target, buffer and moment of an agent by name."""
    found: dict[str, Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, child in value.items():
                walk(f"{name}.{key}", child)

    walk("", agent.state_dict())
    return found


def assert_same(actual: Agent, expected: Agent, tolerance: float) -> None:
    compared = everything(actual)
    for name, value in everything(expected).items():
        torch.testing.assert_close(compared[name], value, rtol=0.0, atol=tolerance, msg=name)
    counts = [agent.state_dict()["num_updates"] for agent in (actual, expected)]
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("float64", "no_shape_checks")
@pytest.mark.parametrize("case", CASES)
def test_every_seed_equals_its_lone_run_in_double_precision(case: str) -> None:
    alone, together = (list(map(to_float64, agents_of(case))) for _ in range(2))
    joint = join(together)
    for update in range(20 if case in LONG else 8):
        if update == 5:  # rates may fall over a run
            for agent in (*alone, *together):
                agent.scale_learning_rates(0.3)
        batch = batch_of(update)
        expected = update_alone(alone, batch)
        metrics = joint.update(batch)
        for seed, wanted in enumerate(expected):
            _assert_metrics({name: value[seed] for name, value in metrics.items()}, wanted)
    for actual, expected_agent in zip(together, alone, strict=True):
        assert_same(actual, expected_agent, 1e-9)


def _assert_metrics(actual: Metrics, expected: Metrics) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert not actual[name].requires_grad
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("preset", ["sac_alam", "algd"])
def test_every_seed_equals_its_lone_run_in_single_precision_at_full_width(preset: str) -> None:
    """To 1e-5; a row that rounding moves over a kink of a ReLU moves the weights of one unit."""
    alone, together = ([agent_of(preset, seed=seed) for seed in range(SEEDS)] for _ in range(2))
    joint = join(together)
    seconds = dict.fromkeys(("alone", "together"), 0.0)
    for update in range(5):
        batch = batch_of(update, 64)
        started = time.process_time()
        update_alone(alone, batch)
        seconds["alone"] += time.process_time() - started
        started = time.process_time()
        joint.update(batch)
        seconds["together"] += time.process_time() - started
    print(f"{preset}: together / alone = {seconds['together'] / seconds['alone']:.2f} on the CPU")
    differences = torch.cat(
        [
            (tensors_of_agent(actual)[name] - value).abs().flatten()
            for actual, expected in zip(together, alone, strict=True)
            for name, value in tensors_of_agent(expected).items()
        ]
    )
    assert (differences > FLOAT32_TOLERANCE).double().mean() < 1e-4
    assert differences.max() < 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", ["sac_alam", "algd", "algd_log_dual_on_replay"])
def test_seeds_join_midway_and_go_on_alone(case: str) -> None:
    alone, together = (list(map(to_float64, agents_of(case))) for _ in range(2))
    batches = [batch_of(update) for update in range(12)]
    for batch in batches:
        update_alone(alone, batch)
    for batch in batches[:4]:
        update_alone(together, batch)
    joint = join(together)
    for batch in batches[4:8]:
        joint.update(batch)
    together = joint.release()
    for batch in batches[8:]:
        update_alone(together, batch)
    for actual, expected in zip(together, alone, strict=True):
        assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize("case", ["sac_alam", "algd", "release_vesde"])
def test_the_state_of_one_seed_is_that_of_an_ordinary_agent(case: str) -> None:
    together, (_, ordinary, _) = agents_of(case), agents_of(case)
    joint = join(together)
    for update in range(3):
        joint.update(batch_of(update))
    ordinary.load_state_dict(copy.deepcopy(together[1].state_dict()))
    batch = batch_of(3)
    ordinary.update(Batch(*(column[1] for column in batch)))
    joint.update(batch)
    assert_same(together[1], ordinary, FLOAT32_TOLERANCE)
    obs = make_batch(4).obs.numpy()
    for rows_acted in (obs, obs[:1]):  # the sampler of one row reads the weights where they lie
        actions = [
            agent.act(rows_acted, generator=torch.Generator().manual_seed(0))
            for agent in (together[1], ordinary)
        ]
        np.testing.assert_allclose(*actions, rtol=0.0, atol=1e-5)


def test_released_seeds_share_no_memory() -> None:
    together = agents_of("algd")
    joint = join(together)
    joint.update(batch_of(0))
    shared = everything(together[0])
    before = {name: value.clone() for name, value in everything(together[1]).items()}
    assert joint.release() == together
    for tensor in (*shared.values(), *everything(together[0]).values()):
        tensor.zero_()
    for name, value in everything(together[1]).items():
        torch.testing.assert_close(value, before[name], rtol=0.0, atol=0.0, msg=name)


def test_an_agent_updated_alone_while_joined_is_noticed() -> None:
    together = agents_of("sac_lag")
    joint = join(together)
    joint.update(batch_of(0))
    together[1].update(make_batch(8))
    with pytest.raises(ValueError, match="must have the same num_updates, got \\[1, 2, 1\\]"):
        joint.update(batch_of(1))


def test_episode_costs_reach_the_multiplier_of_their_own_seed() -> None:
    together = agents_of("sac_lag", **{"multiplier.signal": "episode", "multiplier.interval": 1})
    joint = join(together)
    joint.update(batch_of(1))  # episodes before the first update are of the warm-up
    together[1].observe_episode_cost(1000.0)
    metrics = joint.update(batch_of(0))
    values = metrics["train/multiplier"].tolist()
    assert values[0] == values[2]
    assert values[1] > values[0]


def test_episode_costs_calibrate_the_threshold_of_their_own_seed() -> None:
    together = agents_of("sac_lag", **{"constraint.calibration_rate": 0.1})
    alone = agents_of("sac_lag", **{"constraint.calibration_rate": 0.1})
    joint = join(together)
    joint.update(batch_of(1))
    update_alone(alone, batch_of(1))
    for agents in (together, alone):
        agents[1].observe_episode_cost(100.0)
    metrics = joint.update(batch_of(0))
    for place, expected in enumerate(update_alone(alone, batch_of(0))):
        torch.testing.assert_close(metrics["train/violation"][place], expected["train/violation"])
    assert metrics["train/violation"][1] > metrics["train/violation"][0] + 0.1
    joint.release()
    shares = [agent.constraint.threshold / agent.constraint.unit for agent in together]
    assert [share.item() for share in shares] == pytest.approx([1.0, math.exp(-0.4), 1.0])


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("preset", ["sac_alam", "algd", "release_vesde"])
def test_four_seeds_launch_hardly_more_kernels_than_one_and_write_no_more_each(preset: str) -> None:
    one, four = launches(agent_of(preset)), launches(*(agent_of(preset) for _ in range(4)))
    assert four.kernels < 1.2 * one.kernels  # each seed draws its own noise
    assert four.written < 1.1 * 4 * one.written


@pytest.mark.usefixtures("float64")
def test_the_updates_of_a_step_on_stacked_replays_equal_the_lone_ones() -> None:
    alone, together = (
        StepUpdates(*map(to_float64, agents_of("algd")), updates=2, rows=100, together=joined)
        for joined in (False, True)
    )
    for steps in (alone, together):
        for replay in steps.replays:
            replay.table = replay.table.double()
    for steps in (alone, together):
        steps.run()
    for actual, expected in zip(together.agents, alone.agents, strict=True):
        assert_same(actual, expected, 1e-9)


def other_kind() -> Agent:
    config = load_config(["cvpo"], {})
    return make_agent(config, OBS, ACTION, EPISODE_LENGTH, "cpu")  # pyright: ignore[reportReturnType]


def test_what_cannot_be_updated_together_is_refused_in_one_line() -> None:
    first, second = agents_of("sac_lag", num_seeds=2)
    other = agents_of("sac_lag", num_seeds=1, **{"critics.discount": 0.9})[0]
    updated = agents_of("sac_lag", num_seeds=1)[0]
    updated.update(make_batch(8))
    refused: list[tuple[list[Agent], str]] = [
        ([], "ALGDAgent or SACAgent, one of them, got \\[\\]"),
        ([first, agents_of("algd")[0]], "got \\['ALGDAgent', 'SACAgent'\\]"),
        ([other_kind()], "got \\['CVPOAgent'\\]"),
        ([first, first], "distinct agents"),
        ([first, other], "must have the same config"),
        ([first, updated], "must have the same num_updates, got \\[0, 1\\]"),
    ]
    for agents, message in refused:
        with pytest.raises(ValueError, match=message) as error:
            join(agents)
        assert "\n" not in str(error.value)
    join([first, second])
