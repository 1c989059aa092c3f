"""Multipliers that are the same in every state: a constant, and three control laws.

In: violations of a batch, or of episodes. Out: one number >= 0, expanded over observations.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alam.multiplier_base import Multiplier
from alam.multiplier_config import FixedConfig, ScalarADRCConfig, ScalarDualConfig, ScalarPIDConfig
from alam.networks import make_adam
from alam.types import Metrics


class FixedMultiplier(Multiplier):
    """A constant."""

    value: Tensor

    def __init__(self, config: FixedConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("value", torch.tensor(float(config.value)))

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return the constant for every observation."""
        return self.value.expand(obs.shape[:-1])

    def take_update(
        self,
        obs: Float[Tensor, "B O"],  # noqa: ARG002
        violation: Float[Tensor, " B"],
        due: Any,  # noqa: ARG002
    ) -> Metrics:
        """Learn nothing; report the value."""
        return {"train/multiplier": self.value, "train/violation": violation.detach().mean()}


class ScalarMultiplier(FixedMultiplier):
    """One number moved by a control law once per ``interval`` updates.

    The law sees the mean of the signal since its last step: batch means of critic violations, or
    the costs of episodes that ended (no episode, no step). ``signal`` must arrive from fresh policy
    actions to be a constraint on the policy; the choice is the config's.
    """

    accumulated: Tensor

    def __init__(self, config: ScalarDualConfig | ScalarPIDConfig | ScalarADRCConfig) -> None:
        super().__init__(FixedConfig())
        self.law_config = config
        self.register_buffer("accumulated", torch.zeros(()))
        self.num_observed = 0
        self.num_updates = 0

    def observe_episode(self, violation: float) -> None:
        """Add the violation of a finished episode, if that is the signal."""
        if self.law_config.signal == "episode":
            self.accumulated += violation
            self.num_observed += 1

    def count_update(self) -> int:
        """Count an update; return how many signals the law steps on in it, 0 while it waits."""
        self.num_observed += self.law_config.signal != "episode"
        self.num_updates += 1
        if self.num_updates % self.law_config.interval:
            return 0
        observed, self.num_observed = self.num_observed, 0
        return observed

    @torch.no_grad()
    def take_update(
        self,
        obs: Float[Tensor, "B O"],  # noqa: ARG002
        violation: Float[Tensor, " B"],
        due: int,
    ) -> Metrics:
        """Accumulate the signal and step the law when its interval is full."""
        if self.law_config.signal != "episode":
            self.accumulated += violation.mean()
        if due:
            self.step(self.accumulated / due)
            self.value.clamp_(0.0, self.law_config.multiplier_max)
            self.accumulated.zero_()
        at_bound = (self.value >= self.law_config.multiplier_max).float()
        return {
            "train/multiplier": self.value.clone(),
            "train/violation": violation.mean(),
            "train/multiplier_at_bound": at_bound,
        }

    def step(self, violation: Float[Tensor, ""]) -> None:
        """Move ``value`` in place by the law; clipping to [0, multiplier_max] follows."""
        raise NotImplementedError

    def full_state(self) -> dict[str, Any]:
        """Return the law's state and counters."""
        counters = {"num_observed": self.num_observed, "num_updates": self.num_updates}
        return {"module": self.state_dict(), **counters}

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        super().load_full_state(state)
        self.num_observed = state["num_observed"]
        self.num_updates = state["num_updates"]


