"""Signals, and two processes on one run: saved and left in time, refused, taken over."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from faults.tiny_runs import TINY, run, saved_steps
from faults.wandb_server import WandbServer

from algd.errors import CheckpointError
from algd.training.checkpoint import CheckpointStore
from algd.training.run_lock import LOCK_FILE, RunLock, writer_of
from algd.training.trainer import continued
from algd.training.trainer import resume as resume_run

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "algd.experiments.cli", "train")


def start(
    run_dir: Path, *, environment: dict[str, str] | None = None, **changes: object
) -> "subprocess.Popen[str]":
    settings = TINY | {k.replace("__", "."): v for k, v in changes.items()}
    return subprocess.Popen(
        [
            *COMMAND,
            "sac",
            *(f"--{k}={json.dumps(v)}" for k, v in settings.items()),
            "--run-dir",
            str(run_dir),
        ],
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]", size: int = 1) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < size:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "during",
    [
        {"evaluation__episodes": 10**6},  # the evaluation before the first step would take hours
        {"train__updates_per_step": 1e5, "train__learning_starts": 1},  # one step takes hours
    ],
    ids=["evaluation", "updates"],
)
def test_sigterm_saves_and_exits_with_0_within_10_seconds(
    tmp_path: Path, during: dict[str, object]
) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir, **during)
    if "evaluation__episodes" in during:
        wait_for(run_dir / LOCK_FILE, process)
    else:
        wait_for(run_dir / "metrics.csv", process)
    time.sleep(1.0)
    before = processor_seconds(process.pid)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - ended.ru_utime - ended.ru_stime - before
    assert spent < 10.0  # processor time, since the machine may be busy with other things
    assert process.returncode == 0, error
    assert "checkpoint written; continue with: algd train --resume" in error
    assert len(saved_steps(run_dir)) == 1
    assert (run_dir / LOCK_FILE).read_bytes() == b""


HANGING = {
    "env.id": "faults.crashing_envs:Crashing-v0",
    "env.num_envs": 2,
    "env.kwargs": {"how": "hang", "index": 1, "episode": 2},
}


@pytest.mark.parametrize("vector", ["subprocess", "parallel", "sync"])
def test_sigterm_ends_a_run_whose_environment_hangs_within_10_seconds(
    tmp_path: Path, vector: str
) -> None:
    """Far sooner than env.worker_timeout, 120 s, which would have the worker replaced."""
    run_dir = tmp_path / "run"
    process = start(
        run_dir, **{k.replace(".", "__"): v for k, v in HANGING.items()}, env__vector=vector
    )
    wait_for(run_dir / "episodes.csv", process, 120)  # two episodes of each environment
    time.sleep(2.0)  # the third hangs in its third step
    assert ended_after(signal.SIGTERM, process) < 10.0
    error = process.communicate()[1]
    assert process.returncode == 0, error
    assert "no answer within 2.5 s of the request to stop" in error
    assert "running episodes" in error
    assert saved_steps(run_dir) in ([24], [26])  # without the step that hung, or its crash counted
    assert (run_dir / LOCK_FILE).read_bytes() == b""


def seconds_waiting_for_a_core(pid: int) -> float:
    """Return how long the main thread of a process was ready to run while others ran."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def ended_after(number: int, process: "subprocess.Popen[str]") -> float:
    """Send a signal; return the seconds until the process had ended, on a machine of its own."""
    before = waited = seconds_waiting_for_a_core(process.pid)
    began = time.monotonic()
    process.send_signal(number)
    while process.poll() is None:
        assert time.monotonic() - began < 120, "it never ended"
        with suppress(FileNotFoundError):  # it ended just now
            waited = seconds_waiting_for_a_core(process.pid)
        time.sleep(0.02)
    return time.monotonic() - began - (waited - before)


