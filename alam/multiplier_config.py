"""Settings of the six kinds of multiplier; which is which: ``alam.multiplier``.

In: values. Out: checked, frozen dataclasses, told apart by ``kind``.
"""

import math
from dataclasses import dataclass
from typing import Literal

from alam.config import Config

Signal = Literal["policy", "replay", "episode"]
"""Where the violation comes from: fresh policy actions, replayed actions, or episode costs."""

Output = Literal["softplus", "squared", "relu"]


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0 or not math.isfinite(value):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _require_non_negative(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= 0 or not math.isfinite(value):
            raise ValueError(f"{name} must be >= 0 and finite, got {value}")


@dataclass(frozen=True)
class FixedConfig(Config):
    """A constant multiplier; 0 without augmentation is unconstrained learning.

    value: the multiplier. signal: read, but nothing learns from it.
    """

    kind: Literal["fixed"] = "fixed"
    value: float = 0.0
    signal: Literal["policy"] = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_non_negative(self, "value")


@dataclass(frozen=True)
class ScalarDualConfig(Config):
    """Dual ascent on one number.

    parameterization: ``projected`` gradient ascent clipped at 0, or ``log``: Adam on the logarithm
        (the released ALGD code, which starts at 0.6931 and reads replayed actions).
    interval: updates averaged into one step.
    signal: what the violation is measured on: fresh ``policy`` actions, the ``replay`` buffer, or
        the cost of finished training ``episode``s.
    learning_rate: step of the ascent. initial_value, multiplier_max: where it starts, and its
        bound.
    """

    kind: Literal["scalar_dual"] = "scalar_dual"
    signal: Signal = "policy"
    parameterization: Literal["projected", "log"] = "projected"
    learning_rate: float = 1e-3
    initial_value: float = 0.0
    interval: int = 1
    multiplier_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "learning_rate", "interval", "multiplier_max")
        _require_non_negative(self, "initial_value")
        if self.initial_value > self.multiplier_max:
            raise ValueError(
                f"initial_value must be <= multiplier_max ({self.multiplier_max}), got "
                f"{self.initial_value}"
            )
        if self.parameterization == "log" and self.initial_value == 0.0:
            raise ValueError(
                "initial_value must be > 0 with parameterization 'log', got 0.0 "
                "(the released code starts at 0.6931)"
            )


