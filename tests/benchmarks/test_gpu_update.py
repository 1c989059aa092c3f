"""Captured updates on a GPU do what the eager ones do, without host syncs."""

import numpy as np
import pytest
import torch
from benchmarks.gpu_update import PRESETS, StepUpdates, count_syncs
from benchmarks.pairs import BATCH, OBS, agent_of, make_batch, tensors_of_agent

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("no_shape_checks")]


def run_alike(eager: StepUpdates, captured: StepUpdates) -> None:
    """Take the same steps with both; the last ones of ``captured`` are graphs.

    Graphs read learning rates from float32 tensors, which are not the numbers of the configuration.
    """
    for agent in eager.agents:
        agent.hold_learning_rates_on_device()
    for _ in range(6):
        eager.run()
        captured.run()
    torch.cuda.synchronize()


@pytest.mark.parametrize("preset", PRESETS)
def test_graphs_equal_the_eager_updates(preset: str) -> None:
    eager, captured = (
        StepUpdates(agent_of(preset, device="cuda"), updates=2, captured=captured)
        for captured in (False, True)
    )
    run_alike(eager, captured)
    expected, actual = (tensors_of_agent(steps.agents[0]) for steps in (eager, captured))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0.0, atol=1e-5, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_graphs_of_several_seeds_equal_their_eager_updates(preset: str) -> None:
    alone, captured = (
        StepUpdates(
            *(agent_of(preset, device="cuda", seed=seed) for seed in range(2)),
            updates=2,
            rows=1000,
            captured=together,
            together=together,
        )
        for together in (False, True)
    )
    run_alike(alone, captured)
    for expected, actual in zip(alone.agents, captured.agents, strict=True):
        for name, value in tensors_of_agent(expected).items():
            difference = (tensors_of_agent(actual)[name] - value).abs()
            # A row that rounding moves over a kink of a ReLU moves the weights of one unit.
            assert (difference > 1e-5).double().mean() < 1e-3, name


@pytest.mark.parametrize("preset", PRESETS)
def test_joint_update_on_the_gpu_never_waits_for_the_host(preset: str) -> None:
    agents = [agent_of(preset, device="cuda", seed=seed) for seed in range(2)]
    count_syncs(StepUpdates(*agents, updates=2, rows=1000).run)


@pytest.mark.parametrize("preset", PRESETS)
def test_update_on_the_gpu_never_waits_for_the_host(preset: str) -> None:
    count_syncs(StepUpdates(agent_of(preset, device="cuda"), updates=2).run)


@pytest.mark.parametrize("preset", PRESETS)
def test_update_on_the_gpu_equals_that_on_the_cpu(preset: str) -> None:
    host, device = agent_of(preset), agent_of(preset, device="cuda")
    batch = make_batch()
    host.critics.update(batch, batch.action)
    device.critics.update(make_batch(device="cuda"), batch.action.cuda())
    for name, value in tensors_of_agent(host).items():
        torch.testing.assert_close(
            tensors_of_agent(device)[name].cpu(), value, rtol=0.0, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("preset", PRESETS)
def test_one_action_on_the_gpu_is_that_of_the_present_weights(preset: str) -> None:
    agent = agent_of(preset, device="cuda")
    row = np.ones((1, OBS), np.float32)
    for _ in range(2):
        agent.update(make_batch(BATCH, device="cuda"))
        action = agent.act(row, generator=torch.Generator(), deterministic=True)
        with torch.no_grad():
            expected = agent.policy.mode(torch.from_numpy(row).cuda()).cpu()
        np.testing.assert_allclose(action, expected.numpy(), rtol=0.0, atol=1e-5)
