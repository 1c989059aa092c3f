"""A sweep from its file to its table, started anew or continued.

In: a sweep file in W&B's format. Out: under one directory a run directory per trial, their logs,
and table.csv; on the terminal progress, the table, and a line for every trial that failed. The
modules beside this one, in the order of the data: sweep_file, sweep_parameters and sweep_command
read the file; sweep_plan lists the trials; sweep_runner runs them on sweep_engine (this machine) or
sweep_ray, each in a process of sweep_child; sweep_table reads the runs back.
"""

import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Literal

from algd.errors import ConfigError
from algd.experiments.schema import plain
from algd.experiments.sweep_engine import Engine, LocalEngine
from algd.experiments.sweep_file import SweepFile, read_sweep_file
from algd.experiments.sweep_plan import SweepPlan, plan_sweep, seeds_of, with_earlier
from algd.experiments.sweep_progress import SweepProgress
from algd.experiments.sweep_runner import Failure, run_trials
from algd.experiments.sweep_table import make_table, require_known_metric, require_metric
from algd.training.run_directory import is_run_dir, make_output_directory
from algd.training.run_lock import RunLock

TABLE_FILE = "table.csv"
_DEFAULT_SEEDS = 5
_FAILED_EXIT = 1


def sweep(
    path: Path,
    directory: Path | None = None,
    *,
    seeds: int | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    jobs: int | None = None,
    retries: int = 1,
    only: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Run what is missing of a sweep and return the exit code: 0, or 1 if a trial failed.

    Args:
        path: of the sweep file.
        directory: of the sweep; None for ``runs/NAME``.
        seeds: train with seeds 0 to ``seeds`` - 1; None for those of the file, else 5.
        engine: where trials run. address: of a Ray cluster. jobs: trials at a time.
        retries: further attempts of a trial that fails.
        only: values of some parameters; settings with others are left for another time.

    Raises:
        UserError: the file, a configuration or a directory cannot be used; no run logs the metric.
    """
    file = read_sweep_file(path)
    require_known_metric(file)
    root = (directory or default_directory(file)).absolute()
    listed = seeds_of(file) or list(range(_DEFAULT_SEEDS))
    plan = plan_sweep(file, root, seeds=listed if seeds is None else list(range(seeds)), only=only)
    if is_run_dir(root):
        raise ConfigError(f"{root} is the directory of a run; a sweep needs one of its own")
    make_output_directory(root)
    if engine == "local":  # a cluster may have what this machine lacks
        _require_environments(plan)
    with RunLock(root):  # two sweeps over one directory would start the same trials
        if engine == "ray":
            from algd.experiments.sweep_ray import RayEngine

            where: Engine = RayEngine(plan.trials, address=address, jobs=jobs)
        else:
            where = LocalEngine(plan.trials, jobs=jobs)
        try:
            with _sigterm_interrupts():
                failures = _run(plan, where, retries=retries)
        except KeyboardInterrupt as stop:
            _tell_interrupted(plan)
            return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        return _report(plan, root, failures)


def default_directory(file: SweepFile) -> Path:
    """Return where a sweep goes unless told otherwise."""
    return Path("runs") / (re.sub(r"[^\w.=,+-]+", "_", file.name).lstrip(".-") or "sweep")


def _require_environments(plan: SweepPlan) -> None:
    """Make every environment once that is still to be trained on.

    Raises:
        ConfigError: one does not exist, or a policy cannot train on it.
    """
    from algd.environments.make import make_env

    configs = [trial.config.env for trial in plan.trials if not trial.is_complete]
    distinct = {json.dumps(plain(config), sort_keys=True): config for config in configs}
    for config in distinct.values():
        try:
            make_env(config).close()
        except ConfigError as error:
            raise ConfigError(f"{plan.file.path}: {error}") from error


def _run(plan: SweepPlan, engine: Engine, *, retries: int) -> list[Failure]:
    complete = {trial.name for trial in plan.trials if trial.is_complete}
    progress = SweepProgress(plan.trials, complete=complete)
    seeds = len({trial.seed for trial in plan.trials})
    done = f", {len(complete)} of them complete already" if complete else ""
    progress.notice(
        f"{plan.file.name}: {len(plan.settings)} setting{'s' * (len(plan.settings) != 1)} x "
        f"{seeds} seed{'s' * (seeds != 1)} = {len(plan.trials)} trials{done}; {engine.describe()}"
    )
    try:
        # Ray prints its own remarks to stdout, which is the table's.
        with redirect_stdout(sys.stderr):
            return run_trials(plan.trials, engine, progress, retries=retries)
    finally:
        progress.close()
        engine.stop()


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a sweep as Ctrl-C does."""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever owns it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell_interrupted(plan: SweepPlan) -> None:
    done = sum(trial.is_complete for trial in plan.trials)
    print(
        f"algd: stopped with {done} of {len(plan.trials)} trials complete, checkpoints written; "
        f"the same command continues the sweep of {shlex.quote(str(plan.file.path))}",
        file=sys.stderr,
    )


def _report(plan: SweepPlan, root: Path, failures: list[Failure]) -> int:
    table = make_table(plan)
    whole = with_earlier(plan, root)  # a part writes the table of all
    (table if whole is plan else make_table(whole)).write_csv(root / TABLE_FILE)
    print(table.text())
    print(f"table: {root / TABLE_FILE}", flush=True)
    for line in [*table.skipped, *(failure.describe() for failure in failures)]:
        print(f"algd: {line}", file=sys.stderr)
    require_metric(table, plan.file.path)
    return _FAILED_EXIT if failures or table.skipped else 0
