"""Checkpoints: a run's whole state, on disk entirely or not at all.

In: a state tree and a replay buffer. Out: directories, and the same state bit for bit.

    RUN_DIR/checkpoints/step_000000010000/   manifest.json, tensors.safetensors, tree.json,
                                             replay_tail.bin (rows after the last full segment)
    RUN_DIR/replay/segment_00000000_<sha>.bin, RUN_DIR/replay_copy/...     see replay_store.py
    RUN_DIR/policies/NAME/step_000000010000/ the same without replay

A checkpoint is written under a temporary name, made durable and renamed; only then are older ones
deleted. A second one of the same step gets a revision (``step_000000010000.1``), so that no moment
passes without a complete checkpoint. Nothing is read before its SHA-256 has been compared.
A run has one writer; any number of processes may read beside it.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from alam.replay import ReplayBuffer
from algd.errors import CheckpointError
from algd.training.durable_files import (
    TEMPORARY_PREFIX,
    DamagedFileError,
    make_directory,
    read_verified,
    record_of,
    remove_directory,
    remove_unfinished,
    sync_directory,
    write_durably,
)
from algd.training.manifest import MANIFEST_FILE, Manifest, ReplayRecord, Task, read_manifest
from algd.training.replay_store import TAIL_FILE, ReplayStore
from algd.training.run_directory import CHECKPOINTS, claim_run_dir, is_run_dir, require_run_dir
from algd.training.state_tree import decode_tree, encode_tree, load_tree, save_tree

__all__ = [
    "CheckpointStore",
    "Task",
    "claim_run_dir",
    "is_run_dir",
    "load_tree",
    "require_run_dir",
    "save_tree",
]

_NAME = re.compile(r"step_(\d{12,})(?:\.(\d+))?")
_POLICY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_POLICIES_KEPT = 2  # the second stands in if the first is damaged
_log = logging.getLogger("algd")
Result = TypeVar("Result")


class CheckpointStore:
    """The checkpoints and kept policies of one run directory.

    Args:
        run_dir: the run's directory.
        task: what is trained there. It is recorded, and a checkpoint of another task is refused;
            None records and checks nothing but the widths of the replay rows.
        rows_per_segment: replay rows per shared file, fixed at the first checkpoint of a run.
        replay_copies: 2, or 1 to halve the disk space of the replay: then a damaged segment
            damages every checkpoint that shares it.
    """

    def __init__(
        self,
        run_dir: Path,
        task: Task | None = None,
        *,
        rows_per_segment: int = 8192,
        replay_copies: int = 2,
    ) -> None:
        self.run_dir = run_dir
        self.task = task
        self.checkpoints_dir = run_dir / CHECKPOINTS
        self.replay_store = ReplayStore(
            run_dir, rows_per_segment=rows_per_segment, copies=replay_copies
        )
        self._abandoned: list[Path] = []
        self._abandoned_policies: list[Path] = []

    def save(
        self, step: int, tree: dict[str, Any], replay: ReplayBuffer | None, *, keep: int = 2
    ) -> Path:
        """Write a checkpoint and then delete all but the newest ``keep``.

        Checkpoints of later steps are deleted too: the run has gone back behind them.

        Args:
            step: environment steps so far, >= 0.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
            TypeError: the tree holds something that ``encode_tree`` refuses.
        """
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        path = self._write(self.checkpoints_dir, step, tree, replay)
        self._prune(path, keep)
        _delete(entry for entry in self._abandoned_policies if entry.exists())
        self._abandoned, self._abandoned_policies = [], []
        self._collect_segments()
        return path

    def save_policy(self, name: str, step: int, tree: dict[str, Any]) -> Path:
        """Keep a tree without replay under ``name``; errors as ``save``."""
        path = self._write(self._policy_dir(name), step, tree, None)
        self._prune(path, _POLICIES_KEPT)
        return path

    def latest(self) -> Path | None:
        """Return the newest checkpoint of which every byte is good, replay included.

        Each damaged one that is passed over is one warning on the logger "algd" that names the
        file. None means that none was ever saved.

        Raises:
            CheckpointError: no run there, all checkpoints damaged, or as ``manifest``.
        """
        require_run_dir(self.run_dir)
        if not _entries(self.checkpoints_dir):
            return None
        return self._newest(self.checkpoints_dir, self._verified)

    def load(self, path: Path | None = None) -> Any:
        """Return the tree of a checkpoint, by default of the newest whose tree is undamaged.

        Raises:
            CheckpointError: no run or no checkpoint there, damaged files, or as ``manifest``.
        """
        if path is not None:
            return self._read_tree(path)
        require_run_dir(self.run_dir)
        return self._newest(self.checkpoints_dir, self._read_tree)

    def load_policy(self, name: str) -> Any:
        """Return the newest undamaged tree kept under ``name``; errors as ``load``."""
        require_run_dir(self.run_dir)
        return self._newest(self._policy_dir(name), self._read_tree)

    def restore_replay(self, path: Path, replay: ReplayBuffer) -> None:
        """Fill ``replay`` with a checkpoint's rows, and let the run continue from there.

        Checkpoints and policies newer than ``path`` are deleted once the next one is saved.

        Raises:
            CheckpointError: no rows were saved, a damaged file, or a buffer of another shape.
        """
        record = self.manifest(path).replay
        if record is None:
            raise CheckpointError(f"{path} was saved without replay")
        self.replay_store.read(record, path, replay)
        entries = _entries(self.checkpoints_dir)
        self._abandoned = entries[: entries.index(path)] if path in entries else []
        self._abandoned_policies = [
            entry
            for directory in (self.run_dir / "policies").glob("*")
            for entry in _entries(directory)
            if _order(entry)[0] > _order(path)[0]
        ]

    def manifest(self, path: Path) -> Manifest:
        """Return the manifest of a checkpoint.

        Raises:
            CheckpointError: damaged, of a later format, or of another task than the store's.
        """
        manifest = read_manifest(path)
        if self.task is not None and manifest.task not in (None, self.task):
            raise CheckpointError(f"{path} is of {manifest.task}, this run is of {self.task}")
        return manifest

    def _policy_dir(self, name: str) -> Path:
        if not _POLICY_NAME.fullmatch(name):
            raise ValueError(f"policy name must match {_POLICY_NAME.pattern}, got {name!r}")
        return self.run_dir / "policies" / name

    def _write(
        self, directory: Path, step: int, tree: dict[str, Any], replay: ReplayBuffer | None
    ) -> Path:
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        files: dict[str, bytes | memoryview] = {**encode_tree(tree)}
        record = None
        try:
            make_directory(directory)
            remove_unfinished(directory)
            if replay is not None:
                record, tail = self.replay_store.write(replay)
                if tail is not None:
                    files[TAIL_FILE] = tail
            return self._publish(directory / _free_name(directory, step), step, files, record)
        except OSError as error:
            if replay is not None:
                self._collect_segments()
            where = "" if error.filename is None else f" ({error.filename})"
            raise CheckpointError(
                f"step {step} could not be saved in {directory}: {error.strerror}{where}; "
                "earlier checkpoints are untouched"
            ) from error

    def _publish(
        self,
        path: Path,
        step: int,
        files: dict[str, bytes | memoryview],
        replay: ReplayRecord | None,
    ) -> Path:
        """Write a directory of files; it appears under its name when all of it is durable."""
        temporary = path.with_name(TEMPORARY_PREFIX + path.name)
        try:
            temporary.mkdir()
            for name, data in files.items():
                write_durably(temporary / name, data)
            records = {name: record_of(data) for name, data in files.items()}
            manifest = Manifest(step, self.task, records, replay)
            write_durably(temporary / MANIFEST_FILE, manifest.render())
            sync_directory(temporary)
            temporary.rename(path)
            sync_directory(path.parent)
        except BaseException:
            # After a failed sync nobody knows what the device holds: not saved.
            for unfinished in (temporary, path):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return path

    def _prune(self, current: Path, keep: int) -> None:
        """Delete what ``current`` replaces; failure to delete does not make it unsaved."""
        step = _order(current)[0]
        entries = _entries(current.parent)
        older = [e for e in entries if _order(e)[0] < step and e not in self._abandoned]
        kept = {current, *older[: keep - 1]}
        _delete(entry for entry in entries if entry not in kept)

    def _collect_segments(self) -> None:
        """Delete segments that no checkpoint mentions."""
        try:
            records = [read_manifest(entry).replay for entry in _entries(self.checkpoints_dir)]
            self.replay_store.collect({rows.name for r in records if r for rows in r.files})
        except CheckpointError:
            return  # what an unreadable manifest mentions is unknown; it will be pruned in time
        except OSError as error:
            _log.warning("replay segments cannot be deleted: %s", error)

    def _newest(self, directory: Path, read: Callable[[Path], Result]) -> Result:
        """Return what ``read`` makes of the newest entry that it does not find damaged."""
        damaged: list[Path] = []
        while True:
            # Listed again each time: a training process may save and delete meanwhile.
            entry = next((e for e in _entries(directory) if e not in damaged), None)
            if entry is None:
                break
            try:
                return read(entry)
            except DamagedFileError as damage:
                damaged.append(entry)
                if entry.is_dir():
                    _log.warning("%s; trying the one saved before", damage)
        found = f"all {len(damaged)} are damaged" if damaged else "none was saved"
        raise CheckpointError(f"{directory} holds no usable checkpoint: {found}")

    def _verified(self, path: Path) -> Path:
        """Return ``path`` if every file is good."""
        manifest = self.manifest(path)
        for name, record in manifest.files.items():
            read_verified(path / name, record)
        if manifest.replay is not None:
            self.replay_store.verify(manifest.replay, path)
        return path

    def _read_tree(self, path: Path) -> Any:
        manifest = self.manifest(path)
        files = {
            name: read_verified(path / name, record)
            for name, record in manifest.files.items()
            if name != TAIL_FILE
        }
        return decode_tree(files, directory=path)


def _order(path: Path) -> tuple[int, int]:
    """Return step and revision of a checkpoint's directory."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _entries(directory: Path) -> list[Path]:
    """Return the checkpoints in a directory, newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_order, reverse=True)


def _delete(entries: Iterable[Path]) -> None:
    for entry in entries:
        try:
            remove_directory(entry)
        except OSError as error:
            _log.warning("%s cannot be deleted: %s", entry, error.strerror)


def _free_name(directory: Path, step: int) -> str:
    """Return the name of the next revision of a step."""
    revisions = [_order(entry)[1] for entry in _entries(directory) if _order(entry)[0] == step]
    return f"step_{step:012d}" + (f".{max(revisions) + 1}" if revisions else "")
