"""Replay rows on disk: immutable segments that successive checkpoints share.

In: a replay buffer. Out: files of raw little-endian float32 rows, and the same buffer again.
Segment k holds rows [k R, (k+1) R) of the run; a ring keeps rows [total_added - len, total_added),
so a save writes only the segments filled since the last one, and the rows after them as a tail
that belongs to its checkpoint. Segments are written twice, to ``replay/`` and ``replay_copy/``:
older checkpoints share them, so none of those could stand in for a damaged one.
A segment's name carries its SHA-256: a run that went back to an earlier checkpoint and took another
course does not touch the segments of the first.
"""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from alam.replay import ReplayBuffer
from algd.errors import CheckpointError
from algd.training.durable_files import (
    DamagedFileError,
    make_directory,
    read_verified,
    record_of,
    remove_unfinished,
    replace_durably,
    sync_directory,
)
from algd.training.manifest import ReplayRecord, Rows

TAIL_FILE = "replay_tail.bin"
DIRECTORIES = ("replay", "replay_copy")
_WRITERS = 4
_SEGMENT_NAME = re.compile(r"segment_\d{8,}_[0-9a-f]{16}\.bin")
_log = logging.getLogger("algd")


class ReplayStore:
    """The segments of one run directory.

    Args:
        run_dir: where the two directories of segments are.
        rows_per_segment: R of a new run; a restored run keeps its own.
        copies: 2, or 1 to halve the space and lose the protection.
    """

    def __init__(self, run_dir: Path, *, rows_per_segment: int, copies: int) -> None:
        if rows_per_segment < 1:
            raise ValueError(f"rows_per_segment must be >= 1, got {rows_per_segment}")
        if copies not in (1, 2):
            raise ValueError(f"copies must be 1 or 2, got {copies}")
        self.directories = [run_dir / name for name in DIRECTORIES[:copies]]
        self._readable = [run_dir / name for name in DIRECTORIES]
        self.rows_per_segment = rows_per_segment
        # Segments that this run wrote or restored; others may be of a course it did not take.
        self._known: dict[int, Rows] = {}

    def write(self, replay: ReplayBuffer) -> tuple[ReplayRecord, memoryview | None]:
        """Write the segments that are missing; return the record and the rows after them.

        OSError passes through; what was written then stays until ``collect``.
        """
        for directory in self.directories:
            make_directory(directory)
            remove_unfinished(directory)
        size, end = self.rows_per_segment, replay.total_added
        first = end - len(replay)
        last_full = end // size
        wanted = range(first // size, last_full)
        self._known = {k: rows for k, rows in self._known.items() if k in wanted}
        missing = [k for k in wanted if k not in self._known or not self._present(self._known[k])]
        if missing:
            with ThreadPoolExecutor(_WRITERS) as pool:  # hashing and the disk need no interpreter
                starts = [max(first, k * size) for k in missing]
                written = pool.map(self._write_segment, missing, repeat(replay), starts)
                self._known |= dict(zip(missing, written, strict=True))
            for directory in self.directories:
                sync_directory(directory)
        files = [self._known[k] for k in wanted]
        tail = None
        tail_first = max(first, last_full * size)
        if tail_first < end:
            tail = _row_bytes(replay, tail_first, end)
            files.append(Rows(TAIL_FILE, tail_first, end, record_of(tail)))
        record = ReplayRecord(
            capacity=replay.capacity,
            obs_dim=replay.obs_dim,
            action_dim=replay.action_dim,
            row_width=replay.table.shape[1],
            rows_per_segment=size,
            first=first,
            total_added=end,
            files=tuple(files),
        )
        return record, tail

    def _present(self, rows: Rows) -> bool:
        """Say whether every copy is there in full length; contents are checked when read."""
        paths = [directory / rows.name for directory in self.directories]
        return all(path.is_file() and path.stat().st_size == rows.record.size for path in paths)

    def _write_segment(self, k: int, replay: ReplayBuffer, first: int) -> Rows:
        """Write rows from ``first`` to the end of segment k.

        ``first`` is the segment's start unless the ring has already overwritten a part of it.
        """
        last = (k + 1) * self.rows_per_segment
        data = _row_bytes(replay, first, last)
        record = record_of(data)
        name = f"segment_{k:08d}_{record.sha256[:16]}.bin"
        for directory in self.directories:
            replace_durably(directory / name, data)
        return Rows(name, first, last, record)

    def collect(self, referenced: set[str]) -> None:
        """Delete the segments whose names no checkpoint mentions."""
        for directory in self._readable:
            for path in directory.glob("segment_*.bin"):
                if _SEGMENT_NAME.fullmatch(path.name) and path.name not in referenced:
                    path.unlink()
        self._known = {k: rows for k, rows in self._known.items() if rows.name in referenced}

    def verify(self, record: ReplayRecord, checkpoint: Path) -> None:
        """Check that every row can be read.

        Raises:
            DamagedFileError: naming the first file that failed.
        """
        for rows in record.files:
            self._read(rows, checkpoint)

    def read(self, record: ReplayRecord, checkpoint: Path, replay: ReplayBuffer) -> None:
        """Fill ``replay`` with the recorded rows; it is left empty if a file is damaged.

        Raises:
            CheckpointError: a damaged file, or a buffer of another shape; only the capacity may
                have grown, while nothing was overwritten yet.
        """
        grown = record.first == 0 and replay.capacity > record.capacity
        for name in ("obs_dim", "action_dim") if grown else ("capacity", "obs_dim", "action_dim"):
            saved, wanted = getattr(record, name), getattr(replay, name)
            if saved != wanted:
                raise CheckpointError(
                    f"{checkpoint} holds replay of {name} {saved}, this run's has {wanted}"
                )
        known: dict[int, Rows] = {}
        replay.total_added = record.first
        try:
            for rows in record.files:
                data, damage = self._read(rows, checkpoint)
                table = np.frombuffer(data, dtype="<f4").reshape(-1, record.row_width)
                unread = table[replay.total_added - rows.first :].astype(np.float32)
                replay.append_rows(torch.from_numpy(unread))
                if damage is not None:
                    # Left unknown, so that the next save writes both copies again.
                    _log.warning("%s; its other copy is used", damage)
                elif rows.name != TAIL_FILE:
                    known[rows.first // record.rows_per_segment] = rows
        except CheckpointError:
            replay.total_added = 0
            raise
        self.rows_per_segment = record.rows_per_segment
        self._known = known

    def _read(self, rows: Rows, checkpoint: Path) -> tuple[bytes, DamagedFileError | None]:
        """Return the bytes of a file, and what was wrong with its first copy."""
        if rows.name == TAIL_FILE:
            return read_verified(checkpoint / rows.name, rows.record), None
        first, second = (directory / rows.name for directory in self._readable)
        try:
            return read_verified(first, rows.record), None
        except DamagedFileError as damage:
            try:
                return read_verified(second, rows.record), damage
            except DamagedFileError:
                raise damage from None


def _row_bytes(replay: ReplayBuffer, first: int, last: int) -> memoryview:
    rows = replay.rows(first, last).cpu().numpy().astype("<f4", copy=False)
    return np.ascontiguousarray(rows).data.cast("B")
