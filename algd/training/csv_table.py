"""A CSV file that grows row by row and survives kills, full disks and columns that appear late.

In: rows as dictionaries with an ``env_step``. Out: one wide file, ``env_step`` first, that pandas
reads as it is; an absent value is an empty field. Floats are written so that they read back
exactly, hence equal runs give equal files.
"""

import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from algd.errors import CheckpointError
from algd.training.durable_files import replace_durably

STEP = "env_step"
_log = logging.getLogger("algd")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of such a file as text; none where there is no file.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    # Without its line end the last row is one that a kill left unfinished.
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


class CsvTable:
    """Appends rows to ``path``; each row is in the kernel's hands when ``append`` returns.

    Args:
        path: the file; created with the first row.
        resume_step: None for a new run. Otherwise rows after this env step are cut off, since the
            resumed run writes them again, and so is a row that a kill left unfinished.
        keep_refused: hold a row that the disk refuses in memory, say so once, and try again with
            each later one and in ``flush``.

    Raises:
        CheckpointError: the file exists though the run is new, or cannot be read or written, or was
            deleted under the run; a failed write leaves the file as it was.
    """

    def __init__(
        self, path: Path, *, resume_step: int | None = None, keep_refused: bool = False
    ) -> None:
        self.path = path
        self._keep_refused = keep_refused
        self._refused: list[Mapping[str, Any]] = []
        self.columns: list[str] = []
        self._descriptor: int | None = None
        if resume_step is not None:
            self._cut(resume_step)
        elif path.exists():
            raise CheckpointError(f"{path} exists already: resume that run or use a new directory")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; names not seen before become new columns at the right."""
        if STEP not in row:
            raise ValueError(f"a row of {self.path.name} needs {STEP!r}, got {sorted(row)}")
        if not self._keep_refused:
            self._write(row)
            return
        self._refused.append(row)
        try:
            self.flush()
        except CheckpointError as error:
            if len(self._refused) == 1:
                _log.warning("%s; its rows are kept in memory until it can be written", error)

    def flush(self) -> None:
        """Write the rows that were refused; raise CheckpointError while that is impossible."""
        while self._refused:
            self._write(self._refused[0])
            del self._refused[0]

    def _write(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name != STEP and name not in self.columns]
        if not self.columns:
            new.insert(0, STEP)
        if new:
            self._replace([*self.columns, *new], [*self.rows(), _as_text(row)])
        else:
            fields = _as_text(row)
            self._append_line(_line(fields.get(name, "") for name in self.columns))

    def rows(self) -> list[dict[str, str]]:
        """Return the complete rows as text; an absent value is empty."""
        return read_rows(self.path)

    def sync(self) -> None:
        """Wait until the device holds every row."""
        self.flush()
        if self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Release the file; a later ``append`` opens it again. Rows still refused are lost."""
        try:
            self.flush()
        except CheckpointError as error:
            _log.warning("%s; %d rows are lost", error, len(self._refused))
            self._refused.clear()
        self._release()

    def _release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append_line(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = self._open()
        status = os.fstat(self._descriptor)
        if status.st_nlink == 0:
            raise CheckpointError(f"cannot write {self.path}: it was deleted under the run")
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # a nearly full disk takes a part, then refuses the rest
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, status.st_size)
            raise _unwritable(self.path, error) from error

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _cut(self, resume_step: int) -> None:
        """Keep complete rows up to the step, and the columns that these rows use."""
        try:
            rows = [row for row in self.rows() if int(row[STEP]) <= resume_step]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is not a table that algd wrote: every row needs a whole {STEP}"
            ) from error
        if self.path.exists():
            names = list(rows[0]) if rows else []
            self._replace([name for name in names if any(row[name] for row in rows)], rows)

    def _replace(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Write the whole file anew under a temporary name, then rename it."""
        self._release()
        lines = [_line(columns)] if columns else []
        lines += [_line(row.get(name, "") for name in columns) for row in rows]
        try:
            replace_durably(self.path, b"".join(lines))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.columns = columns


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {path}: {error.strerror}")


def _as_text(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: _field(value) for name, value in row.items()}


def _field(value: Any) -> str:
    """Return text that reads back as the same number; NaN and infinities as Python spells them."""
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, float):
        return repr(value)
    return str(value).replace("\r", " ").replace("\n", " ")


def _line(fields: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(list(fields))
    return text.getvalue().encode()
