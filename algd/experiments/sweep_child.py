"""The process that trains one trial of a sweep: starts its run, or continues it.

In: a run directory and the arguments of `algd train`; stdin is a pipe that the sweep holds open.
Out: the run, and ``trial.json`` in it once the run is complete. Exit code: 0 only then, 2 for what
a user can act on, 128 + n for signal n. When the sweep dies in whatever way, the pipe ends: the
trial then writes a checkpoint and stops, so that no process is left over that writes where the next
one continues.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from algd.errors import CheckpointError, UserError
from algd.experiments.arguments import load_overridden, split_overrides
from algd.training.durable_files import remove_directory, replace_durably
from algd.training.run_directory import CHECKPOINTS
from algd.training.run_lock import RunLock

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

TRIAL_FILE = "trial.json"
_STOP_SECONDS = 60.0  # for a checkpoint; a process that takes longer is killed
# Longer than a silent owner on another machine counts as alive (algd.training.run_lock).
_WAIT_SECONDS = 700.0
_POLL_SECONDS = 0.25


def is_complete(run_dir: Path, total_steps: int) -> bool:
    """Say whether a trial trained there to its end, at ``total_steps``."""
    try:
        done = json.loads((run_dir / TRIAL_FILE).read_text())
    except (FileNotFoundError, ValueError):  # a damaged one is written again
        return False
    return done.get("total_steps", total_steps) >= total_steps


def main(arguments: list[str]) -> int:
    """Train the trial whose run directory is the first argument; return the exit code."""
    run_dir, *train = Path(arguments[0]), *arguments[1:]
    threading.Thread(target=_stop_with_sweep, daemon=True).start()
    from algd.training.stopping import Interrupted

    try:
        config = load_overridden(*split_overrides(train))
        train_or_continue(config, run_dir)
    except Interrupted as stop:
        print(f"algd: stopped at step {stop.env_step}, checkpoint written", file=sys.stderr)
        return 128 + stop.signal_number
    except UserError as error:
        print(f"algd: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    done = {"arguments": train, "total_steps": config.train.total_steps}
    replace_durably(run_dir / TRIAL_FILE, json.dumps(done).encode())
    return 0


def train_or_continue(config: "ExperimentConfig", run_dir: Path) -> bool:
    """Train a run to its end, from its checkpoint if there is one; return whether there was.

    What is left of a run that was killed before its first checkpoint is removed.

    Raises:
        CheckpointError: another process goes on writing the run.
    """
    from algd.training.trainer import resume, train

    _wait_for_predecessor(run_dir)
    if any((run_dir / CHECKPOINTS).glob("step_*")):
        resume(run_dir, config.train.total_steps)
        return True
    if run_dir.exists():
        remove_directory(run_dir)
    train(config, run_dir)
    return False


def _stop_with_sweep() -> None:
    """Wait for the end of stdin, then stop this process as Ctrl-C would."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop_this_process()


def stop_this_process() -> None:
    """Stop as Ctrl-C would, and at once where that takes too long."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _wait_for_predecessor(run_dir: Path) -> None:
    """Wait until nobody writes the run: what a killed sweep has left stops by itself.

    Raises:
        CheckpointError: somebody still writes it.
    """
    give_up = time.monotonic() + _WAIT_SECONDS
    while run_dir.is_dir():
        try:
            with RunLock(run_dir):
                return
        except CheckpointError:
            if time.monotonic() > give_up:
                raise
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