@dataclass(frozen=True)
class ScalarPIDConfig(Config):
    """PID control of the mean violation (arXiv 2007.03964).

    Gains act on the violation averaged over ``interval`` updates. ``derivative_delay`` counts
    steps of the controller.

    signal: what the violation is measured on: fresh ``policy`` actions, the ``replay`` buffer, or
        the cost of finished training ``episode``s.
    proportional_gain, integral_gain, derivative_gain: k_p, k_i, k_d.
    proportional_smoothing, derivative_smoothing: decay per controller step of the averages that the
        terms read.
    derivative_delay: controller steps that a rise is measured over. interval: updates per
        controller step. multiplier_max: bound of the multiplier.
    """

    kind: Literal["scalar_pid"] = "scalar_pid"
    signal: Signal = "policy"
    proportional_gain: float = 0.1
    integral_gain: float = 0.01
    derivative_gain: float = 0.01
    proportional_smoothing: float = 0.95
    derivative_smoothing: float = 0.95
    derivative_delay: int = 10
    interval: int = 10
    multiplier_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_non_negative(self, "proportional_gain", "integral_gain", "derivative_gain")
        _require_positive(self, "derivative_delay", "interval", "multiplier_max")
        for name in ("proportional_smoothing", "derivative_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True)
class ScalarADRCConfig(Config):
    """Active disturbance rejection control of the mean violation (arXiv 2601.18142).

    A tracking differentiator smooths the way to violation 0, a linear extended state observer of
    bandwidth ``observer_bandwidth`` estimates the violation, its rate and the total disturbance
    z3, and the multiplier is (u0 - z3) / b0 with ``input_gain`` b0 < 0, since a larger multiplier
    lowers the cost. Rates are per controller step of ``interval`` updates.

    signal: what the violation is measured on: fresh ``policy`` actions, the ``replay`` buffer, or
        the cost of finished training ``episode``s.
    controller_bandwidth, observer_bandwidth, tracking_rate: per controller step. input_gain: b0 <
        0.
    interval: updates per controller step. multiplier_max: bound of the multiplier.
    """

    kind: Literal["scalar_adrc"] = "scalar_adrc"
    signal: Signal = "policy"
    controller_bandwidth: float = 0.05
    observer_bandwidth: float = 0.25
    tracking_rate: float = 0.05
    input_gain: float = -0.01
    interval: int = 10
    multiplier_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "controller_bandwidth", "interval", "multiplier_max")
        for name in ("observer_bandwidth", "tracking_rate"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in (0, 1) per step, got {getattr(self, name)}")
        if not self.input_gain < 0:
            raise ValueError(f"input_gain must be negative, got {self.input_gain}")


@dataclass(frozen=True)
class StatewiseDualConfig(Config):
    """A multiplier network under dual ascent: the gradient of E[multiplier(s) * violation].

    The published settings of FAC are learning_rate 5e-6, interval 12, signal replay.

    signal: violation of fresh ``policy`` actions, or of those in the ``replay`` buffer.
    hidden, output: of the network; ``softplus`` never reaches 0, ``relu`` and ``squared`` do.
    learning_rate, interval: of its Adam, and updates per step. multiplier_max: bound of its output.
    """

    kind: Literal["statewise_dual"] = "statewise_dual"
    signal: Literal["policy", "replay"] = "policy"
    hidden: tuple[int, ...] = (256, 256)
    output: Output = "softplus"
    learning_rate: float = 5e-6
    interval: int = 12
    multiplier_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "learning_rate", "interval", "multiplier_max")


@dataclass(frozen=True)
class StatewiseALaMConfig(Config):
    """A multiplier network regressed to a lagged dual target (arXiv 2605.00667).

    dual_target_rate, dual_target_interval: the lagged network moves by this Polyak rate every so
        many updates (1.0 and M: a hard copy every M).
    dual_steps: regression steps per target.
    penalty_coef: of the dual target; None takes the constraint's.
    target_hinge: ``sample`` hinges the target of each action; ``mean`` leaves the target unhinged,
        so that regression onto a non-negative network yields the hinge of the mean over actions,
        whose fixed point is E[violation] = 0 also for a stochastic policy (ours).
    signal: violation of fresh ``policy`` actions, or of those in the ``replay`` buffer.
    hidden, output: of the network; ``softplus`` never reaches 0, ``relu`` and ``squared`` do.
    learning_rate, interval: of its Adam, and updates per target. multiplier_max: bound of its
        output.
    """

    kind: Literal["statewise_alam"] = "statewise_alam"
    signal: Literal["policy", "replay"] = "policy"
    hidden: tuple[int, ...] = (256, 256)
    output: Output = "softplus"
    learning_rate: float = 3e-4
    dual_target_rate: float = 1.0
    dual_target_interval: int = 100
    dual_steps: int = 1
    penalty_coef: float | None = None
    target_hinge: Literal["sample", "mean"] = "sample"
    interval: int = 1
    multiplier_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positive(self, "learning_rate", "dual_target_interval", "dual_steps", "interval")
        _require_positive(self, "multiplier_max")
        if self.penalty_coef is not None:
            _require_positive(self, "penalty_coef")
        if not 0.0 < self.dual_target_rate <= 1.0:
            raise ValueError(f"dual_target_rate must be in (0, 1], got {self.dual_target_rate}")


MultiplierConfig = (
    FixedConfig
    | ScalarDualConfig
    | ScalarPIDConfig
    | ScalarADRCConfig
    | StatewiseDualConfig
    | StatewiseALaMConfig
)