class ScalarDual(ScalarMultiplier):
    """value <- [value + learning_rate * violation]_+, or Adam on its logarithm."""

    def __init__(self, config: ScalarDualConfig) -> None:
        super().__init__(config)
        self.config = config
        self.value.fill_(config.initial_value)
        if config.parameterization == "log":
            self.log_value = nn.Parameter(torch.tensor(math.log(config.initial_value)))

    def build_optimizer(self) -> None:
        """Create Adam for the log parameterisation."""
        if self.config.parameterization == "log":
            self.optimizer = make_adam([self.log_value], learning_rate=self.config.learning_rate)

    def step(self, violation: Float[Tensor, ""]) -> None:
        """Ascend the dual function."""
        if self.config.parameterization == "projected":
            self.value += self.config.learning_rate * violation
            return
        self.log_value.grad = -self.log_value.exp() * violation
        self.optimizer.step()
        self.log_value.clamp_(max=math.log(self.config.multiplier_max))
        self.value.copy_(self.log_value.exp())

    def full_state(self) -> dict[str, Any]:
        """Return value, counters and, in log space, the optimiser."""
        state = super().full_state()
        if self.config.parameterization == "log":
            state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        super().load_full_state(state)
        if self.config.parameterization == "log":
            self.optimizer.load_state_dict(state["optimizer"])


class ScalarPID(ScalarMultiplier):
    """value = [k_p P + I + k_d D]_+ (arXiv 2007.03964).

    P is the smoothed violation, I <- [I + k_i violation]_+, and D the positive part of the rise of
    the smoothed violation over ``derivative_delay`` steps.
    """

    integral: Tensor
    proportional: Tensor
    history: Tensor

    def __init__(self, config: ScalarPIDConfig) -> None:
        super().__init__(config)
        self.config = config
        self.register_buffer("integral", torch.zeros(()))
        self.register_buffer("proportional", torch.zeros(()))
        self.register_buffer("history", torch.zeros(config.derivative_delay + 1))

    def step(self, violation: Float[Tensor, ""]) -> None:
        """Apply the three terms."""
        config = self.config
        self.proportional.lerp_(violation, 1.0 - config.proportional_smoothing)
        self.integral.add_(config.integral_gain * violation).clamp_(0.0, config.multiplier_max)
        smoothed = torch.lerp(self.history[-1], violation, 1.0 - config.derivative_smoothing)
        self.history.copy_(torch.cat([self.history[1:], smoothed[None]]))
        rise = torch.clamp(self.history[-1] - self.history[0], min=0.0)
        self.value.copy_(
            config.proportional_gain * self.proportional
            + self.integral
            + config.derivative_gain * rise
        )


class ScalarADRC(ScalarMultiplier):
    """value = (u0 - z3) / b0: cancel the estimated disturbance, then steer the violation to 0."""

    observer: Tensor
    reference: Tensor
    started: Tensor

    def __init__(self, config: ScalarADRCConfig) -> None:
        super().__init__(config)
        self.config = config
        self.register_buffer("observer", torch.zeros(3))
        self.register_buffer("reference", torch.zeros(2))
        self.register_buffer("started", torch.zeros(()))

    def step(self, violation: Float[Tensor, ""]) -> None:
        """Track, observe, and cancel."""
        config = self.config
        # The first measurement initialises observer and reference; later ones leave them alone.
        first = 1.0 - self.started
        self.observer[0] += first * violation
        self.reference[0] += first * violation
        self.started.fill_(1.0)
        # Tracking differentiator: critically damped second-order path from here to violation 0.
        rate = config.tracking_rate
        acceleration = -(rate**2) * self.reference[0] - 2.0 * rate * self.reference[1]
        self.reference[0] += self.reference[1]
        self.reference[1] += acceleration
        # Linear extended state observer, discrete poles at 1 - bandwidth.
        bandwidth = config.observer_bandwidth
        z1, z2, z3 = self.observer.unbind()
        error = violation - z1
        drive = z3 + config.input_gain * self.value
        gains = (3.0 * bandwidth, 3.0 * bandwidth**2, bandwidth**3)
        self.observer.copy_(
            torch.stack(
                [z1 + z2 + gains[0] * error, z2 + drive + gains[1] * error, z3 + gains[2] * error]
            )
        )
        stiffness = config.controller_bandwidth
        u0 = stiffness**2 * (self.reference[0] - self.observer[0]) + 2.0 * stiffness * (
            self.reference[1] - self.observer[1]
        )
        self.value.copy_((u0 - self.observer[2]) / config.input_gain)
