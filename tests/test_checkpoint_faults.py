"""Damaged, cut short, full, killed: what was saved before is used, and said in one line."""

import errno
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from saved_runs import (
    add_rows,
    assert_restores,
    files_under,
    flip_bit,
    make_replay,
    make_run,
    open_store,
    same_bits,
    tree_of,
)
from test_state_tree import Trap

from alam.replay import ReplayBuffer
from algd.errors import CheckpointError
from algd.training import manifest
from algd.training.checkpoint import CheckpointStore
from algd.training.durable_files import record_of
from algd.training.manifest import Rows, read_manifest
from algd.training.state_tree import TENSOR_FILE

CHECKPOINT_FILES = ["manifest.json", "tensors.safetensors", "tree.json", "replay_tail.bin"]
NEWEST = Path("checkpoints") / "step_000000000060"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can cut the power; that fsync is called in time is a test of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> tuple[Path, ReplayBuffer, ReplayBuffer]:
    """Return a run saved at steps 40 and 60, and the replay it had at each."""
    run_dir = tmp_path / "run"
    newer = make_run(run_dir, [40, 60])
    older = make_replay()
    add_rows(older, 40)
    return run_dir, older, newer


def damage(path: Path, how: int, source: random.Random) -> None:
    size = path.stat().st_size
    match how:
        case 0:
            path.unlink()
        case 1:
            os.truncate(path, 0)
        case 2:
            os.truncate(path, source.randrange(1, size))
        case 3:
            path.write_bytes(path.read_bytes() + b"\0")
        case _:
            flip_bit(path, source.randrange(8 * size))


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_damaged_file_is_found_and_the_checkpoint_before_is_used(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir, older, newer = two_checkpoints
    path = run_dir / NEWEST / name
    whole, source = path.read_bytes(), random.Random(name)
    for how in range(50):
        caplog.clear()
        damage(path, how, source)
        assert_restores(run_dir, older, 40)
        (line,) = caplog.messages
        assert str(path) in line
        assert "\n" not in line
        path.write_bytes(whole)
    caplog.clear()
    assert_restores(run_dir, newer, 60)
    assert caplog.messages == []


def test_every_bit_of_a_manifest_matters(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    path = two_checkpoints[0] / NEWEST / "manifest.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 23):  # odd, so that every position in a byte is met
        flip_bit(path, bit)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            read_manifest(path.parent)
        path.write_bytes(whole)


@pytest.mark.parametrize("how", range(8))
@pytest.mark.parametrize("index", [0, 1, 2])
def test_damaged_segment_is_read_from_its_copy_and_repaired_by_the_next_save(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
    how: int,
    index: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_dir, _, newer = two_checkpoints
    segment = sorted((run_dir / "replay").iterdir())[index]
    damage(segment, how, random.Random(how))
    assert_restores(run_dir, newer, 60)
    (line,) = caplog.messages
    assert str(segment) in line
    assert "other copy is used" in line

    store, restored = open_store(run_dir), make_replay()
    store.restore_replay(run_dir / NEWEST, restored)
    store.save(61, tree_of(61), restored)
    shutil.rmtree(run_dir / "replay_copy")
    caplog.clear()
    assert_restores(run_dir, restored, 61)
    assert caplog.messages == []


def test_segment_damaged_in_both_copies_costs_only_the_checkpoints_that_share_it(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    run_dir, older, _ = two_checkpoints
    segments = sorted((run_dir / "replay").iterdir())
    for copy in ("replay", "replay_copy"):
        flip_bit(run_dir / copy / segments[2].name, 100)  # rows 32 to 48: not yet full at step 40
    assert_restores(run_dir, older, 40)
    for copy in ("replay", "replay_copy"):
        flip_bit(run_dir / copy / segments[1].name, 100)
    with pytest.raises(CheckpointError, match=r"checkpoints holds no usable .*: all 2 are damaged"):
        open_store(run_dir).latest()
    assert same_bits(open_store(run_dir).load(), tree_of(60))  # the policy needs no replay


def test_buffer_is_left_empty_by_a_damaged_segment(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    run_dir, _, replay = two_checkpoints
    for copy in ("replay", "replay_copy"):
        flip_bit(sorted((run_dir / copy).iterdir())[1], 100)
    with pytest.raises(CheckpointError, match=r"segment_00000001.*SHA-256"):
        open_store(run_dir).restore_replay(run_dir / NEWEST, replay)
    assert len(replay) == 0


def test_damaged_policy_is_replaced_by_the_one_kept_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, [10])
    store = open_store(tmp_path)
    for step in (10, 20):
        path = store.save_policy("best_safe", step, tree_of(step))
    flip_bit(path / TENSOR_FILE, 99)
    assert same_bits(store.load_policy("best_safe"), tree_of(10))
    assert [str(path / TENSOR_FILE) in line for line in caplog.messages] == [True]


def test_after_a_fallback_the_damaged_checkpoint_is_not_counted_as_kept(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    run_dir, _, _ = two_checkpoints
    flip_bit(run_dir / NEWEST / "tree.json", 9)
    store, replay = open_store(run_dir), make_replay()
    path = store.latest()
    assert path is not None
    store.restore_replay(path, replay)
    add_rows(replay, 40)
    store.save(80, tree_of(80), replay, keep=2)
    assert {p.name for p in path.parent.iterdir()} == {path.name, "step_000000000080"}


class Killed(BaseException):
    """The process is gone: nothing after this call happens, clean-up included."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Return a function after which the n-th change to the disk, and all later ones, fail."""
    remaining = [1 << 60]

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if remaining[0] == 0:
                raise Killed
            remaining[0] -= 1
            return call(*args, **kwargs)

        return change

    def set_remaining(count: int) -> None:
        remaining[0] = count

    for owner, name in [
        (Path, "mkdir"),
        (Path, "open"),
        (Path, "rename"),
        (Path, "unlink"),
        (os, "fsync"),
        (os, "rmdir"),
        (os, "unlink"),
    ]:
        monkeypatch.setattr(owner, name, guarded(getattr(owner, name)))
    yield set_remaining
    remaining[0] = 1 << 60


def test_killed_at_any_change_to_the_disk_a_run_has_the_old_checkpoint_or_the_new(
    tmp_path: Path, kill_at: Callable[[int], None]
) -> None:
    make_run(tmp_path / "run", [40, 60])
    outcomes: list[int] = []
    for changes in range(500):
        run_dir = tmp_path / str(changes)
        shutil.copytree(tmp_path / "run", run_dir)
        store, replay = open_store(run_dir), make_replay()
        store.restore_replay(run_dir / NEWEST, replay)
        older = make_replay()
        add_rows(older, 60)
        add_rows(replay, 40)
        kill_at(changes)
        try:
            store.save(100, tree_of(100), replay)
            finished = True
        except Killed:
            finished = False
        kill_at(1 << 60)
        found = open_store(run_dir).latest()
        assert found is not None
        outcomes.append(100 if found.name == "step_000000000100" else 60)
        assert_restores(run_dir, replay if outcomes[-1] == 100 else older, outcomes[-1])
        for listed in (run_dir / "checkpoints").glob("step_*"):
            open_store(run_dir).load(listed)
            open_store(run_dir).restore_replay(listed, make_replay())

        # The next save clears away what the dead process left.
        store, again = open_store(run_dir), make_replay()
        store.restore_replay(found, again)
        add_rows(again, 120 - again.total_added)
        store.save(120, tree_of(120), again)
        assert_restores(run_dir, again, 120)
        assert not [name for name in files_under(run_dir) if "unfinished" in name]
        shutil.rmtree(run_dir)
        if finished:
            break
    else:
        pytest.fail("the save never finished")
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {60, 100}


def test_a_checkpoint_appears_only_when_all_it_needs_is_on_the_device(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _, _ = two_checkpoints
    store, replay = open_store(run_dir), make_replay()
    store.restore_replay(run_dir / NEWEST, replay)
    add_rows(replay, 40)
    events: list[str] = []
    synced, renamed = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(run_dir)))
        synced(descriptor)

    def rename(path: Path, target: Path) -> Path:
        events.append(f"-> {target.relative_to(run_dir)}")
        return renamed(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    path = store.save(100, tree_of(100), replay)
    name = f"checkpoints/{path.name}"
    published = events.index(f"-> {name}")
    before = {event.replace(".unfinished-", "") for event in events[:published]}
    segments = {
        f"{copy}/{p.name}"
        for copy in ("replay", "replay_copy")
        for p in (run_dir / copy).iterdir()
        if int(p.name[8:16]) >= 3
    }
    assert len(segments) == 6
    assert before >= segments | {f"-> {segment}" for segment in segments}
    assert before >= {
        "replay",
        "replay_copy",
        name,
        *(f"{name}/{file}" for file in CHECKPOINT_FILES),
    }
    assert events[published - 2 : published + 2] == [
        f"checkpoints/.unfinished-{path.name}/manifest.json",
        f"checkpoints/.unfinished-{path.name}",
        f"-> {name}",
        "checkpoints",
    ]


def no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("succeeding", range(20))
def test_full_disk_is_one_error_and_leaves_the_disk_as_it_was(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
    succeeding: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir, _, newer = two_checkpoints
    store, replay = open_store(run_dir), make_replay()
    store.restore_replay(run_dir / NEWEST, replay)
    add_rows(replay, 40)
    before = files_under(run_dir)
    synced, calls = os.fsync, iter(range(1000))
    message = None
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda f: (synced if next(calls) < succeeding else no_space)(f))
        try:
            store.save(100, tree_of(100), replay)
        except CheckpointError as error:
            message = str(error)
    if message is None:
        assert succeeding >= 12
        assert_restores(run_dir, replay, 100)
    else:
        assert message == (
            f"step 100 could not be saved in {run_dir}/checkpoints: No space left on device; "
            "earlier checkpoints are untouched"
        )
        assert files_under(run_dir) == before
        assert_restores(run_dir, newer, 60)
    store.save(101, tree_of(101), replay)
    assert_restores(run_dir, replay, 101)


def test_device_that_refuses_bytes_in_the_middle_of_a_file_is_a_failed_save(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    run_dir, _, newer = two_checkpoints
    before = files_under(run_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tree = {"large": list(range(20_000))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step 100 could not .*: File too large"):
            open_store(run_dir).save(100, tree, newer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_under(run_dir) == before


def test_value_that_cannot_be_saved_leaves_the_disk_as_it_was(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer],
) -> None:
    run_dir, _, newer = two_checkpoints
    before = files_under(run_dir)
    with pytest.raises(TypeError, match="root/env"):
        open_store(run_dir).save(100, {"env": object()}, newer)
    assert files_under(run_dir) == before


def test_a_run_whose_directory_was_deleted_saves_everything_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    store, replay = open_store(run_dir), make_replay()
    for step in (40, 60):
        add_rows(replay, step - replay.total_added)
        store.save(step, tree_of(step), replay)
    shutil.rmtree(run_dir)
    add_rows(replay, 33)  # rows 43 to 93 are held: segment 2 has lost its first rows
    store.save(93, tree_of(93), replay)
    assert_restores(run_dir, replay, 93)


def forge(path: Path, change: Callable[[manifest.Manifest], manifest.Manifest]) -> None:
    """Rewrite a manifest with a right checksum, as an attacker would."""
    (path / "manifest.json").write_bytes(change(read_manifest(path)).render())


def test_pickle_with_a_right_checksum_is_not_executed(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer], tmp_path: Path
) -> None:
    path = two_checkpoints[0] / NEWEST
    data = pickle.dumps(Trap(tmp_path / "sprung"))
    (path / TENSOR_FILE).write_bytes(data)
    forge(path, lambda m: replace(m, files={**m.files, TENSOR_FILE: record_of(data)}))
    with pytest.raises(CheckpointError, match="holds no saved tree"):
        open_store(two_checkpoints[0]).load()
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/passwd", "a/b.bin", "..", "", ".", "a\0b.c"]
)
def test_manifest_cannot_name_a_file_elsewhere(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer], name: str
) -> None:
    path = two_checkpoints[0] / NEWEST
    whole = (path / "manifest.json").read_bytes()

    def move_rows(m: manifest.Manifest) -> manifest.Manifest:
        assert m.replay is not None
        first: Rows = m.replay.files[0]
        files = (replace(first, name=name), *m.replay.files[1:])
        return replace(m, replay=replace(m.replay, files=files))

    for change in (move_rows, lambda m: replace(m, files={**m.files, name: record_of(b"")})):
        forge(path, change)
        with pytest.raises(CheckpointError, match=r"json is not a manifest: .*not allowed"):
            open_store(two_checkpoints[0]).latest()
        (path / "manifest.json").write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": 10},
        {"first": 5},
        {"first": 30},
        {"total_added": 61},
        {"row_width": 12},
        {"capacity": -1},
        {"capacity": "50"},
    ],
)
def test_replay_record_that_contradicts_itself_is_refused(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer], change: dict[str, Any]
) -> None:
    path = two_checkpoints[0] / NEWEST
    content = json.loads((path / "manifest.json").read_bytes())["manifest"]
    content["replay"].update(change)
    (path / "manifest.json").write_bytes(manifest._render(content))
    with pytest.raises(CheckpointError, match="is not a manifest"):
        open_store(two_checkpoints[0]).latest()


def test_later_format_is_refused_with_both_versions(
    two_checkpoints: tuple[Path, ReplayBuffer, ReplayBuffer], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _, newer = two_checkpoints
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT", 2)
        patch.setattr(manifest, "__version__", "7.5.0")
        open_store(run_dir).save(70, tree_of(70), newer)
    message = (
        r"step_000000000070/manifest\.json has format 2, written by algd 7\.5\.0; this algd .* 1$"
    )
    for read in (open_store(run_dir).latest, open_store(run_dir).load):
        with pytest.raises(CheckpointError, match=message):
            read()


def test_reader_beside_a_running_writer_always_finds_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, [10])
    writer, reader = open_store(tmp_path), open_store(tmp_path)
    read, steps = CheckpointStore.manifest, iter([11, 12, 13])

    def overtaken(store: CheckpointStore, path: Path) -> manifest.Manifest:
        found = read(store, path)
        step = next(steps, None)
        if step is not None:
            writer.save(step, tree_of(step), None, keep=1)
        return found

    monkeypatch.setattr(CheckpointStore, "manifest", overtaken)
    assert same_bits(reader.load(), tree_of(13))
    assert caplog.messages == []


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from saved_runs import add_rows, make_replay, open_store, tree_of
store, replay = open_store(Path(sys.argv[1])), make_replay()
path = store.latest()
if path is not None:
    store.restore_replay(path, replay)
print("ready", flush=True)
while True:
    add_rows(replay, 7)
    store.save(replay.total_added, tree_of(replay.total_added), replay)
"""


@pytest.mark.slow
def test_writer_killed_at_random_moments_always_leaves_a_good_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run", [7])
    source, last = random.Random(0), 7
    for _ in range(15):
        arguments = [str(tmp_path / "run"), str(Path(__file__).parent)]
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(source.uniform(0.0, 0.3))
            writer.send_signal(signal.SIGKILL)
        path = open_store(tmp_path / "run").latest()
        assert path is not None
        step = open_store(tmp_path / "run").load(path)["step"]
        assert step >= last
        last, expected = step, make_replay()
        for _ in range(step // 7):
            add_rows(expected, 7)
        assert_restores(tmp_path / "run", expected, step)
    assert last > 100
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
