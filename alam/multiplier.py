"""Six ways to hold a Lagrange multiplier, behind one interface.

In: observations and constraint violations (positive = broken, in the unit of ``Constraint``).
Out: multipliers >= 0, one per observation. Scalar kinds return the same number everywhere.

    fixed            a constant
    scalar_dual      projected or log-space dual ascent (SAC-Lag)
    scalar_pid       PID control of the violation (Stooke et al. 2020, arXiv 2007.03964)
    scalar_adrc      active disturbance rejection control (arXiv 2601.18142)
    statewise_dual   a network trained by dual ascent (FAC, arXiv 2105.10682)
    statewise_alam   a network regressed to a lagged dual target (arXiv 2605.00667)

Choose with ``make_multiplier``; nothing downstream asks which kind it holds. ``update`` makes the
optimiser where ``build_optimizer`` has not, and is two halves: ``count_update`` keeps the counters,
on the host, and says what is due; ``take_update`` does that, asks the host for nothing, and can
stand in a CUDA graph (``alam.captured``).
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from alam.config import Config
from alam.lagrangian import dual_target
from alam.networks import MLP, make_adam, polyak_update
from alam.types import Metrics

Signal = Literal["policy", "replay", "episode"]
"""Where the violation comes from: fresh policy actions, replayed actions, or episode costs."""

Output = Literal["softplus", "squared", "relu"]
_OUTPUT_BIAS = -3.0  # softplus(-3) = 0.05: start near 0, which softplus itself never reaches
_AT_REST = 2.5e-3  # softplus(-6): what counts as 0
_AT_BOUND = 0.99  # share of the bound that counts as reached: regression meets it in the limit only


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


def require_rows(obs: Tensor, violation: Tensor) -> None:
    """Raise ValueError unless there is one violation per observation: (B, 1) would broadcast."""
    if violation.shape != obs.shape[:-1]:
        raise ValueError(
            f"violation must have shape {tuple(obs.shape[:-1])}, one per observation, got "
            f"{tuple(violation.shape)}"
        )


class FixedMultiplier(nn.Module):
    """A constant."""

    value: Tensor

    def __init__(self, config: FixedConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("value", torch.tensor(float(config.value)))

    def build_optimizer(self) -> None:
        """Nothing to optimise."""

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return the constant for every observation."""
        return self.value.expand(obs.shape[:-1])

    def observe_episode(self, violation: float) -> None:
        """Ignore episode costs."""

    def count_update(self) -> Any:
        """Count an update, on the host alone; return what is due in it, for ``take_update``."""
        return None

    def take_update(
        self,
        obs: Float[Tensor, "B O"],  # noqa: ARG002
        violation: Float[Tensor, " B"],
        due: Any,  # noqa: ARG002
    ) -> Metrics:
        """Learn nothing; report the value."""
        return {"train/multiplier": self.value, "train/violation": violation.detach().mean()}

    def update(self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"]) -> Metrics:
        """Learn from the violations of fresh actions in a batch of states.

        Raises:
            ValueError: there is not one violation per observation.
        """
        require_rows(obs, violation)
        if not hasattr(self, "optimizer"):
            self.build_optimizer()
        return self.take_update(obs, violation, self.count_update())

    def full_state(self) -> dict[str, Any]:
        """Return the constant."""
        return {"module": self.state_dict()}

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        self.load_state_dict(state["module"])


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


class MultiplierNetwork(nn.Module):
    """A perceptron with a non-negative output, started near 0.

    ``softplus`` never reaches 0; ``relu`` does, with a leaky gradient so that it cannot die;
    ``squared`` is smooth and does.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: tuple[int, ...],
        output: Output,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.output = output
        self.network = MLP((obs_dim,), hidden, 1, generator=generator)
        with torch.no_grad():
            start = {"softplus": _OUTPUT_BIAS, "squared": 0.2, "relu": 0.0}[output]
            self.network.biases[-1].fill_(start)

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return multipliers >= 0."""
        raw = self.network(obs).squeeze(-1)
        if self.output == "softplus":
            return F.softplus(raw)
        if self.output == "squared":
            return raw.square()
        leaky = F.leaky_relu(raw, 0.01)
        return leaky + (raw.clamp(min=0.0) - leaky).detach()


_Config = TypeVar("_Config", StatewiseDualConfig, StatewiseALaMConfig)


class StatewiseMultiplier(nn.Module, Generic[_Config]):
    """A network of multipliers over states, its Adam and its counter, without a rule to learn."""

    def __init__(
        self,
        config: _Config,
        obs_dim: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config: _Config = config
        self.network = MultiplierNetwork(obs_dim, config.hidden, config.output, generator=generator)
        self.num_updates = 0

    def build_optimizer(self) -> None:
        """Create Adam over the network."""
        self.optimizer = make_adam(
            list(self.network.parameters()), learning_rate=self.config.learning_rate
        )

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return multipliers clipped to [0, multiplier_max]."""
        return self.network(obs).clamp(max=self.config.multiplier_max)

    def observe_episode(self, violation: float) -> None:
        """Ignore episode costs: they belong to no single state."""

    def count_update(self) -> Any:
        """Count an update, on the host alone; return what is due in it, for ``take_update``."""
        raise NotImplementedError

    def take_update(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"], due: Any
    ) -> Metrics:
        """Do what is due, on the device alone."""
        raise NotImplementedError

    def update(self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"]) -> Metrics:
        """Learn from the violations of fresh actions in a batch of states.

        Raises:
            ValueError: there is not one violation per observation.
        """
        require_rows(obs, violation)
        if not hasattr(self, "optimizer"):
            self.build_optimizer()
        return self.take_update(obs, violation, self.count_update())

    def full_state(self) -> dict[str, Any]:
        """Return networks, optimiser and counter."""
        return {
            "module": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        self.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]


class StatewiseDual(StatewiseMultiplier[StatewiseDualConfig]):
    """Dual ascent on a network: gradient of -E[multiplier(s) * violation(s)]."""

    def loss(self, value: Float[Tensor, " B"], violation: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return -E[value * violation]; beyond the bound ascent stops, descent does not.

        A clipped multiplier would carry no gradient there, and so never come back. An output that
        reaches 0 stops there, as projected ascent does: what went on down would have to come back
        first. ``softplus`` goes on, as in FAC's code.
        """
        held = (value >= self.config.multiplier_max) & (violation > 0)
        if self.config.output != "softplus":
            held = held | ((value < _AT_REST) & (violation < 0))
        return -(torch.where(held, value.detach(), value) * violation).mean()

    def count_update(self) -> bool:
        """Count an update; return whether it takes a step, one every ``interval`` updates."""
        self.num_updates += 1
        return self.num_updates % self.config.interval == 0

    def take_update(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"], due: bool
    ) -> Metrics:
        """Take one step where it is due."""
        value, violation = self.network(obs), violation.detach()
        loss = self.loss(value, violation)
        if due:
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return network_metrics(self, value, violation, loss)


class DueALaM(NamedTuple):
    """What an update of ``StatewiseALaM`` does."""

    regression: bool
    lagged_copy: bool


class StatewiseALaM(StatewiseMultiplier[StatewiseALaMConfig]):
    """Regression of a network to the dual target of its own lagged copy (arXiv 2605.00667).

    Beware: without lag (rate 1, interval 1, one step) and with the hinge active the gradient of
    this loss is -penalty_coef * violation * grad multiplier, which is plain dual ascent.
    """

    def __init__(
        self,
        config: StatewiseALaMConfig,
        obs_dim: int,
        *,
        penalty_coef: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(config, obs_dim, generator=generator)
        self.penalty_coef = config.penalty_coef or penalty_coef
        self.lagged = deepcopy(self.network).requires_grad_(False)

    @torch.no_grad()
    def target(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the dual target of the lagged network, clipped to multiplier_max."""
        lagged = self.lagged(obs).clamp(max=self.config.multiplier_max)
        if self.config.target_hinge == "mean":
            return (lagged + self.penalty_coef * violation).clamp(max=self.config.multiplier_max)
        return dual_target(
            lagged,
            violation,
            penalty_coef=self.penalty_coef,
            multiplier_max=self.config.multiplier_max,
        )

    def loss(self, value: Float[Tensor, " B"], target: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return 1/2 E[(value - target)^2] of unclipped multipliers, which carry the gradient.

        A multiplier that is 0 is not pulled further down: it would have to come back first.
        """
        if self.config.target_hinge == "mean":  # else no target is below 0
            at_rest = (value < _AT_REST) & (target < value)
            value = torch.where(at_rest, value.detach(), value)
        return 0.5 * (value - target).square().mean()

    def count_update(self) -> DueALaM:
        """Count an update; return what is due in it."""
        self.num_updates += 1
        return DueALaM(
            regression=self.num_updates % self.config.interval == 0,
            lagged_copy=self.num_updates % self.config.dual_target_interval == 0,
        )

    def take_update(
        self, obs: Float[Tensor, "B O"], violation: Float[Tensor, " B"], due: DueALaM
    ) -> Metrics:
        """Regress ``dual_steps`` times to one target, then move the lagged copy, where due."""
        target = self.target(obs, violation)
        loss = torch.zeros((), device=obs.device)
        with torch.set_grad_enabled(due.regression):
            value: Tensor = self.network(obs)
        if due.regression:
            for step in range(self.config.dual_steps):
                loss = self.loss(self.network(obs) if step else value, target)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
        if due.lagged_copy:
            polyak_update(self.lagged, self.network, rate=self.config.dual_target_rate)
        return network_metrics(self, value, violation, loss)


@torch.no_grad()
def network_metrics(
    multiplier: StatewiseDual | StatewiseALaM, value: Tensor, violation: Tensor, loss: Tensor
) -> Metrics:
    """Report the multipliers that an update began with; ``value`` is the unclipped network's."""
    bound = multiplier.config.multiplier_max
    value = value.clamp(max=bound)
    at_bound = (value >= _AT_BOUND * bound).float().mean()
    return {
        "train/multiplier": value.mean(),
        "train/multiplier_std": value.std(unbiased=False),
        "train/multiplier_at_bound": at_bound,
        "train/violation": violation.mean(),
        "loss/multiplier": loss.detach(),
    }


Multiplier = FixedMultiplier | StatewiseDual | StatewiseALaM
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
