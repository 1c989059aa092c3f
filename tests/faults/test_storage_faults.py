"""A disk that refuses, forgets or loses: said loudly, never called saved, gone on from."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.tiny_runs import run, saved_steps, tiny, training_stream
from saved_runs import flip_bit, same_bits

from algd.errors import CheckpointError
from algd.training import checkpoint, csv_table, durable_files
from algd.training.checkpoint import CheckpointStore
from algd.training.trainer import Trainer, resume


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the disk refuse checkpoints, or rows, of certain env steps."""

    def install(error: int, *, first: int, last: int, rows: bool = False) -> None:
        now = [0]
        step, write = Trainer._earn_updates, durable_files.write_durably
        os_write = os.write

        def count(trainer: Trainer) -> None:
            step(trainer)
            now[0] = trainer.env_step

        def refused() -> bool:
            return first <= now[0] <= last

        def write_durably(path: Path, data: Any) -> None:
            if refused() and (rows or path.suffix != ".csv"):
                raise OSError(error, os.strerror(error), str(path))
            write(path, data)

        def write_line(descriptor: int, line: bytes) -> int:
            if refused() and b"," in line:
                os_write(descriptor, line[: len(line) // 2])  # the last free bytes
                raise OSError(error, os.strerror(error))
            return os_write(descriptor, line)

        monkeypatch.setattr(Trainer, "_earn_updates", count)
        for module in (durable_files, checkpoint):
            monkeypatch.setattr(module, "write_durably", write_durably)
        if rows:
            monkeypatch.setattr(csv_table.os, "write", write_line)

    return install


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole") / "run")


REFUSALS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "quota": errno.EDQUOT}


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_a_refused_checkpoint_stops_training_and_says_what_is_left(
    tmp_path: Path,
    whole: Path,
    refuse: Callable[..., None],
    error: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(error, first=55, last=70)
    with pytest.raises(CheckpointError) as refusal:
        run(tmp_path / "run")
    assert str(refusal.value).startswith("step 60: a checkpoint was NOT SAVED: step 60 could not")
    assert os.strerror(error) in str(refusal.value)
    assert str(refusal.value).endswith("; the newest checkpoint is of step 30")
    assert saved_steps(tmp_path / "run") == [30]
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert same_bits(training_stream(tmp_path / "run"), training_stream(whole))


def test_training_goes_on_when_told_to_and_warns_each_time(
    tmp_path: Path, whole: Path, refuse: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    refuse(errno.ENOSPC, first=25, last=70)
    run(tmp_path / "run", train__on_save_error="continue")
    refused = [m for m in caplog.messages if "NOT SAVED" in m]
    assert [m.partition(":")[0] for m in refused] == ["step 30", "step 60"]
    assert refused[0].endswith("training goes on, there is no checkpoint yet")
    assert saved_steps(tmp_path / "run") == [90, 120]
    assert same_bits(training_stream(tmp_path / "run"), training_stream(whole))


def test_a_run_whose_last_checkpoint_was_refused_does_not_end_as_a_success(
    tmp_path: Path, refuse: Callable[..., None]
) -> None:
    refuse(errno.ENOSPC, first=100, last=10**9)
    with pytest.raises(CheckpointError, match=r"ended at step 120 UNSAVED .* is of step 90$"):
        run(tmp_path / "run", train__on_save_error="continue")


def test_a_stop_that_cannot_save_does_not_claim_to_have_saved(
    tmp_path: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(errno.ENOSPC, first=35, last=10**9)
    step = Trainer._earn_updates

    def stop_at_40(trainer: Trainer) -> None:
        step(trainer)
        if trainer.env_step == 40:
            trainer.stop.signal_number = 15

    monkeypatch.setattr(Trainer, "_earn_updates", stop_at_40)
    with pytest.raises(CheckpointError, match=r"ended at step 40 UNSAVED .* is of step 30$"):
        run(tmp_path / "run", train__on_save_error="continue")


def test_rows_that_a_full_disk_refuses_are_written_when_there_is_room(
    tmp_path: Path, whole: Path, refuse: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    refuse(errno.ENOSPC, first=40, last=85, rows=True)
    run(tmp_path / "run", train__on_save_error="continue")
    for name in ("metrics.csv", "episodes.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
        said = [m for m in caplog.messages if name in m and "kept in memory" in m]
        assert len(said) == 1, name
    assert [m.partition(":")[0] for m in caplog.messages if "NOT SAVED" in m] == ["step 60"]


def delete_at(
    step_number: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path], Any]
) -> None:
    step = Trainer._earn_updates

    def delete(trainer: Trainer) -> None:
        step(trainer)
        if trainer.env_step == step_number:
            how(trainer.run_dir)

    monkeypatch.setattr(Trainer, "_earn_updates", delete)


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_directory_that_disappears_is_noticed_and_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def moved(path: Path) -> None:
        path.rename(tmp_path / "elsewhere")

    delete_at(50, monkeypatch, shutil.rmtree if how == "deleted" else moved)
    with pytest.raises(CheckpointError, match=r"was deleted|No such file"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_its_directory_when_told_to_but_ends_as_unsaved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delete_at(50, monkeypatch, shutil.rmtree)
    with pytest.raises(CheckpointError, match="ended at step 120 UNSAVED"):
        run(tmp_path / "run", train__on_save_error="continue")
    refused = [m for m in caplog.messages if "NOT SAVED" in m]
    assert [m.partition(":")[0] for m in refused] == ["step 60", "step 90", "step 120"]
    assert "deleted or moved under the run" in refused[0]
    assert sum("rows are lost" in m for m in caplog.messages) >= 1


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_real_run_is_found_in_one_line_and_the_run_goes_on(
    flips: int,
    tmp_path: Path,
    whole: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random flips and 10 truncations in every file of the newest checkpoint."""
    monkeypatch.setattr(
        "algd.training.trainer.CheckpointStore",
        lambda *a: CheckpointStore(*a, rows_per_segment=50),
    )
    run_dir = run(tmp_path / "run")
    store, source = CheckpointStore(run_dir), random.Random(0)
    newest = run_dir / "checkpoints" / "step_000000000120"
    assert store.latest() == newest
    files = [p for p in sorted(run_dir.rglob("*")) if p.is_file() and p.suffix != ".csv"]
    tested = [p for p in files if p.parent == newest or p.parent.name == "replay"]
    assert len(tested) == 6  # manifest, tensors, tree, tail and two segments
    for path in tested:
        good = path.read_bytes()
        for how in range(flips + 10):
            caplog.clear()
            if how < flips:
                flip_bit(path, source.randrange(8 * len(good)))
            else:
                os.truncate(path, source.randrange(len(good)))
            found = store.latest()
            if path.parent == newest:
                assert found is not None
                assert found.name == "step_000000000090"
                (line,) = caplog.messages
                assert str(path) in line
                assert "\n" not in line
            else:  # a segment is read from its copy
                assert found == newest
            path.write_bytes(good)
    flip_bit(newest / "tensors.safetensors", 1000)
    resume(run_dir)
    assert same_bits(training_stream(run_dir), training_stream(whole))


def test_a_directory_that_cannot_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run(tmp_path / "run")
    open_file = os.open

    def read_only(path: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open_file(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(CheckpointError, match=r"writer\.lock cannot be written: Read-only file"):
        resume(run_dir)


def test_the_setting_has_two_values() -> None:
    with pytest.raises(ValueError, match=r"train\.on_save_error .*stop.*continue"):
        tiny(train__on_save_error="ignore")
