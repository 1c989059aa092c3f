"""manifest.json: what a checkpoint consists of, and the proof that it is whole.

In: records of files and replay rows. Out: canonical JSON with its own SHA-256, written last; a
directory without it is no checkpoint. Every version of the format keeps the two outer keys
("sha256", "manifest"), "format" inside and this rendering, so that any can recognise any other.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from algd import __version__
from algd.errors import CheckpointError
from algd.training.durable_files import DamagedFileError, FileRecord, read_whole

FORMAT = 1
MANIFEST_FILE = "manifest.json"
_FILE_NAME = re.compile(r"[a-z0-9_]+\.[a-z]+")
_BYTES_PER_NUMBER = 4


@dataclass(frozen=True)
class Task:
    """What a checkpoint was trained on: environment id, widths of observation and action."""

    env_id: str
    obs_dim: int
    action_dim: int


@dataclass(frozen=True)
class Rows:
    """A file of raw little-endian float32 rows numbered ``first`` (included) to ``last``."""

    name: str
    first: int
    last: int
    record: FileRecord


@dataclass(frozen=True)
class ReplayRecord:
    """The replay rows of a checkpoint: row n since the start of the run, in slot n % capacity.

    ``files`` cover [first, total_added) without a gap; the first may begin earlier. All but those
    named in the checkpoint's own directory are segments, shared between checkpoints.
    """

    capacity: int
    obs_dim: int
    action_dim: int
    row_width: int
    rows_per_segment: int
    first: int
    total_added: int
    files: tuple[Rows, ...]


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json; ``files`` lie beside it, ``env_step`` counts environment steps."""

    env_step: int
    task: Task | None
    files: dict[str, FileRecord]
    replay: ReplayRecord | None

    def render(self) -> bytes:
        """Return the file's bytes."""
        return _render({"format": FORMAT, "algd": __version__, **asdict(self)})


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of a checkpoint.

    Raises:
        DamagedFileError: missing, or not byte for byte what was written.
        CheckpointError: written by a later version, or its contents are not allowed.
    """
    path = directory / MANIFEST_FILE
    data = read_whole(path)
    try:
        content = json.loads(data.decode("ascii"))["manifest"]
        if data != _render(content):
            raise ValueError("its SHA-256 differs")
        version = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, written by algd {content.get('algd')}; "
            f"this algd {__version__} reads format {FORMAT}"
        )
    try:
        return _parse(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a manifest: {error!r}") from error


def _render(content: dict[str, Any]) -> bytes:
    body = json.dumps(content, sort_keys=True)
    outer = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "manifest": content}
    return json.dumps(outer, sort_keys=True, indent=1).encode("ascii") + b"\n"


def _parse(content: dict[str, Any]) -> Manifest:
    task = content["task"]
    replay = content["replay"]
    return Manifest(
        env_step=_count(content["env_step"]),
        task=None
        if task is None
        else Task(str(task["env_id"]), _count(task["obs_dim"]), _count(task["action_dim"])),
        files={_plain_name(name): _record(value) for name, value in content["files"].items()},
        replay=None if replay is None else _parse_replay(replay),
    )


def _parse_replay(content: dict[str, Any]) -> ReplayRecord:
    counts = {
        name: _count(content[name]) for name in ReplayRecord.__annotations__ if name != "files"
    }
    files = tuple(
        Rows(
            _plain_name(entry["name"]),
            _count(entry["first"]),
            _count(entry["last"]),
            _record(entry["record"]),
        )
        for entry in content["files"]
    )
    end = counts["first"]
    for rows in files:
        size = (rows.last - rows.first) * counts["row_width"] * _BYTES_PER_NUMBER
        if not rows.first <= end < rows.last or rows.record.size != size:
            raise ValueError(f"the rows of {rows.name} do not fit")
        end = rows.last
    if end != counts["total_added"] or end - counts["first"] > counts["capacity"]:
        raise ValueError(f"replay rows end at {end} instead of {counts['total_added']}")
    return ReplayRecord(**counts, files=files)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a number >= 0, got {value!r}")
    return value


def _record(value: dict[str, Any]) -> FileRecord:
    return FileRecord(_count(value["size"]), str(value["sha256"]))


def _plain_name(name: str) -> str:
    """Accept the name of a file in one known directory; no path leaves it."""
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"file name {name!r} is not allowed")
    return name
