"""Kills and stops at any moment: the resumed run equals the undisturbed one bit for bit."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from faults.tiny_runs import run
from saved_runs import same_bits

from algd.training import trainer
from algd.training.checkpoint import CheckpointStore
from algd.training.stopping import Interrupted
from algd.training.trainer import Trainer, resume

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


def kill_and_resume(directory: Path, *arguments: str) -> str:
    """Run the script; processes are forked, so it needs one of its own, without pytest's hooks."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--keep", str(directory), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_run_killed_in_each_phase_resumes_to_the_same_bits(tmp_path: Path) -> None:
    out = kill_and_resume(tmp_path, "--kills", "4", "--variants", "1")
    assert "unequal: 0\n" in out
    for phase in ("update", "evaluation", "checkpoint", "video"):
        assert f"'{phase}': " in out


@pytest.mark.slow
@pytest.mark.timeout(14400)  # minutes on an idle machine
def test_a_hundred_killed_runs_leave_a_hundred_equal_results(tmp_path: Path) -> None:
    out = kill_and_resume(tmp_path, "--kills", "135", "--wandb-every", "8")
    assert "unequal: 0\n" in out
    assert int(out.partition("resumed to the end: ")[2].partition(";")[0]) >= 100
    assert "unreadable checkpoints after a kill: 0\n" in out


@pytest.mark.parametrize("stopped_in", ["evaluation", "last updates"])
def test_a_stop_before_the_rows_of_a_step_leaves_each_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    """The checkpoint of the stop knows nothing of these rows; two processes make them anew."""
    changes = {"train__checkpoint_interval": 1000, "train__updates_per_step": 10}
    undisturbed = run(tmp_path / "undisturbed", **changes)
    directory = tmp_path / "stopped"
    spend, record = Trainer._spend_updates, trainer.record_row

    def record_and_stop(one: Trainer) -> None:
        if one.env_step == 60:
            one.stop.signal_number = 15
            one.breathe()
        record(one)

    def spend_and_stop(one: Trainer, **options: bool) -> Generator[bool, Any, None]:
        if one.env_step == 120:
            one.stop.signal_number = 15
        yield from spend(one, **options)

    with monkeypatch.context() as patched:
        if stopped_in == "evaluation":
            patched.setattr(trainer, "record_row", record_and_stop)
        else:
            patched.setattr(Trainer, "_spend_updates", spend_and_stop)
        with pytest.raises(Interrupted):
            run(directory, **changes)
    at_the_stop = shutil.copytree(directory / "checkpoints", tmp_path / "kept")
    resume(directory)
    # As if that process had been killed before its own first checkpoint.
    shutil.rmtree(directory / "checkpoints")
    shutil.copytree(at_the_stop, directory / "checkpoints")
    resume(directory)
    for name in ("metrics.csv", "evaluations.csv", "episodes.csv"):
        assert (directory / name).read_text() == (undisturbed / name).read_text(), name
    states = [CheckpointStore(one).load() for one in (undisturbed, directory)]
    for part in ("agent", "counters", "evaluations"):
        assert same_bits(*(state[part] for state in states)), part
