"""The slope of the energy written out equals that of autograd."""

import pytest
import torch

from alam.critics import CriticConfig
from alam.energy import FrozenEnergy, differentiable_energy, energy_slopes
from alam.lagrangian import ConstraintConfig
from alam.sac import SACAgent, SACConfig

pytestmark = pytest.mark.usefixtures("float64")

OBS_DIM, ACTION_DIM, ROWS = 5, 3, 40


def normals(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agent_of(constraint: ConstraintConfig, critics: CriticConfig) -> SACAgent:
    config = SACConfig(constraint=constraint, critics=critics)
    agent = SACAgent(OBS_DIM, ACTION_DIM, config, episode_length=100, seed=0)
    for module in (agent.critics, agent.constraint, agent.multiplier):
        module.double()
    return agent


@pytest.mark.parametrize("samples", [(), (6,)])
@pytest.mark.parametrize("pessimism", [(1, 0.5), (4, 0.0), (4, 0.5)])
@pytest.mark.parametrize(
    "constraint",
    [
        ConstraintConfig(cost_limit=0.0, penalty_coef=100.0),
        ConstraintConfig(cost_limit=0.5, penalty_coef=3.0, unit="raw"),
        ConstraintConfig(cost_limit=0.5, penalty_coef=3.0, hinge="batch"),
        ConstraintConfig(cost_limit=0.5, augmented=False),
    ],
    ids=["sample", "raw", "batch", "plain"],
)
def test_slope_of_the_energy_equals_that_of_autograd(
    constraint: ConstraintConfig, pessimism: tuple[int, float], samples: tuple[int, ...]
) -> None:
    count, factor = pessimism
    critics = CriticConfig(hidden=(18, 20), num_cost_critics=count, cost_pessimism=factor)
    agent = agent_of(constraint, critics)
    obs = normals(ROWS + 7, OBS_DIM, seed=1)
    action = torch.tanh(normals(*samples, ROWS, ACTION_DIM, seed=2))
    written_out = agent.energy_of(obs)  # of more rows than are asked for
    assert isinstance(written_out, FrozenEnergy)
    got = energy_slopes(written_out, obs[:ROWS], action)
    expected = energy_slopes(agent.evaluate, obs[:ROWS], action)
    assert expected.slope.abs().max() > 1e-3
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert not any(part.requires_grad for part in got)


def test_hinge_is_met_on_both_sides() -> None:
    agent = agent_of(ConstraintConfig(cost_limit=0.0, penalty_coef=100.0), CriticConfig())
    obs, action = normals(ROWS, OBS_DIM, seed=1), torch.tanh(normals(ROWS, ACTION_DIM, seed=2))
    violation = energy_slopes(agent.energy_of(obs), obs, action).violation
    weight = agent.constraint.violation_weight(violation, agent.multiplier(obs))
    assert 0 < (weight == 0).sum() < ROWS


def test_energy_carries_its_slope_to_what_made_the_actions() -> None:
    agent = agent_of(ConstraintConfig(cost_limit=0.5), CriticConfig(hidden=(18,)))
    obs, gradients, values = normals(ROWS, OBS_DIM, seed=1), [], []
    for evaluate in (agent.energy_of(obs), agent.evaluate):
        latent = normals(ROWS, ACTION_DIM, seed=2).requires_grad_(True)
        energy, _ = differentiable_energy(evaluate, obs, torch.tanh(latent))
        energy.square().sum().backward()
        gradients.append(latent.grad)
        values.append(energy.detach())
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_where_twins_agree_each_counts_half() -> None:
    agent = agent_of(ConstraintConfig(), CriticConfig(hidden=(18,)))
    with torch.no_grad():
        for parameter in agent.critics.reward.parameters():
            parameter[1] = parameter[0]
        agent.critics.reward.weights[0][1, 0] += 1.0  # heard by observations that are not 0
    obs, action = torch.zeros(ROWS, OBS_DIM), torch.tanh(normals(ROWS, ACTION_DIM, seed=2))
    got = energy_slopes(agent.energy_of(obs), obs, action)
    expected = energy_slopes(agent.evaluate, obs, action)
    torch.testing.assert_close(got.slope, expected.slope, rtol=1e-10, atol=1e-12)
