"""What a run records: files that are exact, survive faults, and W&B that never gets in the way."""

import csv
import importlib.machinery
import importlib.util
import io
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algd.errors import CheckpointError
from algd.training import wandb_run
from algd.training.csv_table import CsvTable
from algd.training.metric_window import MetricWindow
from algd.training.progress import Progress, SpeedMeter
from algd.training.tracking import Tracker, TrackingConfig
from algd.training.video import write_video
from algd.training.wandb_file import offline_records, offline_rows
from algd.training.wandb_run import choose_mode, login_source

REPOSITORY = Path(__file__).parents[1]


def make_tracker(run_dir: Path, *, resume_step: int | None = None, **config: Any) -> Tracker:
    config = {"wandb": "disabled", "progress": False} | config
    return Tracker(
        run_dir,
        TrackingConfig(**config),
        {"seed": 3, "env": {"id": "SafetyPointGoal1-v0"}},
        total_steps=1000,
        cost_limit=25.0,
        resume_step=resume_step,
    )


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def wandb_records(run_dir: Path, kind: str) -> list[Any]:
    import wandb

    wandb.teardown()  # its own process may still be writing
    return list(offline_records(run_dir, kind))


def wandb_rows(run_dir: Path) -> list[dict[str, Any]]:
    import wandb

    wandb.teardown()
    return list(offline_rows(run_dir))


# CSV files


def test_metrics_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    for name, seconds in (("a", 1.25), ("b", 7.5)):
        (tmp_path / name).mkdir()
        tracker = make_tracker(tmp_path / name)
        tracker.log(10, {"loss/policy": 1 / 3, "time/evaluation": seconds})
        tracker.log_time(20, {"time/checkpoint": seconds})
        tracker.close()
    metrics = (tmp_path / "a" / "metrics.csv").read_bytes()
    assert metrics == b"env_step,loss/policy\n10,0.3333333333333333\n"
    assert metrics == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert [row["time/checkpoint"] for row in read(tmp_path / "b" / "timing.csv")] == ["", "7.5"]


@given(st.lists(st.floats(width=64), min_size=1, max_size=5))
def test_floats_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = tmp_path_factory.mktemp("csv") / "metrics.csv"
    table = CsvTable(path)
    for step, value in enumerate(values):
        table.append({"env_step": step, "x": value})
    table.close()
    assert np.array_equal([float(row["x"]) for row in read(path)], values, equal_nan=True)


def test_a_late_column_loses_nothing(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "metrics.csv")
    table.append({"env_step": 1, "loss/policy": 0.5})
    table.append({"env_step": 2, "eval/cost": 12.0, "loss/policy": 0.25})
    table.append({"env_step": 3, "note": 'a,b "c"\nd'})
    table.append({"env_step": 4, "loss/policy": 1e-300})
    table.close()
    assert (tmp_path / "metrics.csv").read_text() == (
        "env_step,loss/policy,eval/cost,note\n"
        "1,0.5,,\n"
        "2,0.25,12.0,\n"
        '3,,,"a,b ""c"" d"\n'
        "4,1e-300,,\n"
    )


ROWS = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c/d", "e"]), st.floats(-5, 5), min_size=1),
    min_size=1,
    max_size=8,
)


@given(ROWS, st.data())
def test_a_killed_and_resumed_file_equals_the_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("csv")
    killed_after = data.draw(st.integers(0, len(rows)))
    saved_at = data.draw(st.integers(0, killed_after))

    def append(table: CsvTable, steps: range) -> None:
        for step in steps:
            table.append({"env_step": step, **rows[step - 1]})
        table.close()

    append(CsvTable(directory / "whole.csv"), range(1, len(rows) + 1))
    append(CsvTable(directory / "cut.csv"), range(1, killed_after + 1))
    if killed_after and data.draw(st.booleans()):
        with (directory / "cut.csv").open("a") as file:
            file.write("9,0.12")  # the kill came in the middle of a write
    resumed = CsvTable(directory / "cut.csv", resume_step=saved_at)
    append(resumed, range(saved_at + 1, len(rows) + 1))
    assert (directory / "cut.csv").read_bytes() == (directory / "whole.csv").read_bytes()
    assert sorted(path.name for path in directory.iterdir()) == ["cut.csv", "whole.csv"]


