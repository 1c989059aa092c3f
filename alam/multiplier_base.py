"""The interface of multipliers, and what all of them share.

In: observations and violations. Out: multipliers, metrics of an update, a state to save.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from alam.types import Metrics


def require_rows(obs: Tensor, violation: Tensor) -> None:
    """Raise ValueError unless there is one violation per observation: (B, 1) would broadcast."""
    if violation.shape != obs.shape[:-1]:
        raise ValueError(
            f"violation must have shape {tuple(obs.shape[:-1])}, one per observation, got "
            f"{tuple(violation.shape)}"
        )


class Multiplier(nn.Module):
    """Multipliers >= 0, one per observation, that learn in two halves.

    ``count_update`` keeps the counters, on the host, and says what is due; ``take_update`` does
    that, asks the host for nothing, and can stand in a CUDA graph (``alam.captured``).
    """

    config: Any
    """Of its kind, with the ``signal`` that it learns from."""

    def build_optimizer(self) -> None:
        """Make the optimiser, where there is one; ``update`` does so if nobody has."""

    def forward(self, obs: Float[Tensor, "*B O"]) -> Float[Tensor, "*B"]:
        """Return the multiplier of every observation."""
        raise NotImplementedError

    def observe_episode(self, violation: float) -> None:
        """Hear the violation of a finished episode; ignored by all but those that learn from it."""

    def count_update(self) -> Any:
        """Count an update, on the host alone; return what is due in it, for ``take_update``."""
        return None

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
        """Return all that a resume needs: here, parameters and buffers."""
        return {"module": self.state_dict()}

    def load_full_state(self, state: dict[str, Any]) -> None:
        """Restore what ``full_state`` returned."""
        self.load_state_dict(state["module"])
