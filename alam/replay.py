"""Replay: one packed table of transitions, numpy-writable, sampled with one gather.

In: transitions of N environments per step. Out: ``Batch`` views of uniformly drawn rows.
A row holds observation, action, reward, cost, next observation and termination side by side, so
that a sample costs one indexed read. The memory is reserved, and touched only as rows arrive.
"""

import mmap
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from alam.types import Batch

_HUGE_PAGE = 1 << 21  # bytes
_SCALARS = ("reward", "cost", "terminated")


def reserve(rows: int, width: int, device: torch.device | str) -> Float[Tensor, "N W"]:
    """Return zeros in float32 that cost no memory before they are written.

    On Linux they lie on pages of 2 MB where the system has them: a batch touches its rows in
    random order, and on pages of 4 kB nearly each of them waits for the page to be looked up.
    """
    size = 4 * rows * width
    anywhere = torch.device(device).type != "cpu" or size < _HUGE_PAGE
    if anywhere or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(rows, width, dtype=torch.float32, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, width)


class ReplayBuffer:
    """A ring of the last ``capacity`` transitions in float32.

    Args:
        capacity: rows kept; the oldest are overwritten.
        obs_dim, action_dim: widths of observation and action.
        device: where batches live. On a CPU the table is shared with numpy; elsewhere rows are
            copied over as they are added.

    ``total_added`` counts every transition ever added; row number n lives in slot n % capacity.
    """

    def __init__(
        self,
        capacity: int,
        obs_dim: int,
        action_dim: int,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self.capacity = capacity
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.total_added = 0
        self.widths = [obs_dim, action_dim, 1, 1, obs_dim, 1]
        self.table = reserve(capacity, sum(self.widths), device)

    def __len__(self) -> int:
        return min(self.total_added, self.capacity)

    def add(
        self,
        obs: Float[np.ndarray, "N O"],
        action: Float[np.ndarray, "N A"],
        reward: Float[np.ndarray, " N"],
        cost: Float[np.ndarray, " N"],
        next_obs: Float[np.ndarray, "N O"],
        terminated: np.ndarray,
    ) -> None:
        """Append N transitions (actions normalised to [-1, 1]).

        Raises:
            ValueError: an array has another shape.
        """
        self._check(obs, action, reward, cost, next_obs, terminated)
        rows = np.concatenate(
            [
                obs,
                action,
                np.asarray(reward)[:, None],
                np.asarray(cost)[:, None],
                next_obs,
                np.asarray(terminated)[:, None],
            ],
            axis=1,
            dtype=np.float32,
        )
        self.append_rows(torch.from_numpy(rows))

    def _check(self, obs: np.ndarray, *columns: np.ndarray) -> None:
        rows = len(obs) if np.ndim(obs) else 0
        for name, width, column in zip(Batch._fields, self.widths, (obs, *columns), strict=True):
            expected = (rows,) if name in _SCALARS else (rows, width)
            if np.shape(column) != expected:
                raise ValueError(f"{name} must have shape {expected}, got {np.shape(column)}")

    def append_rows(self, rows: Float[Tensor, "N W"]) -> None:
        """Append packed rows, as ``rows`` returns them; at most ``capacity`` at once."""
        if len(rows) > self.capacity:
            raise ValueError(f"at most {self.capacity} rows fit at once, got {len(rows)}")
        start = self.total_added % self.capacity
        first = min(len(rows), self.capacity - start)
        self.table[start : start + first] = rows[:first]
        self.table[: len(rows) - first] = rows[first:]
        self.total_added += len(rows)

    def rows(self, first: int, last: int) -> Float[Tensor, "N W"]:
        """Return a copy of the packed rows numbered first (included) to last (excluded)."""
        oldest = self.total_added - len(self)
        if not oldest <= first <= last <= self.total_added:
            raise ValueError(
                f"rows {first} to {last} are not held; held are {oldest} to {self.total_added}"
            )
        slots = torch.arange(first, last, device=self.table.device) % self.capacity
        return self.table.index_select(0, slots)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw rows uniformly with replacement."""
        slots = self.draw_slots(batch_size, generator)
        return self.unpack(self.table.index_select(0, slots))

    def draw_slots(self, batch_size: int, generator: torch.Generator) -> Int[Tensor, " B"]:
        """Draw the places of rows in the table.

        Raises:
            ValueError: it holds none.
        """
        if not self.total_added:
            raise ValueError("the replay buffer is empty; add transitions before sampling")
        slots = torch.randint(
            len(self), (batch_size,), generator=generator, device=generator.device
        )
        return slots.to(self.table.device) if self.table.is_cuda else slots

    def unpack(self, rows: Float[Tensor, "*Z B W"]) -> Batch:
        """Return the columns of packed rows as views."""
        obs, action, reward, cost, next_obs, terminated = rows.split_with_sizes(self.widths, -1)
        return Batch(
            obs, action, reward.squeeze_(-1), cost.squeeze_(-1), next_obs, terminated.squeeze_(-1)
        )
