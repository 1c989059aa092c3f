"""Configurations made by hand instead of from a file: what pydantic would have refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from environments.faulty_envs import CountingEnv

from alam import (
    ConstraintConfig,
    CriticConfig,
    CVPOConfig,
    FixedConfig,
    GaussianPolicyConfig,
    SACConfig,
    ScalarDualConfig,
    StatewiseDualConfig,
)
from alam.cvpo import CVPOPolicyConfig
from algd.diffusion.agent import ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.schedule import ScheduleConfig
from algd.diffusion.temperature import TemperatureConfig
from algd.environments.make import EnvConfig, make_env
from algd.errors import ConfigError
from algd.experiments.config import ExperimentConfig
from algd.training.evaluation import EvaluationConfig
from algd.training.train_config import TrainConfig

PLAIN: Any = {"constraint": ConstraintConfig(augmented=False), "multiplier": FixedConfig()}
RISK = CriticConfig(cost_target="reachability")


@pytest.mark.parametrize(
    ("make", "key", "value", "says"),
    [
        (ConstraintConfig, "unit", "treshold", "one of 'threshold', 'raw', got 'treshold'"),
        (ConstraintConfig, "augmented", "false", "true or false, got 'false'"),
        (ConstraintConfig, "cost_limit", "25", "a number, got '25'"),
        (CriticConfig, "cost_target", "discount", "one of 'discounted', 'reachability'"),
        (CriticConfig, "hidden", 64, "a list, each of it a whole number, got 64"),
        (CriticConfig, "hidden", (64, 6.5), "a list, each of it a whole number"),
        (CriticConfig, "bootstrap_pessimism", "none", "a number or null, got 'none'"),
        (GaussianPolicyConfig, "entropy_coef", "aut", "a number or 'auto', got 'aut'"),
        (ScheduleConfig, "kind", "VE", "one of 've', 'vp', got 'VE'"),
        (ScheduleConfig, "num_inference_steps", 2.5, "a whole number or null, got 2.5"),
        (TemperatureConfig, "mode", "rel", "one of 'raw', 'relative', 'entropy', got 'rel'"),
        (ScalarDualConfig, "parameterization", "Log", "one of 'projected', 'log', got 'Log'"),
        (ScalarDualConfig, "interval", 0.5, "a whole number, got 0.5"),
        (ScalarDualConfig, "interval", True, "a whole number, got True"),
        (StatewiseDualConfig, "signal", "episode", "one of 'policy', 'replay', got 'episode'"),
        (TrainConfig, "device", "gpu", "one of 'auto', 'cpu', 'cuda', got 'gpu'"),
        (EvaluationConfig, "mode", "Deterministic", "one of 'deterministic', 'stochastic'"),
        (SACConfig, "multiplier", "scalar_pid", "a FixedConfig or a ScalarDualConfig"),
        (ALGDConfig, "policy", GaussianPolicyConfig(), "got a GaussianPolicyConfig"),
        (ExperimentConfig, "seed", "3", "a whole number, got '3'"),
        (ExperimentConfig, "env", "SafetyPointGoal1-v0", "a EnvConfig, got 'SafetyPointGoal1-v0'"),
    ],
)
def test_a_value_of_another_type_or_word_is_one_line(
    make: Callable[..., Any], key: str, value: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=f"^{key} must be ") as caught:
        make(**{key: value})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_and_lists_of_any_library_are_values() -> None:
    config = CriticConfig(hidden=[8, np.int64(8)], discount=np.float32(0.5), cost_pessimism=1)  # type: ignore[arg-type]
    assert config.discount == 0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: SACConfig(critics=RISK, multiplier=ScalarDualConfig(signal="episode")),
            "multiplier.signal: episode needs critics.cost_target: discounted",
        ),
        (
            lambda: ALGDConfig(critics=RISK, constraint=ConstraintConfig(calibration_rate=0.1)),
            "constraint.calibration_rate needs critics.cost_target: discounted",
        ),
        (
            lambda: SACConfig(
                constraint=ConstraintConfig(augmented=False, calibration_rate=0.1),
                multiplier=FixedConfig(),
            ),
            "constraint.calibration_rate needs what reads the threshold",
        ),
        (
            lambda: ALGDConfig(constraint=ConstraintConfig(hinge="batch")),
            "constraint.hinge: batch needs policy.kind: gaussian",
        ),
        (
            lambda: CVPOConfig(constraint=ConstraintConfig(augmented=False, hinge="batch")),
            "constraint.hinge: batch needs policy.kind: gaussian",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_every_agent(
    make: Callable[[], Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_an_experiment_refuses_what_its_agent_refuses() -> None:
    with pytest.raises(ValueError, match="hinge: batch needs policy"):
        ExperimentConfig(policy=DiffusionPolicyConfig(), constraint=ConstraintConfig(hinge="batch"))
    with pytest.raises(ValueError, match="augmented must be false with policy"):
        ExperimentConfig(policy=CVPOPolicyConfig(), multiplier=FixedConfig())
    assert ExperimentConfig(policy=CVPOPolicyConfig(), **PLAIN).policy.kind == "cvpo"


def test_a_function_or_an_environment_in_place_of_a_name_is_told_where_it_goes() -> None:
    with pytest.raises(ValueError, match=r"got a function; .*CostEnv\(env, env_id="):
        EnvConfig(id="Pendulum-v1", cost_fn=lambda *_: 0.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got a CountingEnv; .*CostEnv\(env, env_id="):
        make_env(CountingEnv())  # type: ignore[arg-type]


def test_the_loop_of_the_readme_runs() -> None:
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    (loop,) = (
        code for code in re.findall(r"```python\n(.*?)```", readme, re.S) if "replay" in code
    )
    assert "range(10_000)" in loop
    names: dict[str, Any] = {}
    exec(loop.replace("range(10_000)", "range(3)"), names)
    names["env"].close()
    assert len(names["replay"]) == 12
    assert all(torch.isfinite(value) for value in names["metrics"].values())
