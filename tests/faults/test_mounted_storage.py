"""The same faults as in test_storage_faults, by a disk that is really full or read-only.

Mounting needs root. Without it these laws are still tested, by the injected errors of
``refuse`` (a full disk) and by the permissions of the directory (read-only).
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faults import mounts
from faults.test_storage_faults import delete_at as do_at
from faults.test_storage_faults import refuse
from faults.tiny_runs import run, saved_steps, training_stream
from saved_runs import same_bits

from algd.errors import CheckpointError, ConfigError
from algd.training.run_directory import claim_run_dir
from algd.training.trainer import resume


class Disk:
    """A directory on a disk that a test can take space from, or turn read-only.

    Args:
        directory: exists.
        real: it is a small file system of its own.
        injected: stands in for one that is not: ``test_storage_faults.refuse``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        real: bool,
        injected: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.directory, self.real = directory, real
        self._injected, self._monkeypatch = refuse, monkeypatch
        self._resources = ExitStack()

    def full_between(self, first: int, last: int) -> None:
        """Take all space after env step ``first`` of the run and give it back after ``last``."""
        if not self.real:
            self._injected(errno.ENOSPC, first=first, last=last, rows=True)
            return
        filler = self.directory / "neighbour.bin"
        do_at(first, self._monkeypatch, lambda _: mounts.fill(self.directory))
        do_at(last, self._monkeypatch, lambda _: filler.unlink())

    def read_only(self, path: Path) -> None:
        """Let nothing be written under ``path`` until ``writable``."""
        if self.real:
            mounts.make_read_only(path)
            self._resources.callback(mounts.unmount, path)
        else:
            for directory in [path, *(p for p in path.rglob("*") if p.is_dir())]:
                mode = directory.stat().st_mode
                directory.chmod(0o500)
                self._resources.callback(directory.chmod, mode)

    def writable(self) -> None:
        self._resources.close()


@pytest.fixture
def disk(
    tmp_path: Path,
    refuse: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Disk]:
    """Return a disk of 16 MB, real where this process may mount one."""
    with ExitStack() as resources:
        real = mounts.can_mount(tmp_path)
        directory = tmp_path / "disk"
        if real:
            resources.enter_context(mounts.small_disk(directory, "16m"))
        else:
            directory.mkdir()
        disk = Disk(directory, real=real, injected=refuse, monkeypatch=monkeypatch)
        resources.callback(disk.writable)
        yield disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole") / "run")


def test_a_full_disk_stops_training_names_itself_and_leaves_the_checkpoint_before(
    disk: Disk, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = disk.directory / "run"
    disk.full_between(50, 10**9)
    with pytest.raises(CheckpointError, match="No space left on device") as refusal:
        run(run_dir)
    assert "\n" not in str(refusal.value)
    assert saved_steps(run_dir) == [30]
    monkeypatch.undo()
    (disk.directory / "neighbour.bin").unlink(missing_ok=not disk.real)
    resume(run_dir)
    assert same_bits(training_stream(run_dir), training_stream(whole))
    for name in ("metrics.csv", "episodes.csv"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes()


def test_a_disk_that_was_full_for_a_while_costs_no_row_when_told_to_go_on(
    disk: Disk, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = disk.directory / "run"
    disk.full_between(50, 80)
    run(run_dir, train__on_save_error="continue")
    refused = [m for m in caplog.messages if "NOT SAVED" in m]
    assert [m.partition(":")[0] for m in refused] == ["step 60"]
    assert "No space left on device" in refused[0]
    assert saved_steps(run_dir) == [90, 120]
    assert same_bits(training_stream(run_dir), training_stream(whole))
    for name in ("metrics.csv", "episodes.csv"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes()


def test_a_disk_too_small_for_the_run_is_one_line_and_leaves_nothing_half_written(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = disk.directory / "run"
    disk.full_between(10, 10**9)
    with pytest.raises(CheckpointError, match="No space left on device") as refusal:
        run(run_dir)
    assert "\n" not in str(refusal.value)
    assert saved_steps(run_dir) == []
    assert not list(run_dir.rglob(".unfinished-*"))


def test_a_directory_that_turns_read_only_under_a_run_is_said_and_not_called_saved(
    disk: Disk, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = disk.directory / "run"
    do_at(50, monkeypatch, disk.read_only)
    words = "Read-only file system" if disk.real else "Permission denied"
    with pytest.raises(CheckpointError, match=rf"(NOT SAVED|cannot write).*{words}"):
        run(run_dir)
    assert saved_steps(run_dir) == [30]
    disk.writable()
    monkeypatch.undo()
    resume(run_dir)
    assert same_bits(training_stream(run_dir), training_stream(whole))


def test_a_run_cannot_be_started_or_continued_where_nothing_can_be_written(disk: Disk) -> None:
    run_dir = run(disk.directory / "run")
    before = {p: p.read_bytes() for p in sorted(run_dir.rglob("*")) if p.is_file()}
    disk.read_only(disk.directory)
    words = "Read-only file system" if disk.real else "Permission denied"
    attempts: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ConfigError, f"cannot be created: {words}", lambda: claim_run_dir(disk.directory / "new")),
        (CheckpointError, f"cannot (be written|write .*): {words}", lambda: resume(run_dir)),
    ]
    for kind, message, attempt in attempts:
        with pytest.raises(kind, match=message) as refusal:
            attempt()
        assert "\n" not in str(refusal.value)
    assert {p: p.read_bytes() for p in sorted(run_dir.rglob("*")) if p.is_file()} == before
