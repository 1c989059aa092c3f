"""What passes between the parts: a batch of transitions, metrics, and the shape of an agent.

Legend of dimensions, where a docstring says nothing else: B batch, O observation, A action, E
ensemble member, S score sample, T denoising step, N environment.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

Metrics = dict[str, Tensor]
"""Detached scalar tensors by name; nobody reads them on the host inside ``update``."""


class Batch(NamedTuple):
    """Transitions; actions are normalised to [-1, 1].

    ``terminated`` is 1.0 where the successor is an absorbing end. A time limit (truncation) is
    not an end: such rows carry 0.0 and their true final observation in ``next_obs``.
    """

    obs: Float[Tensor, "B O"]
    action: Float[Tensor, "B A"]
    reward: Float[Tensor, " B"]
    cost: Float[Tensor, " B"]
    next_obs: Float[Tensor, "B O"]
    terminated: Float[Tensor, " B"]


def require_batch(batch: Batch, obs_dim: int, action_dim: int) -> None:
    """Raise ValueError unless every column has its shape: (B, 1) for (B,) would broadcast."""
    rows = batch.obs.shape[:-1]
    widths = {"obs": obs_dim, "action": action_dim, "next_obs": obs_dim}
    for name, column in batch._asdict().items():
        expected = (*rows, widths[name]) if name in widths else tuple(rows)
        if tuple(column.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(column.shape)}")


class Due(NamedTuple):
    """What is due in one update besides the critics: which intervals are full.

    It is all that an update knows of the updates before it, weights and noise aside; so updates of
    which the same is due run the same kernels.
    """

    policy: bool
    targets: bool
    """Whether the target critics move."""
    multiplier: Any
    """What ``count_update`` of the multiplier returned, None where the policy is not due."""


class Updatable(Protocol):
    """An update in two halves, so that the second can be captured: an agent, or several at once."""

    def count_update(self) -> Due:
        """Count an update of every part, on the host alone; return what is due in it."""
        ...

    def take_update(self, batch: Batch, due: Due) -> Metrics:
        """Do what is due, on the device alone: a CUDA graph can hold it."""
        ...

    @property
    def generators(self) -> list[torch.Generator]:
        """Where updates draw their noise."""
        ...

    def hold_learning_rates_on_device(self) -> None:
        """Turn learning rates into tensors, which a captured update reads anew."""
        ...

    @property
    def holds_learning_rates_on_device(self) -> bool:
        """Return whether they are tensors; loading a state makes them numbers again."""
        ...


class Agent(Updatable, Protocol):
    """What the trainer needs of an agent; environment, replay and files never enter it."""

    def act(
        self,
        obs: Num[np.ndarray, "N O"],
        *,
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> Float[np.ndarray, "N A"]:
        """Return normalised actions in [-1, 1] for N observations."""
        ...

    def update(self, batch: Batch) -> Metrics:
        """Take one gradient step of every part and return detached scalars.

        The same as ``take_update(batch, count_update())``.
        """
        ...

    def observe_episode_cost(self, cost: float) -> None:
        """Tell the multiplier the undiscounted cost of a finished episode."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a bitwise continuation needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...
