"""Real small and read-only file systems, where this process may mount them (root on Linux)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def mount(*arguments: str | Path) -> None:
    """Run mount(8); a refusal raises with what it said."""
    done = subprocess.run(
        ["mount", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


def unmount(path: Path) -> None:
    """Take the newest mount off ``path``, though files on it may be open."""
    subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)


def can_mount(directory: Path) -> bool:
    """Say whether a file system can be mounted here."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    try:
        mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", directory)
    except OSError:
        return False
    unmount(directory)
    return True


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a file system of ``size`` bytes on ``directory``."""
    directory.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory)
    try:
        yield directory
    finally:
        unmount(directory)


def fill(directory: Path) -> Path:
    """Take the last free byte of a file system, as a neighbour might; return the file to delete."""
    filler = directory / "neighbour.bin"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        for block in (2**16, 2**12, 1):
            while True:
                try:
                    os.write(descriptor, bytes(block))
                except OSError:
                    break
    finally:
        os.close(descriptor)
    return filler


def make_read_only(directory: Path) -> None:
    """Mount ``directory`` on itself read-only: open files stay writable, names under it do not."""
    mount("--bind", directory, directory)
    mount("-o", "remount,bind,ro", directory)
