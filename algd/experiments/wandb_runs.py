"""Runs as W&B's own files have them: what is left where a run directory has lost its CSV files.

In: directories that W&B wrote offline, `wandb/offline-run-DATE-ID`. Out: configuration, rows of
numbers, training episodes, read from the record file itself; no server is asked.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from algd.training.csv_table import STEP
from algd.training.wandb_file import read_records

_FILES = "run-*.wandb"
_EPISODES = "episodes/training/path"
# What JSON lacks as W&B writes it, and truth values of its tables.
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "True": 1.0, "False": 0.0}

Row = dict[str, float]


class OfflineRun(NamedTuple):
    """A run's configuration as a tree, its rows in the order of steps, its training episodes."""

    config: dict[str, Any]
    rows: list[Row]
    episodes: list[Row]


def is_offline_run(directory: Path) -> bool:
    """Say whether a directory is one that W&B wrote."""
    return any(directory.glob(_FILES))


def offline_directories(run_dir: Path) -> list[Path]:
    """Return the directories of W&B inside a run directory, one per process, oldest first."""
    return sorted(path for path in run_dir.glob("wandb/*run-*") if is_offline_run(path))


def read_offline_run(directories: Sequence[Path]) -> OfflineRun:
    """Return what the processes of one run have recorded together.

    Raises:
        ValueError: a file is damaged, or wandb is not installed; the message says which.
    """
    config: dict[str, Any] = {}
    rows: list[Row] = []
    episodes: list[Row] = []
    for directory in directories:
        for path in sorted(directory.glob(_FILES)):
            for kind, record in _records(path):
                if kind == "run":
                    config |= {
                        item.key: json.loads(item.value_json)
                        for item in record.config.update
                        if item.key and not item.key.startswith("_")
                    }
                else:
                    row = {
                        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                        for item in record.item
                    }
                    if _EPISODES in row:
                        episodes = _table(directory / "files", str(row[_EPISODES]))
                    rows.append(_numbers(row))
    known = [row for row in rows if STEP in row]
    return OfflineRun(config, sorted(known, key=lambda row: row[STEP]), episodes)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the records that hold configuration and rows."""
    try:
        for record in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind in ("run", "history"):
                yield kind, getattr(record, kind)
    except ImportError as error:
        raise ValueError(f"{path.name} can be read with wandb: pip install wandb") from error
    except (OSError, struct.error, ValueError, _decode_error()) as error:
        raise ValueError(f"{path.name}: not a run file of W&B ({error})") from error


def _decode_error() -> type[Exception]:
    from google.protobuf.message import DecodeError

    return DecodeError


def _table(files: Path, name: str) -> list[Row]:
    """Return the rows of a table that W&B keeps in a file of its own; nothing where it is gone."""
    path = files / name
    if not path.resolve().is_relative_to(files.resolve()) or not path.is_file():
        return []
    table = json.loads(path.read_text(encoding="utf-8"))
    return [_numbers(dict(zip(table["columns"], row, strict=True))) for row in table["data"]]


def _numbers(row: Mapping[str, Any]) -> Row:
    """Return the values that are numbers, without W&B's own and what describes its media."""
    media = tuple(name.removesuffix("_type") for name in row if name.endswith("/_type"))
    values = {
        name: _WORDS.get(value) if isinstance(value, str) else value
        for name, value in row.items()
        if not name.startswith(("_", *media))
    }
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
