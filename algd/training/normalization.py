"""Running normalisation of observations and rewards.

In: raw observations and rewards as they are met. Out: observations of mean 0 and variance 1, with
their tails where asked for; the deviation of returns that rewards are divided by. Replay keeps raw
rows; they are normalised when sampled, with the statistics of that moment.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algd.training.train_config import TrainConfig

_CLIP = 10.0  # standard deviations
_VARIANCE_FLOOR = 1e-8  # a constant observation maps to 0
_TAIL_CLIP = 50.0
_TAIL_FLOOR = 0.01  # of an input's deviation: a shorter tail is not stretched further
_SAMPLE_ROWS = 4096  # that quantiles are taken of
_REFRESHES = 10  # of the tails, while the number of observations grows e-fold


def make_normalizer(config: TrainConfig, obs_dim: int) -> "Unnormalized":
    """Return the normaliser that a configuration asks for."""
    if not config.normalize_obs:
        return Unnormalized(obs_dim)
    if config.tail_share is None:
        return RunningNormalizer(obs_dim)
    return TailNormalizer(obs_dim, config.tail_share)


class Unnormalized:
    """Observations as they are, and what every normaliser does.

    Attributes:
        width: number of features that ``normalize`` returns.
    """

    def __init__(self, obs_dim: int) -> None:
        self.width = obs_dim

    def update(self, obs: Float[np.ndarray, "N O"]) -> None:
        """Take N more observations into account."""

    def normalize(self, obs: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "N F"]:
        """Return the features of observations."""
        return obs

    def normalize_tensor(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        """Return the same for a batch on its device."""
        return obs

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


class RunningNormalizer(Unnormalized):
    """Mean and variance of every observation so far, merged in batches (Chan et al. 1979)."""

    def __init__(self, obs_dim: int) -> None:
        super().__init__(obs_dim)
        self.count = 0
        self.mean = np.zeros(obs_dim)
        self.sum_squares = np.zeros(obs_dim)
        self._copies: dict[str, tuple[np.ndarray, Tensor]] = {}
        self._refresh()

    def update(self, obs: Float[np.ndarray, "N O"]) -> None:
        """Take N more observations into account."""
        if not len(obs):
            return
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

    def normalize(self, obs: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "N F"]:
        """Return normalised observations, clipped to 10 standard deviations."""
        return np.clip((obs - self._mean32) * self._scale32, -_CLIP, _CLIP)

    def normalize_tensor(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        """Return the same for a batch on its device."""
        mean, scale = self._on(obs.device, mean=self._mean32, scale=self._scale32)
        return ((obs - mean) * scale).clamp(-_CLIP, _CLIP)

    def _on(self, device: torch.device, **arrays: np.ndarray) -> Iterator[Tensor]:
        """Return statistics on a device; copied there once, as they are replaced, never written."""
        for name, array in arrays.items():
            if device.type == "cpu":
                yield torch.from_numpy(array)
                continue
            if name not in self._copies or self._copies[name][0] is not array:
                self._copies[name] = (array, torch.from_numpy(array).to(device))
            yield self._copies[name][1]

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"count": self.count, "mean": self.mean, "sum_squares": self.sum_squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.count = state["count"]
        self.mean = state["mean"]
        self.sum_squares = state["sum_squares"]
        self._refresh()


class TailNormalizer(RunningNormalizer):
    """Normalised observations, and behind them how far each entry is into its tails.

    The upper tail of an entry x is [x - q]_+, q the quantile that leaves ``share`` above it; the
    lower tail mirrors it; both are scaled to variance 1. What matters in rare states (a lidar
    reading that means a collision) so stands out by several deviations, instead of being the last
    few percent of a range. Quantiles are those of every k-th observation so far, k growing; they
    are taken anew whenever the number of observations has grown by a tenth.

    Args:
        obs_dim: O; ``width`` is 3 O.
        share: of observations in each tail.
    """

    def __init__(self, obs_dim: int, share: float) -> None:
        super().__init__(obs_dim)
        self.width = 3 * obs_dim
        self.share = share
        self.stride = 1
        self._sample = np.empty((_SAMPLE_ROWS, obs_dim), np.float32)
        self._kept = 0
        # Where the upper and the lower tail begin, and one over their deviations.
        self.starts, self.scales = np.zeros((2, 2, obs_dim), np.float32)

    def update(self, obs: Float[np.ndarray, "N O"]) -> None:
        """Take N more observations into account."""
        before = self.count
        super().update(obs)
        for index, row in enumerate(obs, before):
            if index % self.stride == 0:
                self._keep(row)
        if before == 0 or _stage(self.count) > _stage(before):
            self._refresh_tails()

    def _keep(self, row: Float[np.ndarray, " O"]) -> None:
        """Add an observation; when there is no more room, let go of every other one."""
        if self._kept == _SAMPLE_ROWS:
            self._sample[: _SAMPLE_ROWS // 2] = self._sample[::2]
            self._kept, self.stride = _SAMPLE_ROWS // 2, 2 * self.stride
        self._sample[self._kept] = row
        self._kept += 1

    def _refresh_tails(self) -> None:
        sample = self._sample[: self._kept].astype(np.float64)
        ends = np.quantile(sample, [1.0 - self.share, self.share], axis=0)
        starts = ends.astype(np.float32)
        upper, lower = np.maximum(sample - starts[0], 0.0), np.maximum(starts[1] - sample, 0.0)
        deviation = np.stack([upper.std(0), lower.std(0)])
        floor = _TAIL_FLOOR / self._scale32
        scales = np.where(deviation > 0.0, 1.0 / np.maximum(deviation, floor), 0.0)
        # New arrays, as in ``update`` above.
        self.starts, self.scales = starts, scales.astype(np.float32)

    def normalize(self, obs: Float[np.ndarray, "N O"]) -> Float[np.ndarray, "N F"]:
        """Return normalised observations with upper and lower tails, each (N, O)."""
        (upper, lower), (up, down) = self.starts, self.scales
        tails = np.concatenate([(obs - upper) * up, (lower - obs) * down], axis=-1)
        return np.concatenate([super().normalize(obs), np.clip(tails, 0.0, _TAIL_CLIP)], axis=-1)

    def normalize_tensor(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        """Return the same for a batch on its device."""
        (upper, lower), (up, down) = self._on(obs.device, starts=self.starts, scales=self.scales)
        tails = torch.cat([(obs - upper) * up, (lower - obs) * down], dim=-1)
        return torch.cat([super().normalize_tensor(obs), tails.clamp(0.0, _TAIL_CLIP)], dim=-1)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        tails = {"starts": self.starts, "scales": self.scales}
        kept = {"sample": self._sample[: self._kept].copy(), "stride": self.stride}
        return super().state_dict() | tails | kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; exported statistics have no sample."""
        super().load_state_dict(state)
        self.starts, self.scales = state["starts"], state["scales"]
        self.stride = state.get("stride", 1)
        sample = state.get("sample", self._sample[:0])
        self._kept = len(sample)
        self._sample[: self._kept] = sample


