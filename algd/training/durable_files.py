"""Files that are on the disk when a call returns, and that are read only if they are whole.

In: bytes and paths. Out: records of size and SHA-256, or the bytes they vouch for. A name that
starts with ``TEMPORARY_PREFIX`` belongs to a write that was cut short and means nothing.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from algd.errors import CheckpointError

TEMPORARY_PREFIX = ".unfinished-"


class DamagedFileError(CheckpointError):
    """A file that is missing, cut short, altered or unreadable."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str


def record_of(data: bytes | memoryview) -> FileRecord:
    """Return the record of a file that holds ``data``."""
    return FileRecord(memoryview(data).nbytes, hashlib.sha256(data).hexdigest())


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and wait until the device holds it; OSError passes through."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes | memoryview) -> None:
    """Write ``path`` so that a reader finds the old file or the new one, never a part."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        write_durably(temporary, data)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably; nothing happens if it exists."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory; whenever this is cut short, what is left bears a temporary name."""
    doomed = path.with_name(TEMPORARY_PREFIX + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(directory: Path) -> None:
    """Delete what interrupted writes left; only the one writer of a run may call this."""
    for path in directory.glob(TEMPORARY_PREFIX + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_whole(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        DamagedFileError: the file is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error


def read_verified(path: Path, record: FileRecord) -> bytes:
    """Return a file's bytes if they are those the record was made of.

    Raises:
        DamagedFileError: naming the file and what differs.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    if size != record.size:
        raise DamagedFileError(f"{path} is damaged: {size} bytes instead of {record.size}")
    data = read_whole(path)
    if record_of(data) != record:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 differs from the manifest's")
    return data
