"""Read back what an offline W&B run has on disk, without a server.

In: a run directory. Out: the logged rows, once nobody writes any more. W&B's own run file is a
7-byte header, then LevelDB log blocks of 32 KiB; a chunk is crc (4 bytes), length (2), kind (1:
whole, 2: first, 3: middle, 4: last), and joined chunks are protobuf records. A killed process
leaves a file without its end.
"""

import json
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_BLOCK = 32768
_FILE_HEADER = 7
_CHUNK = struct.Struct("<IHB")
_ENDS = (1, 4)


def read_records(path: Path) -> Iterator[Any]:
    """Yield every complete record of one ``run-ID.wandb`` file."""
    # Generated code builds its classes when it is imported, unseen by a type checker.
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, position, joined = path.read_bytes(), _FILE_HEADER, b""
    while position + _CHUNK.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _CHUNK.size:
            position += left
            continue
        _, length, kind = _CHUNK.unpack_from(data, position)
        position += _CHUNK.size
        if kind == 0 or position + length > len(data):
            return
        joined += data[position : position + length]
        position += length
        if kind in _ENDS:
            record = Record()
            record.ParseFromString(joined)
            joined = b""
            yield record


def offline_records(run_dir: Path, kind: str) -> Iterator[Any]:
    """Yield the records of one kind over all processes of a run, oldest first."""
    for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in read_records(path):
            if record.WhichOneof("record_type") == kind:
                yield getattr(record, kind)


def wait_for_writers(run_dir: Path, seconds: float) -> bool:
    """Wait until no process has a run file of W&B open; return False if one still has by then.

    W&B writes from a process of its own, which outlives a killed run by a moment and still writes
    what it had in hand. Where there is no /proc, nothing is known and nothing is waited for.
    """
    deadline = time.monotonic() + seconds
    while _is_open({str(path.resolve()) for path in run_dir.glob("wandb/*run-*/run-*.wandb")}):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_open(files: set[str]) -> bool:
    """Say whether a process that we may look into has one of these files open."""
    for directory in Path("/proc").glob("[0-9]*/fd") if files else ():
        with suppress(OSError):  # ended meanwhile, or another user's
            for entry in directory.iterdir():
                with suppress(OSError):
                    if str(entry.readlink()) in files:
                        return True
    return False


def offline_rows(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged rows, without W&B's own columns; media are dictionaries."""
    for record in offline_records(run_dir, "history"):
        row: dict[str, Any] = {}
        for item in record.item:
            *parents, name = list(item.nested_key) or [item.key]
            place = row
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = json.loads(item.value_json)
        yield {name: value for name, value in row.items() if not name.startswith("_")}
