"""SIGKILL at random moments of a run: the resumed run equals the undisturbed one bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
