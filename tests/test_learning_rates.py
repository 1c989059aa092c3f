"""Rates that fall with training: every optimiser, from its own rate, by the share asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import algd
from alam.cvpo import CVPOAgent, CVPOConfig
from alam.multiplier_config import FixedConfig, StatewiseALaMConfig
from alam.sac import SACAgent, SACConfig
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.temperature import TemperatureConfig
from algd.experiments.config import load_config
from algd.training.train_config import TrainConfig
from algd.training.trainer import Trainer, train


def rates(agent) -> list[float]:
    holders = (agent, agent.critics, agent.multiplier, getattr(agent, "temperature", None))
    found = (value for holder in holders if holder is not None for value in vars(holder).values())
    optimizers = [value for value in found if isinstance(value, torch.optim.Optimizer)]
    return [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        (SACAgent, SACConfig(multiplier=StatewiseALaMConfig(learning_rate=1e-2)), 4),
        (SACAgent, SACConfig(multiplier=FixedConfig()), 3),
        (
            ALGDAgent,
            ALGDConfig(policy=DiffusionPolicyConfig(temperature=TemperatureConfig(mode="entropy"))),
            4,
        ),
        (CVPOAgent, CVPOConfig(), 2),
    ],
    ids=["sac_alam", "sac", "algd", "cvpo"],
)
def test_every_rate_is_scaled_from_the_one_it_was_built_with(kind, config, count):
    agent = kind(3, 2, config, episode_length=10, seed=0)
    built = rates(agent)
    assert len(built) == count
    for scale in (0.5, 0.1, 1.0):  # scales do not multiply up
        agent.scale_learning_rates(scale)
        assert rates(agent) == pytest.approx([scale * rate for rate in built])


def test_a_restored_agent_still_knows_the_rates_it_was_built_with():
    first, second = (SACAgent(3, 2, SACConfig(), episode_length=10, seed=0) for _ in range(2))
    built = rates(first)
    first.scale_learning_rates(0.5)
    second.load_state_dict(first.state_dict())
    second.scale_learning_rates(0.1)
    assert rates(second) == pytest.approx([0.1 * rate for rate in built])


def test_rates_fall_linearly_to_their_share_over_a_run(tmp_path: Path):
    settings = {
        "env.id": "AnalyticBandit1-v0",
        "train.total_steps": 60,
        "train.learning_starts": 20,
        "train.batch_size": 8,
        "train.final_learning_rate": 0.25,
        "critics.hidden": [8],
        "critics.learning_rate": 1e-2,
        "policy.hidden": [8],
        "tracking.wandb": "disabled",
        "tracking.progress": False,
        "evaluation.video": False,
        "evaluation.episodes": 1,
    }
    train(load_config(["sac"], settings), tmp_path / "run")
    agent = algd.load(tmp_path / "run").agent
    assert agent.num_updates == 41
    group = agent.critics.optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.25 * 1e-2)
    assert group["initial_lr"] == 1e-2


def test_half_way_to_the_end_half_of_the_fall_is_done():
    scales = {}
    trainer = Trainer.__new__(Trainer)
    settings = {"train.total_steps": 60, "train.learning_starts": 20}
    trainer.config = load_config(["sac"], settings | {"train.final_learning_rate": 0.2})
    trainer.agent = SimpleNamespace(scale_learning_rates=lambda s: scales.update({step: s}))
    for step in (10, 20, 30, 40, 60):
        trainer.env_step = step
        trainer._decay_learning_rates()
    assert scales == pytest.approx({10: 1.0, 20: 1.0, 30: 0.8, 40: 0.6, 60: 0.2})


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"^final_learning_rate must be in \(0, 1\], got"):
        TrainConfig(final_learning_rate=share)
