"""Learning on tasks whose optimum is known in closed form; minutes each (marker ``learning``)."""

from typing import Any

import numpy as np
import pytest
import torch

from alam.critics import CriticConfig
from alam.cvpo import CVPOAgent, CVPOConfig, CVPOPolicyConfig
from alam.gaussian import GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import StatewiseALaMConfig
from alam.replay import ReplayBuffer
from alam.sac import SACAgent, SACConfig
from algd.analysis.bandit_solution import BoltzmannBandit
from algd.analysis.calibration import relative_l1
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.schedule import ScheduleConfig
from algd.diffusion.temperature import TemperatureConfig
from algd.environments.analytic_bandit import BanditTask
from algd.environments.analytic_islands import IslandsTask

HIDDEN = (64, 64)
CRITICS = CriticConfig(hidden=HIDDEN, num_cost_critics=2, cost_pessimism=0.0, learning_rate=1e-3)
STATES = np.linspace(-0.95, 0.95, 60).astype(np.float32)


def train_on_bandit(agent: SACAgent | ALGDAgent | CVPOAgent, *, steps: int) -> None:
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


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_cvpo_comes_to_the_optimum_under_a_mean_cost() -> None:
    """Its one multiplier bounds the cost averaged over states; here by 0.3, at lambda = 0.2694.

    Per state the optimum is argmax of -(a - mu)^2 - lambda [a - b + d]_+, with a kink at b - d.
    """
    task, limit, states = BanditTask(1), 0.3, np.linspace(-0.995, 0.995, 200)
    free, kink = task.preferred_along(states) - 0.5 * 0.2694, task.bound_along(states) - 0.5
    optimum = np.where(free > kink, free, np.minimum(task.preferred_along(states), kink))
    assert task.cost(states, optimum[:, None]).mean() == pytest.approx(limit, abs=1e-4)
    config = CVPOConfig(
        policy=CVPOPolicyConfig(hidden=HIDDEN),
        critics=CriticConfig(
            hidden=HIDDEN, num_cost_critics=1, cost_activation="relu", learning_rate=1e-3
        ),
        constraint=ConstraintConfig(cost_limit=limit, augmented=False, unit="raw"),
    )
    agent = CVPOAgent(1, 1, config, episode_length=1, seed=0)
    train_on_bandit(agent, steps=4800)  # its trust region is narrow
    generator = torch.Generator().manual_seed(3)
    obs = states[:, None].astype(np.float32)
    actions = np.stack([agent.act(obs, generator=generator) for _ in range(200)])
    error = float(np.abs(actions.mean(0)[:, 0] - optimum).mean())
    cost = float(np.mean([task.cost(states, drawn) for drawn in actions]))
    print(f"mean action off by {error:.3f}; cost {cost:.3f} of {limit}")
    assert error < 0.05
    assert cost == pytest.approx(limit, abs=0.04)


def train_on_islands(agent: SACAgent | ALGDAgent, *, steps: int) -> None:
    """As on the bandit, in states of both kinds: free, and with a wall between two islands."""
    task = IslandsTask(1)
    replay = ReplayBuffer(8 * steps, 1, 1)
    acting = torch.Generator().manual_seed(1)
    sampling = torch.Generator().manual_seed(2)
    rng = np.random.default_rng(0)
    for step in range(steps):
        side = np.where(rng.random((8, 1)) < 0.5, -1.0, 1.0)
        obs = (side * rng.uniform(0.25, 1.0, (8, 1))).astype(np.float32)
        if step < 200:
            action = rng.uniform(-1, 1, (8, 1)).astype(np.float32)
        else:
            action = agent.act(obs, generator=acting)
        reward, cost = task.reward(obs[:, 0], action), task.cost(obs[:, 0], action)
        replay.add(obs, action, reward.astype(np.float32), cost.astype(np.float32), obs, np.ones(8))
        if step >= 32:
            agent.update(replay.sample(128, sampling))


def islands_of(agent: SACAgent | ALGDAgent) -> tuple[float, float]:
    """Return the share of walled states with >= 5 % of 200 samples on either island, and the
    share of infeasible samples.
    """
    task = IslandsTask(1)
    states = np.linspace(0.26, 0.99, 40).astype(np.float32)
    generator = torch.Generator().manual_seed(3)
    actions = np.stack([agent.act(states[:, None], generator=generator) for _ in range(200)])
    feasible = np.stack([task.feasible(states, sample) for sample in actions])
    left = (feasible & (actions[..., 0] < 0)).mean(0)
    right = (feasible & (actions[..., 0] > 0)).mean(0)
    return float(((left >= 0.05) & (right >= 0.05)).mean()), float(1.0 - feasible.mean())


ISLANDS: dict[str, Any] = {
    "critics": CriticConfig(
        hidden=(128, 128), num_cost_critics=2, cost_pessimism=0.0, learning_rate=1e-3
    ),
    "constraint": ConstraintConfig(cost_limit=IslandsTask(1).cost_limit, penalty_coef=1.0),
    "multiplier": StatewiseALaMConfig(hidden=HIDDEN, learning_rate=1e-3),
}


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_algd_holds_both_islands_where_two_exist() -> None:
    policy = DiffusionPolicyConfig(
        hidden=HIDDEN, learning_rate=1e-3, temperature=TemperatureConfig(mode="raw", value=0.1)
    )
    agent = ALGDAgent(1, 1, ALGDConfig(policy=policy, **ISLANDS), episode_length=1, seed=0)
    train_on_islands(agent, steps=3000)
    both, infeasible = islands_of(agent)
    print(f"both islands in {both:.1%} of states, {infeasible:.2%} of samples infeasible")
    assert both >= 0.95
    assert infeasible <= 0.01


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_a_gaussian_policy_is_safe_on_the_islands_and_holds_one() -> None:
    policy = GaussianPolicyConfig(hidden=HIDDEN, entropy_coef=0.1, learning_rate=1e-3)
    agent = SACAgent(1, 1, SACConfig(policy=policy, **ISLANDS), episode_length=1, seed=0)
    train_on_islands(agent, steps=3000)
    both, infeasible = islands_of(agent)
    print(f"both islands in {both:.1%} of states, {infeasible:.2%} of samples infeasible")
    assert both < 0.05
    assert infeasible <= 0.01
