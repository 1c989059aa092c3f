"""Learning on tasks whose optimum is known in closed form; minutes each (marker ``learning``)."""

import numpy as np
import pytest
import torch

from alam.critics import CriticConfig
from alam.gaussian import GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier import StatewiseALaMConfig
from alam.replay import ReplayBuffer
from alam.sac import SACAgent, SACConfig
from algd.analysis.bandit_solution import BoltzmannBandit
from algd.analysis.calibration import relative_l1
from algd.environments.analytic_bandit import BanditTask

HIDDEN = (64, 64)
TEMPERATURE = 0.01
STATES = np.linspace(-0.95, 0.95, 60).astype(np.float32)


def train_on_bandit(agent: SACAgent, *, steps: int) -> None:
    """Eight one-step episodes and one update of 128 rows at a time."""
    task = BanditTask(1)
    replay = ReplayBuffer(8 * steps, 1, 1)
    acting = torch.Generator().manual_seed(1)
    sampling = torch.Generator().manual_seed(2)
    rng = np.random.default_rng(0)
    for step in range(steps):
        obs = rng.uniform(-1, 1, (8, 1)).astype(np.float32)
        if step < 100:
            action = rng.uniform(-1, 1, (8, 1)).astype(np.float32)
        else:
            action = agent.act(obs, generator=acting)
        reward, cost = task.reward(obs[:, 0], action), task.cost(obs[:, 0], action)
        replay.add(obs, action, reward, cost, obs, np.ones(8))
        if step >= 32:
            agent.update(replay.sample(128, sampling))


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_sac_alam_meets_the_optimum_of_the_constrained_bandit() -> None:
    """Mean action within 0.05 of a*(s) on average over states, multiplier within 15 %."""
    task = BanditTask(1)
    config = SACConfig(
        policy=GaussianPolicyConfig(hidden=HIDDEN, entropy_coef=TEMPERATURE, learning_rate=1e-3),
        critics=CriticConfig(
            hidden=HIDDEN, num_cost_critics=2, cost_pessimism=0.0, learning_rate=1e-3
        ),
        constraint=ConstraintConfig(cost_limit=task.cost_limit),
        multiplier=StatewiseALaMConfig(hidden=HIDDEN, learning_rate=1e-3),
    )
    agent = SACAgent(1, 1, config, episode_length=1, seed=0)
    train_on_bandit(agent, steps=6000)
    generator = torch.Generator().manual_seed(3)
    actions = np.stack([agent.act(STATES[:, None], generator=generator) for _ in range(400)])
    error = np.abs(actions.mean(0) - task.optimal_action(STATES))
    assert error.mean() < 0.05
    exact = BoltzmannBandit(task, STATES, temperature=TEMPERATURE).multiplier()
    with torch.no_grad():
        learnt = agent.multiplier(torch.from_numpy(STATES[:, None])) / agent.constraint.unit
    active = task.optimal_multiplier(STATES) > 0
    assert relative_l1(learnt.numpy(), exact, where=active) < 0.15
