"""Six ways to hold a Lagrange multiplier, behind one interface.

In: observations and constraint violations (positive = broken, in the unit of ``Constraint``).
Out: multipliers >= 0, one per observation. Scalar kinds return the same number everywhere.

    fixed            a constant
    scalar_dual      projected or log-space dual ascent (SAC-Lag)
    scalar_pid       PID control of the violation (Stooke et al. 2020, arXiv 2007.03964)
    scalar_adrc      active disturbance rejection control (arXiv 2601.18142)
    statewise_dual   a network trained by dual ascent (FAC, arXiv 2105.10682)
    statewise_alam   a network regressed to a lagged dual target (arXiv 2605.00667)

Choose with ``make_multiplier``; nothing downstream asks which kind it holds, since all of them are
a ``Multiplier`` (``alam.multiplier_base``).
"""

from typing import get_args

import torch

from alam.multiplier_base import Multiplier
from alam.multiplier_config import (
    FixedConfig,
    MultiplierConfig,
    ScalarADRCConfig,
    ScalarDualConfig,
    ScalarPIDConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)
from alam.scalar_multipliers import FixedMultiplier, ScalarADRC, ScalarDual, ScalarPID
from alam.statewise_multipliers import StatewiseALaM, StatewiseDual

MULTIPLIERS: tuple[str, ...] = tuple(config().kind for config in get_args(MultiplierConfig))


def make_multiplier(
    config: MultiplierConfig,
    obs_dim: int,
    *,
    penalty_coef: float,
    generator: torch.Generator | None = None,
) -> Multiplier:
    """Build the multiplier that a config describes.

    Args:
        config: one of the six kinds.
        obs_dim: width of the observation, for the networks.
        penalty_coef: of the constraint, for the dual target.
        generator: source of initial weights.

    Raises:
        TypeError: ``config`` is none of the six.
    """
    match config:
        case FixedConfig():
            return FixedMultiplier(config)
        case ScalarDualConfig():
            return ScalarDual(config)
        case ScalarPIDConfig():
            return ScalarPID(config)
        case ScalarADRCConfig():
            return ScalarADRC(config)
        case StatewiseDualConfig():
            return StatewiseDual(config, obs_dim, generator=generator)
        case StatewiseALaMConfig():
            return StatewiseALaM(config, obs_dim, penalty_coef=penalty_coef, generator=generator)
        case _:
            names = ", ".join(kind.__name__ for kind in get_args(MultiplierConfig))
            raise TypeError(f"config must be one of {names}, got {config!r}")