class ReturnDeviation:
    """Standard deviation of the discounted return so far: the unit that rewards are measured in.

    The return of an environment at a step is what its episode gave until then, the past discounted
    (Engstrom et al., arXiv 2005.12729, code-level optimisation 2). Rewards divided by the deviation
    make critics and multipliers of one size on every task.

    Args:
        num_envs: N, environments stepped together.
        discount: of the reward critic.
    """

    def __init__(self, num_envs: int, discount: float) -> None:
        self.discount = discount
        self.returns = np.zeros(num_envs)
        self._moments = RunningNormalizer(1)

    def update(
        self,
        reward: Float[np.ndarray, " N"],
        ended: Bool[np.ndarray, " N"],
        lost: Sequence[int] = (),
    ) -> None:
        """Take one step into account: its rewards, and where the episode ended.

        Of the rows ``lost`` the episode is over too, and nothing is known of the step.
        """
        self.returns = self.discount * self.returns + reward
        told = np.delete(self.returns, list(lost))
        if len(told):
            self._moments.update(told[:, None])
        self.returns[ended] = 0.0
        self.forget(lost)

    def forget(self, rows: Sequence[int]) -> None:
        """Begin anew in environments whose running episode was dropped."""
        self.returns[list(rows)] = 0.0

    @property
    def deviation(self) -> float:
        """The unit, in rewards; 1 while all returns were the same."""
        sum_squares = float(self._moments.sum_squares[0])
        return math.sqrt(sum_squares / self._moments.count) if sum_squares > 0.0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics."""
        return {"returns": self.returns.copy(), "moments": self._moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.returns = np.array(state["returns"])
        self._moments.load_state_dict(state["moments"])


def _stage(count: int) -> int:
    return int(_REFRESHES * math.log(count))
