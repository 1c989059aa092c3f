"""Trials on a Ray cluster whose machines have algd and share the directory of the sweep.

In: trials. Out: how each ended. Ray chooses the machine and tells which worker was lost; the trial
itself is the same process as in a local sweep, so a lost one continues from its checkpoint
elsewhere.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

from algd.errors import UserError, install_command
from algd.experiments.sweep_engine import (
    TRIALS_PER_GPU,
    Ended,
    TrialProcess,
    exit_reason,
    process_of,
    wants_gpu,
)
from algd.experiments.sweep_plan import Trial


def _train(process: TrialProcess) -> int:
    """Run a trial on the machine Ray has chosen; return its exit code."""
    child = process.start()
    try:
        return child.wait()
    finally:
        if child.stdin is not None:
            child.stdin.close()


class RayEngine:
    """Trials as tasks of Ray.

    Args:
        trials: all that will run.
        address: of a running cluster; None starts Ray on this machine.
        jobs: trials at a time; None leaves it to Ray, which may grow the cluster.

    Raises:
        UserError: Ray is not installed, or no cluster answers there.
    """

    def __init__(
        self, trials: Sequence[Trial], *, address: str | None = None, jobs: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(f"--on ray needs Ray: {install_command('ray')}") from error
        self._ray = ray
        self._jobs = jobs
        self._tasks: dict[Any, Trial] = {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"no Ray cluster at {address or 'this machine'}: {line}") from error
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0 and wants_gpu(trials)
        threads = max((trial.config.train.num_threads for trial in trials), default=1)
        # What happens to a lost task is the sweep's decision, which also counts and reports it.
        self._remote = ray.remote(
            num_cpus=threads, num_gpus=1 / TRIALS_PER_GPU if has_gpus else 0, max_retries=0
        )(_train)
        mode = os.environ.get("WANDB_MODE")
        self._environment = {} if mode is None else {"WANDB_MODE": mode}

    def describe(self) -> str:
        """Return the size of the cluster."""
        resources = self._ray.cluster_resources()
        machines = sum(node["Alive"] for node in self._ray.nodes())
        text = (
            f"Ray, {machines} machine{'s' * (machines != 1)}, {resources.get('CPU', 0):.0f} cores"
        )
        gpus = resources.get("GPU", 0)
        return f"{text}, {gpus:.0f} GPUs" if gpus else text

    def has_room(self) -> bool:
        """Say whether another trial may be handed to Ray."""
        return self._jobs is None or len(self._tasks) < self._jobs

    def start(self, trial: Trial) -> None:
        """Hand a trial to Ray."""
        task = self._remote.options(name=trial.name).remote(process_of(trial, self._environment))
        self._tasks[task] = trial

    def wait(self, seconds: float) -> list[Ended]:
        """Return trials that ended, at the latest after ``seconds``."""
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [self._outcome(task, self._tasks.pop(task)) for task in ready]

    def stop(self) -> None:
        """Cancel what runs; trials write a checkpoint when their worker ends."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        self._ray.shutdown()

    def _outcome(self, task: Any, trial: Trial) -> Ended:
        from ray.exceptions import RayError, RayTaskError

        try:
            code = cast("int", self._ray.get(task))
        except RayTaskError as error:  # the process could not be started there
            return Ended(trial, 1, str(error).strip().splitlines()[-1])
        except RayError as error:
            return Ended(trial, None, f"its Ray worker was lost ({type(error).__name__})")
        return Ended(trial, code, exit_reason(code))
