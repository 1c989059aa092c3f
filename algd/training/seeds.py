"""Several seeds of one configuration in one process: ``DIRECTORY/seed_K`` is an ordinary run each.

In: a configuration and how many seeds, or the directory of such runs. Out: every run trained to its
end. On a GPU their updates are one sequence of kernels, hardly longer for eight seeds than for one;
on a CPU they take turns, and a sweep, with a process per seed, is faster.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from algd.environments.make import make_env
from algd.errors import CheckpointError, ConfigError, UserError
from algd.training.exported import is_export
from algd.training.lockstep import Lockstep
from algd.training.run_directory import (
    CONFIG_FILE,
    SEED_PREFIX,
    is_run_dir,
    resume_command,
    seed_directories,
)
from algd.training.stopping import Interrupted, StopRequest
from algd.training.train_config import resolve_device
from algd.training.trainer import Trainer, claim, continued, require_not_shorter

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_log = logging.getLogger("algd")
_SEEDS = 2**32
Builder = Callable[[StopRequest], Trainer]


def train_seeds(config: "ExperimentConfig", num_seeds: int, directory: Path) -> None:
    """Start runs of the seeds ``config.seed`` to ``config.seed + num_seeds - 1``.

    W&B files them as one group, named like the directory, unless the configuration names one.

    Raises:
        ConfigError: the directory holds runs, or a seed is out of range.
        Interrupted: stopped and saved; ``resume_seeds`` goes on.
        Exception: of the first run that failed, after the others came to their end.
    """
    seeds = range(config.seed, config.seed + num_seeds)
    if seeds[-1] >= _SEEDS:
        raise ConfigError(f"seeds must be in [0, 2^32), got {seeds[0]} to {seeds[-1]}")
    if is_run_dir(directory) or seed_directories(directory):
        raise ConfigError(
            f"{directory} already holds a run; continue with `{resume_command(directory)}` "
            "or choose another directory"
        )
    if resolve_device(config.train.device).type != "cuda" and num_seeds > 1:
        _log.warning(
            "%d seeds take turns on a CPU; `algd sweep` trains them in processes of their own",
            num_seeds,
        )
    make_env(config.env).close()
    configs = [_of_seed(config, seed, directory) for seed in seeds]
    directories = [directory / f"{SEED_PREFIX}{seed}" for seed in seeds]
    for own, run_dir in zip(configs, directories, strict=True):
        claim(own, run_dir)

    def builder(own: "ExperimentConfig", run_dir: Path) -> Builder:
        label = f"seed {own.seed}"
        return lambda stop: Trainer(own, run_dir, stop=stop, progress_label=label)

    _run(list(map(builder, configs, directories)), directory)


def resume_seeds(directory: Path, total_steps: int | None = None) -> None:
    """Continue the runs of a directory, each from its newest valid checkpoint.

    Those that are behind catch up first; one that cannot be continued leaves the others.

    Args:
        directory: of the runs.
        total_steps: up to how many steps, as in ``algd.training.trainer.resume``.

    Raises:
        CheckpointError: there are none, or exported policies among them.
        ConfigError: they differ in more than their seed and number of steps.
        Interrupted, Exception: as ``train_seeds``.
    """
    directories = seed_directories(directory)
    if not directories:
        raise CheckpointError(f"{directory} holds no run named {SEED_PREFIX}K")
    for run_dir in directories:
        if is_export(run_dir):
            raise CheckpointError(
                f"{run_dir} is an exported policy, which cannot be trained on; resume its run"
            )
    planned = _require_alike(directories)
    most = max(planned, default=0)
    require_not_shorter(directory, most, total_steps)
    steps = most if total_steps is None else total_steps
    if total_steps is None and min(planned, default=most) < most:
        # A stop may have come when some of them knew of more steps and others did not yet.
        _log.warning("some runs of %s were to end earlier; all go on to %d steps", directory, most)

    def builder(run_dir: Path) -> Builder:
        label = run_dir.name.replace("_", " ")
        return lambda stop: continued(run_dir, steps, stop=stop, progress_label=label)

    _run(list(map(builder, directories)), directory)


def _of_seed(config: "ExperimentConfig", seed: int, directory: Path) -> "ExperimentConfig":
    tracking, group = config.tracking, directory.resolve().name
    named = replace(
        tracking,
        group=tracking.group or group,
        name=f"{tracking.name or group}-{SEED_PREFIX}{seed}",
    )
    return replace(config, seed=seed, tracking=named)


def _require_alike(directories: Sequence[Path]) -> list[int]:
    """Refuse runs that differ in more than seed and number of steps; return those numbers."""
    from algd.experiments.config import load_config

    # A run that was claimed and killed before it had a configuration fails by itself.
    given = [run_dir for run_dir in directories if (run_dir / CONFIG_FILE).is_file()]
    configs = [load_config([run_dir / CONFIG_FILE]) for run_dir in given]
    for own, run_dir in zip(configs, given, strict=True):
        first = configs[0]
        train = replace(own.train, total_steps=first.train.total_steps)
        if replace(own, seed=first.seed, tracking=first.tracking, train=train) != first:
            raise ConfigError(
                f"{run_dir} differs from {given[0]} in more than its seed; continue each "
                f"by itself: {resume_command(run_dir)}"
            )
    return [own.train.total_steps for own in configs]


def _run(builders: Sequence[Builder], directory: Path) -> None:
    """Build all trainers under one request to stop, and train them; a stop ends the building."""
    failures: list[UserError] = []
    interrupted: Interrupted | None = None
    with ExitStack() as held:
        stop = held.enter_context(StopRequest())
        trainers: list[Trainer] = []
        for build in builders:
            if stop.signal_number is not None and trainers:
                break
            try:
                trainers.append(build(stop))
            except UserError as error:
                _log.warning("%s; the other seeds go on", error)
                failures.append(error)
                continue
            held.callback(trainers[-1].close)
        try:
            if trainers:
                Lockstep(trainers, stop).run()
        except Interrupted as one:
            interrupted = Interrupted(directory, one.env_step, one.signal_number)
    for error in (*failures, interrupted):
        if error is not None:
            raise error