def test_a_row_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "metrics.csv")
    for step in range(3):
        table.append({"env_step": step, "x": 1.0})
        assert len(read(tmp_path / "metrics.csv")) == step + 1
    table.close()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse, as a full disk does, what would make a file larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("late_column", [False, True])
def test_a_refused_write_leaves_the_file_as_it_was(tmp_path: Path, late_column: bool) -> None:
    path = tmp_path / "metrics.csv"
    table = CsvTable(path)
    table.append({"env_step": 1, "x": 0.5})
    table.append({"env_step": 2, "x": 0.25})
    before = path.read_bytes()
    row = {"env_step": 3, "y" if late_column else "x": 0.123456789}
    with file_size_limit(len(before) + 4), pytest.raises(CheckpointError, match=str(path)):
        table.append(row)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    table.append(row)
    table.close()
    assert [row["env_step"] for row in read(path)] == ["1", "2", "3"]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = CsvTable(tmp_path / "metrics.csv")
    table.append({"env_step": 1, "x": 0.5})

    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(CheckpointError, match="No space left"):
            table.append({"env_step": 2, "x": 0.5})
    table.close()


def test_a_new_run_does_not_touch_an_old_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("env_step,x\n1,2.0\n")
    with pytest.raises(CheckpointError, match="exists already"):
        make_tracker(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "env_step,x\n1,2.0\n"


def test_a_foreign_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("time,x\nnow,2.0\n")
    with pytest.raises(CheckpointError, match="not a table that algd wrote"):
        make_tracker(tmp_path, resume_step=5)
    assert (tmp_path / "metrics.csv").read_text() == "time,x\nnow,2.0\n"


def test_a_row_without_its_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 'env_step', got \\['return'\\]"):
        make_tracker(tmp_path).episode({"return": 1.0})


def test_a_time_must_be_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must start with 'time/', got \\['seconds'\\]"):
        make_tracker(tmp_path).log_time(1, {"seconds": 1.0})


@pytest.mark.parametrize("field", ["project", "job_type"])
def test_an_empty_name_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must not be empty, got ' '"):
        TrackingConfig(**{field: " "})


# W&B: the real package, offline, read back from its own file


def test_wandb_offline_records_everything_on_the_env_step_axis(
    tmp_path: Path, no_wandb_login: None, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-40"
    (checkpoint / "replay").mkdir(parents=True)
    (checkpoint / "agent.safetensors").write_bytes(b"weights")
    (checkpoint / "replay" / "rows-0.bin").write_bytes(b"rows")
    video = write_video(tmp_path / "final.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3, 10)
    assert video is not None
    tracker = make_tracker(
        tmp_path, wandb="auto", group="ablation", tags=("cpu", "seed3"), job_type="sweep"
    )
    tracker.log(20, {"train/return": 0.5, "loss/policy": float("nan")})
    tracker.log_time(20, {"time/checkpoint": 2.0})
    tracker.log(40, {"train/return": 1 / 3})
    tracker.histogram("train/multiplier_values", np.array([0.0, 1.0, 2.0, np.inf]), 40)
    tracker.video(video, 40)
    tracker.checkpoint(checkpoint, 40)
    tracker.finish({"best safe": {"eval/cost": 12.5}})

    (run,) = wandb_records(tmp_path, "run")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["env"] == {"id": "SafetyPointGoal1-v0"}
    assert config["seed"] == 3
    assert (run.project, run.run_group, run.job_type) == ("algd", "ablation", "sweep")
    assert list(run.tags) == ["cpu", "seed3"]
    assert run.run_id == json.loads((tmp_path / "wandb.json").read_text())["run_id"]

    axes = {m.name or m.glob_name: m.step_metric for m in wandb_records(tmp_path, "metric")}
    assert axes["*"] == "env_step"
    first, second, histogram, shown = wandb_rows(tmp_path)
    assert first["env_step"] == 20
    assert first["train/return"] == 0.5
    assert np.isnan(first["loss/policy"])
    assert second["train/return"] == 1 / 3
    assert second["time/checkpoint"] == 2.0
    assert sum(histogram["train/multiplier_values"]["values"]) == 3  # the infinity is not counted
    assert shown["eval/video"]["path"].endswith(".mp4")
    assert shown["env_step"] == 40

    (artifact,) = wandb_records(tmp_path, "artifact")
    assert list(artifact.aliases) == ["latest"]
    (entry,) = artifact.manifest.contents
    assert entry.path == "agent.safetensors"
    (checkpoint / "agent.safetensors").unlink()  # old checkpoints are removed before a late sync
    assert Path(entry.local_path).read_bytes() == b"weights"
    summaries = wandb_records(tmp_path, "summary")
    names = {(u.key or "/".join(u.nested_key)) for s in summaries for u in s.update}
    assert "best_safe/eval/cost" in names
    assert capfd.readouterr() == ("", "")


KILLED_RUN = """
import os, signal, sys
import numpy as np
from pathlib import Path
from algd.training.tracking import Tracker, TrackingConfig
tracker = Tracker(Path(sys.argv[1]), TrackingConfig(wandb="offline", progress=False), {},
                  total_steps=100, cost_limit=1.0)
for step in (10, 20, 30, 40):
    tracker.log(step, {"x": float(step)})
    if step in (20, 40):
        tracker.log(step, {"y": float(step)})
        tracker.histogram("h", np.arange(step, dtype=np.float32), step)
        tracker.image("pictures/p", np.full((4, 6, 3), step, np.uint8), step)
if sys.argv[2] == "saved":
    tracker.close()  # W&B's file is complete
    import wandb
    wandb.teardown()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("wandb_file", ["saved", "lost"])
def test_a_killed_and_resumed_run_hands_every_row_to_wandb_once(
    wandb_file: str, tmp_path: Path, no_wandb_login: None
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(tmp_path), wandb_file],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    first_id = json.loads((tmp_path / "wandb.json").read_text())["run_id"]
    tracker = make_tracker(tmp_path, wandb="offline", resume_step=20)
    for step in (30, 40, 50):
        tracker.log(step, {"x": float(step)})
        if step in (40, 50):
            tracker.log(step, {"y": float(step)})
            tracker.histogram("h", np.arange(step, dtype=np.float32), step)
            tracker.image("pictures/p", np.full((4, 6, 3), step, np.uint8), step)
    tracker.finish({})
    found = wandb_rows(tmp_path)
    # What the killed process still got to W&B comes first, the rest in the order of the steps.
    numbers = [(row["env_step"], name) for row in found for name in ("x", "y") if name in row]
    assert sorted(numbers) == [
        *[(10, "x"), (20, "x"), (20, "y"), (30, "x"), (40, "x"), (40, "y")],
        *[(50, "x"), (50, "y")],
    ]
    assert numbers == sorted(numbers)
    histograms = {row["env_step"]: row["h"] for row in found if "h" in row}
    assert sum("h" in row for row in found) == len(histograms)
    for step, histogram in histograms.items():
        counts, edges = np.histogram(np.arange(step, dtype=np.float32), bins=64)
        assert (histogram["values"], histogram["bins"]) == (counts.tolist(), edges.tolist())
    pictures = {row["env_step"]: row["pictures/p"] for row in found if "pictures/p" in row}
    assert sum("pictures/p" in row for row in found) == len(pictures)
    assert len({picture["sha256"] for picture in pictures.values()}) == 3
    assert list(histograms) == list(pictures) == [20, 40, 50]
    assert {run.run_id for run in wandb_records(tmp_path, "run")} == {first_id}
    assert [row["env_step"] for row in read(tmp_path / "metrics.csv")] == [
        *["10", "20", "20", "30", "40", "40", "50", "50"],
    ]


class BrokenWandb(SimpleNamespace):
    """Stands for wandb when the given call raises; everything else succeeds."""

    def __init__(self, broken: str) -> None:
        self.calls: list[str] = []
        super().__init__(
            __spec__=importlib.machinery.ModuleSpec("wandb", None),
            Settings=dict,
            setup=lambda _: None,
            Histogram=lambda np_histogram: np_histogram,
            Video=lambda path, **_: path,
            init=self._step("init", lambda **_: self),
            define_metric=self._step("define_metric", lambda *_, **__: None),
            log=self._step("log", lambda *_: None),
            finish=self._step("finish", lambda **_: None),
            offline=True,
            summary={},
        )
        self._broken = broken

    def _step(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.calls.append(name)
            if name == self._broken:
                raise RuntimeError("the server\nis gone")
            return answer(*args, **named)

        return call


@pytest.mark.parametrize("broken", ["init", "define_metric", "log", "finish"])
def test_a_failing_wandb_is_said_once_and_stops_nothing(
    broken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wandb = BrokenWandb(broken)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = make_tracker(tmp_path, wandb="offline")
    for step in range(5):
        tracker.log(step, {"x": 1.0})
    tracker.finish({})
    assert broken in wandb.calls
    assert len(read(tmp_path / "metrics.csv")) == 5
    (notice,) = caplog.messages
    assert notice.endswith("failed, training goes on: the server")


def test_an_unreachable_server_means_recording_offline(
    tmp_path: Path,
    no_wandb_login: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    caplog.set_level(logging.WARNING)
    tracker = make_tracker(tmp_path, wandb="auto")
    tracker.log(10, {"x": 0.5})
    tracker.finish({})
    (row,) = wandb_rows(tmp_path)
    assert (row["env_step"], row["x"]) == (10, 0.5)
    (notice,) = [m for m in caplog.messages if m.startswith("W&B: ")]
    assert notice.endswith("; recording offline instead")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_did_not_answer_is_not_waited_for_by_the_next_seed(
    tmp_path: Path,
    no_wandb_login: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import wandb

    monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:19")
    init, modes = wandb.init, []

    def noted(**settings: Any) -> Any:
        modes.append(settings["mode"])
        return init(**settings)

    monkeypatch.setattr(wandb, "init", noted)
    trackers = []
    for name in ("seed_0", "seed_1"):
        (tmp_path / name).mkdir()
        trackers.append(make_tracker(tmp_path / name, wandb="online"))
    for step, tracker in enumerate(trackers):
        tracker.log(step, {"x": 0.5})
        tracker.finish({})
    assert modes == ["online", "offline", "offline"]
    assert [wandb_rows(tmp_path / name)[0]["env_step"] for name in ("seed_0", "seed_1")] == [0, 1]
    assert "http://127.0.0.1:19 did not answer a moment ago" in caplog.text


def test_a_server_that_goes_away_between_two_seeds_costs_no_row(
    tmp_path: Path, no_wandb_login: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers = []
    for name, mode in (("seed_0", "offline"), ("seed_1", "online")):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 1.0)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:21")
        trackers.append(make_tracker(tmp_path / name, wandb=mode))
    for step, tracker in enumerate(trackers):
        tracker.log(step, {"x": 0.5})
    for tracker in trackers:
        tracker.finish({})
    assert [wandb_rows(tmp_path / name)[0]["env_step"] for name in ("seed_0", "seed_1")] == [0, 1]


def test_the_process_of_wandb_lives_as_long_as_one_seed_writes_to_it(
    tmp_path: Path, no_wandb_login: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(wandb_run, "_end_service", lambda: ended.append(len(trackers)))
    trackers = []
    for name in ("seed_0", "seed_1"):
        (tmp_path / name).mkdir()
        trackers.append(make_tracker(tmp_path / name, wandb="offline"))
    trackers[0].close(wandb_seconds=0.0)  # gives W&B no time at all
    assert not ended
    trackers[1].log(7, {"x": 0.25})
    trackers[1].finish({})
    assert ended == [2]
    assert [row["env_step"] for row in wandb_rows(tmp_path / "seed_1")] == [7]


@pytest.mark.parametrize(
    ("requested", "variable", "logged_in", "expected"),
    [
        ("auto", None, True, "online"),
        ("auto", None, False, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "online", False, "offline"),
        ("online", "disabled", True, "online"),
        ("online", None, False, "offline"),
        ("offline", None, True, "offline"),
        ("disabled", "online", True, "disabled"),
    ],
)
def test_wandb_mode(
    requested: Any,
    variable: str | None,
    logged_in: bool,
    expected: str,
    no_wandb_login: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    if logged_in:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode(requested) == expected


def test_login_is_found_in_the_netrc_of_the_configured_server(
    tmp_path: Path, no_wandb_login: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert login_source() is None
    file = tmp_path / "netrc"
    file.write_text("machine wandb.example.org login user password secret\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    assert login_source() is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert login_source() == str(file)


@pytest.mark.parametrize(("requested", "notices"), [("auto", 0), ("offline", 1)])
def test_a_machine_without_wandb_records_csv(
    requested: Any,
    notices: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "wandb" else find_spec(name, *rest),
    )
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = make_tracker(tmp_path, wandb=requested)
    tracker.log(1, {"x": 1.0})
    tracker.finish({})
    assert len(read(tmp_path / "metrics.csv")) == 1
    assert len(caplog.messages) == notices


# TensorBoard


def test_tensorboard_holds_the_same_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = make_tracker(tmp_path, tensorboard=True)
    tracker.log(10, {"train/return": 0.5})
    tracker.log(20, {"train/return": 0.75})
    tracker.histogram("train/multiplier_values", np.arange(4.0), 20)
    tracker.finish({})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/return")
    assert [(event.step, event.value) for event in scalars] == [(10, 0.5), (20, 0.75)]
    (histogram,) = events.Histograms("train/multiplier_values")
    assert histogram.histogram_value.num == 4


def test_a_machine_without_tensorboard_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tracker = make_tracker(tmp_path, tensorboard=True)
    tracker.log(10, {"train/return": 0.5})
    tracker.finish({})
    assert caplog.messages == [
        "TensorBoard: not installed (pip install tensorboard); no event files"
    ]


# Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_speed_that_is_not_known_is_not_0() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(10, cost_limit=1.0, stream=stream, clock=clock)
    progress.update(10, 5)
    progress.draw(episode_return=None, cost=None, multiplier=None)
    assert "- steps/s, - updates/s, -:-- left" in stream.getvalue()


def test_speed_counts_the_pauses_of_evaluation() -> None:
    clock = Clock()
    meter = SpeedMeter(clock)
    for step in range(101):
        meter.update(step, 2 * step)
        clock.now += 0.1
    assert meter.speeds() == pytest.approx((9.9, 19.8), rel=0.02)
    clock.now += 10.0  # evaluation: as long again, without a step
    assert meter.speeds() == pytest.approx((5.0, 10.0), rel=0.02)


def test_speed_forgets_what_is_long_ago() -> None:
    clock = Clock()
    meter = SpeedMeter(clock)
    step = 0
    for seconds, per_second in ((1000, 100), (200, 10)):
        for _ in range(seconds):
            meter.update(step, step)
            clock.now += 1.0
            step += per_second
    meter.update(step, step)
    assert meter.speeds() == pytest.approx((10.0, 10.0), rel=0.02)
    assert len(meter._samples) < 300


def draw_run(stream: io.StringIO, seconds_per_step: float, total: int = 1000) -> str:
    clock = Clock()
    progress = Progress(total, cost_limit=25.0, stream=stream, clock=clock)
    for step in range(1, total + 1):
        clock.now += seconds_per_step
        if progress.update(step, step):
            progress.draw(episode_return=12.345, cost=30.0, multiplier=0.5)
    progress.close()
    return stream.getvalue()


def test_a_log_file_gets_few_plain_lines() -> None:
    slow = draw_run(io.StringIO(), 1.0).splitlines()
    fast = draw_run(io.StringIO(), 0.001).splitlines()
    assert 20 <= len(fast) <= 22  # every 5 %
    assert 33 <= len(slow) <= 36  # every 30 s of 1000 s
    assert slow[-1].startswith((" 98%", " 99%", "100%"))
    assert not any("\r" in line or "\x1b" in line for line in slow + fast)
    assert "return 12.35, cost 30.00/25, multiplier 0.5" in slow[5]


def test_the_remaining_time_is_what_is_left_at_the_recent_speed() -> None:
    line = draw_run(io.StringIO(), 2.0).splitlines()[30]
    step = int(line.split("/")[0].split()[-1])
    assert 400 < step < 600
    assert " 0.5 steps/s, 0.5 updates/s, " in line
    minutes, seconds = map(int, line.split(" left")[0].split()[-1].split(":"))
    assert minutes * 60 + seconds == pytest.approx((1000 - step) / 0.5, rel=0.02)


def test_steps_before_the_first_update_say_nothing_about_the_rest() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(2000, cost_limit=25.0, stream=stream, clock=clock)
    for step in range(1, 1101):
        clock.now += 0.001 if step <= 1000 else 0.5
        if progress.update(step, max(0, step - 1000)):
            progress.draw(episode_return=None, cost=None, multiplier=None)
    lines = stream.getvalue().splitlines()
    warming = [line for line in lines if " 0.0 updates/s" in line]
    assert len(warming) > 5
    assert all("-:-- left" in line for line in warming)
    assert "1061/2000 steps, 2.0 steps/s, 2.0 updates/s, 7:50 left" in lines[-1]


@pytest.mark.parametrize(("columns", "bar"), [(60, False), (100, False), (130, True)])
def test_a_terminal_gets_one_line_redrawn_in_place(
    columns: int, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = draw_run(Terminal(), 0.1)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = text.removesuffix("\n").split("\r\x1b[K")[1:]
    assert len(lines) > 100
    assert max(map(len, lines)) < columns
    assert all(line.startswith("[") == bar for line in lines)


def test_a_notice_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    terminal = Terminal()
    progress = Progress(10, cost_limit=1.0, stream=terminal, clock=Clock())
    progress.update(5, 5)
    progress.draw(episode_return=None, cost=None, multiplier=None)
    logging.getLogger("algd.training.video").warning("no encoder")
    progress.close()
    logging.getLogger("algd.training.video").warning("after the run")
    assert terminal.getvalue().endswith("multiplier -\r\x1b[Kno encoder\n")
    assert logging.getLogger("algd").handlers == []


def test_disabled_progress_prints_nothing_and_still_measures() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(100, cost_limit=1.0, enabled=False, stream=stream, clock=clock)
    for step in range(100):
        clock.now += 0.5
        assert not progress.update(step, 0)
    progress.close()
    assert stream.getvalue() == ""
    assert progress.speeds()[0] == pytest.approx(2.0, rel=0.05)


def test_the_tracker_shows_return_cost_and_multiplier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = make_tracker(tmp_path, progress=True)
    window = SimpleNamespace(means=lambda: {"train/multiplier": 0.25})
    tracker.progress(
        env_step=500, num_updates=10, episodes=[(1.0, 20.0), (2.0, 40.0)], multiplier=window
    )
    tracker.close()
    assert "return 1.50, cost 30.00/25, multiplier 0.25" in capsys.readouterr().err


def test_the_multiplier_of_the_last_row_is_shown_where_no_update_came_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = make_tracker(tmp_path, progress=True)
    tracker.log(500, {"train/multiplier": 0.75})
    tracker.progress(env_step=500, num_updates=10, episodes=[], multiplier=MetricWindow())
    tracker.close()
    assert "multiplier 0.75" in capsys.readouterr().err


# Video


def test_a_video_holds_every_frame_at_its_size_and_speed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import imageio_ffmpeg

    levels = list(range(20, 220, 10))
    frames = (np.full((49, 65, 3), level, np.uint8) for level in levels)
    path = write_video(tmp_path / "videos" / "final.mp4", frames, 25)
    assert path == tmp_path / "videos" / "final.mp4"
    decoded = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True,
        check=True,
    )
    stream = next(line for line in decoded.stderr.decode().splitlines() if "Video:" in line)
    assert all(word in stream for word in ("h264", "64x48", "25 fps"))
    shown = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 48 * 64 * 3).mean(1)
    assert shown == pytest.approx(levels, abs=3)
    assert [file.name for file in path.parent.iterdir()] == ["final.mp4"]
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_video_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "final.mp4"
    path.write_bytes(b"old")

    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((16, 16, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, frames(), 30)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_video_that_cannot_be_written_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    (tmp_path / "file").write_text("")
    assert write_video(tmp_path / "file" / "a.mp4", [frame], 30) is None
    assert write_video(tmp_path / "a.mp4", [], 30) is None
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    assert write_video(tmp_path / "b.mp4", [frame], 30) is None
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert write_video(tmp_path / "c.mp4", [frame], 30) is None
    assert len(caplog.messages) == 4
    assert not any("\n" in message for message in caplog.messages)
    assert "pip install imageio-ffmpeg" in caplog.messages[3]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "frame", [np.zeros((16, 16), np.uint8), np.zeros((16, 16, 3)), np.zeros((16, 16, 4), np.uint8)]
)
def test_a_frame_that_is_no_rgb_image_is_refused(tmp_path: Path, frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", [frame], 30)
