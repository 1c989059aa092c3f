"""What the tests of checkpoints share: tiny replay, exact comparison, files on the disk."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alam.replay import ReplayBuffer
from algd.training.checkpoint import CheckpointStore, claim_run_dir

OBS_DIM, ACTION_DIM = 3, 2
ROW_WIDTH = 2 * OBS_DIM + ACTION_DIM + 3
ROWS_PER_SEGMENT = 16


def make_replay(capacity: int = 50) -> ReplayBuffer:
    return ReplayBuffer(capacity, OBS_DIM, ACTION_DIM)


def add_rows(replay: ReplayBuffer, count: int, *, seed: int | None = None) -> None:
    """Add rows that are a function of their number, or random ones."""
    first = replay.total_added
    if seed is None:
        rows = torch.arange(first * ROW_WIDTH, (first + count) * ROW_WIDTH, dtype=torch.float32)
    else:
        rows = torch.randn(count * ROW_WIDTH, generator=torch.Generator().manual_seed(seed))
    for part in rows.reshape(count, ROW_WIDTH).split(replay.capacity):
        replay.append_rows(part)


def open_store(run_dir: Path, **options: Any) -> CheckpointStore:
    return CheckpointStore(run_dir, **{"rows_per_segment": ROWS_PER_SEGMENT, **options})


def make_run(run_dir: Path, steps: list[int], *, capacity: int = 50) -> ReplayBuffer:
    """Save a checkpoint at every step, with as many rows as steps; return the last replay."""
    claim_run_dir(run_dir)
    store, replay = open_store(run_dir), make_replay(capacity)
    for step in steps:
        add_rows(replay, step - replay.total_added)
        store.save(step, tree_of(step), replay)
    return replay


def tree_of(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((4,), float(step)), "mean": np.arange(3) / 7}


def assert_restores(run_dir: Path, replay: ReplayBuffer, step: int, **options: Any) -> None:
    """The newest good checkpoint is that of ``step`` and holds the rows of ``replay``."""
    store, restored = open_store(run_dir, **options), make_replay(replay.capacity)
    path = store.latest()
    assert path is not None
    assert same_bits(store.load(path), tree_of(step))
    store.restore_replay(path, restored)
    assert restored.total_added == replay.total_added
    assert torch.equal(restored.table, replay.table)


def files_under(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def same_bits(a: Any, b: Any) -> bool:
    """Equal in type, structure, order of keys and every bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        flat = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*flat)
    if isinstance(a, dict) and isinstance(b, dict):
        return same_bits(list(a), list(b)) and same_bits(list(a.values()), list(b.values()))
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b
