"""Constrained off-policy learning with augmented Lagrangians: torch, numpy and jaxtyping only.

In: batches of transitions (``ReplayBuffer``). Out: critics, multipliers and a Gaussian agent.
Relations: SAC-ALaM (arXiv 2605.00667) and the augmented Lagrangian it shares with ALGD
(arXiv 2602.02924). Every part can be used alone, the multiplier networks above all.
"""

from alam.critics import CriticConfig, SafeCritics, td_target
from alam.cvpo import CVPOAgent, CVPOConfig, CVPOPolicyConfig
from alam.gaussian import GaussianPolicy, GaussianPolicyConfig
from alam.lagrangian import (
    Constraint,
    ConstraintConfig,
    augmented_lagrangian,
    cost_threshold,
    dual_target,
)
from alam.multiplier import MULTIPLIERS, make_multiplier
from alam.multiplier_config import (
    FixedConfig,
    MultiplierConfig,
    ScalarADRCConfig,
    ScalarDualConfig,
    ScalarPIDConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)
from alam.replay import ReplayBuffer
from alam.sac import SACAgent, SACConfig
from alam.types import Agent, Batch, Metrics

__all__ = [
    "MULTIPLIERS",
    "Agent",
    "Batch",
    "CVPOAgent",
    "CVPOConfig",
    "CVPOPolicyConfig",
    "Constraint",
    "ConstraintConfig",
    "CriticConfig",
    "FixedConfig",
    "GaussianPolicy",
    "GaussianPolicyConfig",
    "Metrics",
    "MultiplierConfig",
    "ReplayBuffer",
    "SACAgent",
    "SACConfig",
    "SafeCritics",
    "ScalarADRCConfig",
    "ScalarDualConfig",
    "ScalarPIDConfig",
    "StatewiseALaMConfig",
    "StatewiseDualConfig",
    "augmented_lagrangian",
    "cost_threshold",
    "dual_target",
    "make_multiplier",
    "td_target",
]
