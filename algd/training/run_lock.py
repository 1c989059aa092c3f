"""One writer per run directory: a lock that names its owner and cannot outlive it.

In: a run directory. Out: the lock ``RUN_DIR/writer.lock``, or one line that says who holds it. The
kernel holds the lock itself (flock), so that of a process that died in whatever way is free at
once. The file says who the owner is: pid, host, since when; its modification time is the last
sign of life. On file systems shared between machines whose locks do not reach each other that
sign decides: silent for ten minutes means dead. A released lock is an empty file.
"""

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from algd.errors import CheckpointError

LOCK_FILE = "writer.lock"
_HEARTBEAT_SECONDS = 30.0
_DEAD_AFTER_SECONDS = 600.0
_ACQUIRE_SECONDS = 1.0  # who asks whether the lock is free has it for an instant
_POLL_SECONDS = 0.05
_log = logging.getLogger("algd")


@dataclass(frozen=True)
class LockOwner:
    """Who writes a run: process id, host name, and when it began, in seconds since 1970."""

    pid: int
    host: str
    since: float

    def describe(self) -> str:
        """Return "process 12 on host, since 3 min"."""
        minutes = max(time.time() - self.since, 0.0) / 60
        age = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
        return f"process {self.pid} on {self.host}, since {age}"


class RunLock:
    """The right to write a run directory, from ``with`` to its end or the end of the process.

    Raises:
        CheckpointError: on entry, when another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK_FILE
        self._descriptor = -1
        self._last_sign = time.monotonic()

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # a disk that went read-only: the kernel lets go all the same
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def sign_of_life(self) -> None:
        """Tell other machines now and then that the owner lives; cheap at every step."""
        now = time.monotonic()
        if now - self._last_sign >= _HEARTBEAT_SECONDS:
            self._last_sign = now
            with suppress(OSError):  # saving will say what is wrong with the disk
                os.utime(self._descriptor)

    def require_held(self) -> None:
        """Raise CheckpointError if the directory was deleted, moved or replaced under the run."""
        ours = os.fstat(self._descriptor)
        try:
            there = self.path.stat()
        except OSError as error:
            raise CheckpointError(
                f"{self.path.parent} was deleted or moved under the run ({error.strerror})"
            ) from error
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise CheckpointError(f"{self.path.parent} was replaced under the run")

    def _acquire(self) -> None:
        before = _read_owner(self._descriptor)
        give_up = time.monotonic() + _ACQUIRE_SECONDS
        try:
            while not _flock(self._descriptor):
                if time.monotonic() > give_up:
                    raise self._refusal(_read_owner(self._descriptor))
                time.sleep(_POLL_SECONDS)
        except OSError as error:
            _log.warning("%s: no locks on this file system (%s)", self.path, error.strerror)
            if before is not None and before.host == socket.gethostname() and _lives(before.pid):
                raise self._refusal(before) from None
        if before is not None:
            self._take_over(before)
        owner = LockOwner(os.getpid(), socket.gethostname(), time.time())
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(owner)).encode(), 0)

    def _take_over(self, before: LockOwner) -> None:
        """Go on where an owner ended without releasing; of another machine, only if silent."""
        silent = time.time() - os.fstat(self._descriptor).st_mtime
        if before.host != socket.gethostname() and silent < _DEAD_AFTER_SECONDS:
            raise self._refusal(before, f", last heard of {silent:.0f} s ago")
        _log.warning("%s: its owner is gone (%s); taken over", self.path, before.describe())

    def _refusal(self, owner: LockOwner | None, sign: str = "") -> CheckpointError:
        who = "" if owner is None else f" ({owner.describe()}{sign})"
        return CheckpointError(
            f"another process is writing in {self.path.parent}{who}; wait for its end, or stop it"
        )


def writer_of(run_dir: Path) -> LockOwner | None:
    """Return who writes the run now, as far as can be told without touching the lock."""
    path = run_dir / LOCK_FILE
    try:
        owner, last_sign = _parse_owner(path.read_bytes()), path.stat().st_mtime
    except OSError:
        return None
    if owner is None:
        return None
    if owner.host == socket.gethostname():
        return owner if _lives(owner.pid) else None
    return owner if time.time() - last_sign < _DEAD_AFTER_SECONDS else None


def _read_owner(descriptor: int) -> LockOwner | None:
    return _parse_owner(os.pread(descriptor, 4096, 0))


def _parse_owner(data: bytes) -> LockOwner | None:
    """Return the owner the file names; None when released, or written by something else."""
    try:
        content = json.loads(data)
        return LockOwner(int(content["pid"]), str(content["host"]), float(content["since"]))
    except (ValueError, KeyError, TypeError):
        return None


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
