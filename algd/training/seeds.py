"""Several seeds of one configuration in one process: ``DIRECTORY/seed_K`` is an ordinary run each.

In: a configuration and how many seeds, or the directory of such runs. Out: every run trained to its
end. On a GPU their updates are one sequence of kernels, so that eight cost little more than one; on
a CPU they take turns, and a sweep, with a process per seed, is faster.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from algd.environments.make import make_env
from algd.errors import CheckpointError, ConfigError
from algd.training.lockstep import Lockstep
from algd.training.run_directory import SEED_PREFIX, is_run_dir, seed_directories
from algd.training.stopping import Interrupted, StopRequest
from algd.training.train_config import resolve_device
from algd.training.trainer import Trainer, claim, continued

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_log = logging.getLogger("algd")


def train_seeds(config: "ExperimentConfig", num_seeds: int, directory: Path) -> None:
    """Start runs of the seeds ``config.seed`` to ``config.seed + num_seeds - 1``.

    W&B files them as one group, named like the directory, unless the configuration names one.

    Raises:
        ConfigError: a directory holds a run, or a seed is out of range.
        Interrupted: stopped and saved; ``resume_seeds`` goes on.
        UserError: of the first run that failed, after the others came to their end.
    """
    configs = [_of_seed(config, config.seed + number, directory) for number in range(num_seeds)]
    if resolve_device(config.train.device).type != "cuda":
        _log.warning(
            "%d seeds take turns on a CPU; `algd sweep` trains them in processes of their own",
            num_seeds,
        )
    make_env(config.env).close()
    directories = [directory / f"{SEED_PREFIX}{own.seed}" for own in configs]
    taken = next((path for path in directories if is_run_dir(path)), None)
    if taken is not None:
        raise ConfigError(
            f"{taken} already holds a run; continue all with `algd train --resume {directory}` "
            "or choose another directory"
        )
    for own, run_dir in zip(configs, directories, strict=True):
        claim(own, run_dir)
    pairs = list(zip(configs, directories, strict=True))
    _run(
        [
            lambda stop, label, own=own, run_dir=run_dir: Trainer(
                own, run_dir, stop=stop, progress_label=label
            )
            for own, run_dir in pairs
        ],
        directory,
    )


def resume_seeds(directory: Path) -> None:
    """Continue the runs of a directory, each from its newest valid checkpoint.

    Those that are behind catch up first. Raises as ``train_seeds`` does.
    """
    runs = [
        lambda stop, label, run_dir=run_dir: continued(run_dir, stop=stop, progress_label=label)
        for run_dir in seed_directories(directory)
    ]
    if not runs:
        raise CheckpointError(
            f"{directory} holds no runs named {SEED_PREFIX}0, {SEED_PREFIX}1, ..."
        )
    _run(runs, directory)


def _of_seed(config: "ExperimentConfig", seed: int, directory: Path) -> "ExperimentConfig":
    tracking = config.tracking
    named = replace(
        tracking,
        group=tracking.group or directory.name,
        name=f"{tracking.name or directory.name}-{SEED_PREFIX}{seed}",
    )
    return replace(config, seed=seed, tracking=named)


def _run(builders: Sequence[Callable[[StopRequest, str | None], Trainer]], directory: Path) -> None:
    """Build all trainers under one request to stop, and train them; the first shows its line."""
    with ExitStack() as held:
        stop = held.enter_context(StopRequest())
        trainers = []
        for build in builders:
            label = None if trainers else f"seed 1 of {len(builders)}"
            trainers.append(build(stop, label))
            held.callback(trainers[-1].close)
        try:
            Lockstep(trainers, stop).run()
        except Interrupted as one:
            raise Interrupted(directory, one.env_step, one.signal_number) from one
