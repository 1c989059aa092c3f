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
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.schedule import ScheduleConfig
from algd.diffusion.temperature import TemperatureConfig
from algd.environments.analytic_bandit import BanditTask

HIDDEN = (64, 64)
CRITICS = CriticConfig(hidden=HIDDEN, num_cost_critics=2, cost_pessimism=0.0, learning_rate=1e-3)
STATES = np.linspace(-0.95, 0.95, 60).astype(np.float32)


def train_on_bandit(agent: SACAgent | ALGDAgent, *, steps: int) -> None:
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


def assert_optimal(agent: SACAgent | ALGDAgent, *, temperature: float) -> None:
    """Mean action within 0.05 of a*(s) on average over states, multiplier within 15 %.

    The multiplier is compared with the exact one of the problem regularised by the temperature.
    """
    task = BanditTask(1)
    generator = torch.Generator().manual_seed(3)
    actions = np.stack([agent.act(STATES[:, None], generator=generator) for _ in range(400)])
    error = np.abs(actions.mean(0) - task.optimal_action(STATES))
    assert error.mean() < 0.05
    exact = BoltzmannBandit(task, STATES, temperature=temperature).multiplier()
    with torch.no_grad():
        learnt = agent.multiplier(torch.from_numpy(STATES[:, None])) / agent.constraint.unit
    active = task.optimal_multiplier(STATES) > 0
    off = relative_l1(learnt.numpy(), exact, where=active)
    print(
        f"mean action off by {error.mean():.3f}, at most {error.max():.3f}; multiplier by {off:.3f}"
    )
    assert off < 0.15


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_sac_alam_meets_the_optimum_of_the_constrained_bandit() -> None:
    config = SACConfig(
        policy=GaussianPolicyConfig(hidden=HIDDEN, entropy_coef=0.01, learning_rate=1e-3),
        critics=CRITICS,
        constraint=ConstraintConfig(cost_limit=BanditTask(1).cost_limit),
        multiplier=StatewiseALaMConfig(hidden=HIDDEN, learning_rate=1e-3),
    )
    agent = SACAgent(1, 1, config, episode_length=1, seed=0)
    train_on_bandit(agent, steps=6000)
    assert_optimal(agent, temperature=0.01)


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_algd_meets_the_optimum_of_the_constrained_bandit() -> None:
    """By the score term alone, as the abstract of arXiv 2602.02924 describes it."""
    config = ALGDConfig(
        policy=DiffusionPolicyConfig(
            hidden=HIDDEN,
            chain_coef=0.0,
            learning_rate=1e-3,
            schedule=ScheduleConfig(num_train_timesteps=5),
            estimator="denoising",
            num_score_samples=16,
            temperature=TemperatureConfig(mode="raw", value=0.02),
        ),
        critics=CRITICS,
        constraint=ConstraintConfig(cost_limit=BanditTask(1).cost_limit),
        multiplier=StatewiseALaMConfig(hidden=HIDDEN, learning_rate=1e-3, dual_target_interval=400),
    )
    agent = ALGDAgent(1, 1, config, episode_length=1, seed=0)
    train_on_bandit(agent, steps=5000)
    assert_optimal(agent, temperature=0.02)
