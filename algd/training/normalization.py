"""Running normalisation of observations.

In: raw observations as they are met. Out: observations of mean 0 and variance 1. Replay keeps raw
rows; they are normalised when sampled, with the statistics of that moment.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_CLIP = 10.0  # standard deviations
_VARIANCE_FLOOR = 1e-8  # a constant observation maps to 0


class RunningNormalizer:
    """Mean and variance of every observation so far, merged in batches (Chan et al. 1979)."""

    def __init__(self, obs_dim: int) -> None:
        self.count = 0
        self.mean = np.zeros(obs_dim)
        self.sum_squares = np.zeros(obs_dim)
        self._refresh()

    def update(self, obs: Float[np.ndarray, "N O"]) -> None:
        """Take N more observations into account."""
        batch = obs.astype(np.float64)
        total = self.count + len(batch)
        delta = batch.mean(0) - self.mean
        within = ((batch - batch.mean(0)) ** 2).sum(0)
        between = delta**2 * self.count * len(batch) / total
        # A new array: states handed out or loaded before share nothing with later statistics.
        self.sum_squares = self.sum_squares + within + between
        self.mean = self.mean + delta * len(batch) / total
        self.count = total
        self._refresh()

    def _refresh(self) -> None:
        variance = self.sum_squares / self.count if self.count else np.ones_like(self.mean)
        scale = 1.0 / np.sqrt(variance + _VARIANCE_FLOOR)
        self._mean32 = self.mean.astype(np.float32)
        self._scale32 = scale.astype(np.float32)

    def normalize(self, obs: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "N O"]:
        """Return normalised observations, clipped to 10 standard deviations."""
        return np.clip((obs - self._mean32) * self._scale32, -_CLIP, _CLIP)

    def normalize_tensor(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B O"]:
        """Return the same for a batch on its device."""
        mean = torch.from_numpy(self._mean32).to(obs.device)
        scale = torch.from_numpy(self._scale32).to(obs.device)
        return ((obs - mean) * scale).clamp(-_CLIP, _CLIP)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"count": self.count, "mean": self.mean, "sum_squares": self.sum_squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count = state["count"]
        self.mean = state["mean"]
        self.sum_squares = state["sum_squares"]
        self._refresh()