@pytest.mark.parametrize(
    ("moment", "service"), [("training", "own"), ("the end", "own"), ("the end", "inherited")]
)
def test_sigterm_ends_a_run_whose_wandb_server_hangs_within_10_seconds(
    tmp_path: Path, moment: str, service: str, no_wandb_login: None
) -> None:
    import wandb

    run_dir = tmp_path / "run"
    wandb.teardown()
    assert "WANDB_SERVICE" not in os.environ
    if service == "inherited":  # what a program that uses W&B itself hands to those it starts
        wandb.init(mode="offline", dir=tmp_path).finish()
        assert os.environ["WANDB_SERVICE"].split("-")[1] == str(os.getpid())
    server = WandbServer("hang")
    try:
        process = start(
            run_dir,
            environment=server.environment(),
            tracking__wandb="online",
            train__total_steps=10**6 if moment == "training" else 90,
        )
        wait_for(run_dir / "checkpoints" / "step_000000000090", process)
        time.sleep(1.0)
        assert server.started > 0
        assert ended_after(signal.SIGTERM, process) < 10.0
        error = process.communicate()[1]
    finally:
        server.close()
        wandb.teardown()
    assert process.returncode == 0, error
    assert "W&B: not all was sent" in error
    assert len(saved_steps(run_dir)) > 0
    assert "Traceback" not in error


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    process = start(
        tmp_path / "run",
        env__id="faults.crashing_envs:Crashing-v0",
        env__kwargs={"how": "hang", "index": 0, "episode": 2},
    )
    wait_for(tmp_path / "run" / "episodes.csv", process, 30)
    time.sleep(0.5)  # the third episode hangs in its third step
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 2.0
    assert process.returncode == -signal.SIGINT


def test_a_second_process_on_a_run_is_refused_with_the_owner_and_its_age(tmp_path: Path) -> None:
    run_dir = run(tmp_path / "run")
    rows = (run_dir / "metrics.csv").read_bytes()
    with (
        RunLock(run_dir),
        pytest.raises(
            CheckpointError,
            match=rf"another process is writing in .*run \(process {os.getpid()} on "
            rf"{socket.gethostname()}, since 0 min\); wait for its end, or stop it",
        ),
    ):
        resume_run(run_dir)
    assert (run_dir / "metrics.csv").read_bytes() == rows
    resume_run(run_dir)


OWNER = """
import os, signal, sys
from pathlib import Path
from algd.training.run_lock import RunLock
RunLock(Path(sys.argv[1])).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_of_a_dead_process_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    dead = json.loads((tmp_path / LOCK_FILE).read_text())["pid"]
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    (message,) = caplog.messages
    assert f"its owner is gone (process {dead} on " in message


@pytest.mark.parametrize(("silent", "free"), [(10.0, False), (700.0, True)])
def test_an_owner_on_another_machine_is_dead_when_silent_for_ten_minutes(
    tmp_path: Path, silent: float, free: bool
) -> None:
    """Where locks do not travel between machines, the kernel of this one sees none."""
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": time.time() - 7300}))
    os.utime(path, (time.time() - silent,) * 2)
    if free:
        with RunLock(tmp_path):
            pass
    else:
        with (
            pytest.raises(
                CheckpointError,
                match=r"process 1 on elsewhere, since 2 h, last heard of 1\d s ago",
            ),
            RunLock(tmp_path),
        ):
            pass
        assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_run_is_continued_from_what_its_last_owner_saved_while_it_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which checkpoint is the newest is asked with the lock in hand."""
    directory = run(tmp_path / "run")
    latest, owners = CheckpointStore.latest, []

    def asked(store: CheckpointStore) -> Path | None:
        owners.append(writer_of(store.run_dir))
        return latest(store)

    monkeypatch.setattr(CheckpointStore, "latest", asked)
    continued(directory).close()
    (owner,) = owners
    assert owner is not None
    assert owner.pid == os.getpid()


def test_a_released_lock_says_nothing_and_a_foreign_file_is_no_owner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in ("", "not json", "[]", '{"pid": "x"}'):
        (tmp_path / LOCK_FILE).write_text(content)
        with RunLock(tmp_path) as lock:
            lock.require_held()
        assert (tmp_path / LOCK_FILE).read_bytes() == b""
    assert caplog.messages == []
