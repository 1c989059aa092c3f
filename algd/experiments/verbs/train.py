"""`algd train`: start a run from configurations and overrides, or continue one."""

import argparse
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from algd.errors import CheckpointError
from algd.experiments.arguments import (
    Override,
    VerbParser,
    load_overridden,
    positive_int,
    split_overrides,
)
from algd.training.run_directory import (
    is_run_dir,
    require_run_dir,
    resume_command,
    seed_directories,
)

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_MAX_HELP_WIDTH = 100
_TOTAL_STEPS = "--train.total_steps"


def run(arguments: list[str]) -> int:
    """Train a policy, or continue a run."""
    parser = VerbParser(
        "train",
        usage="algd train CONFIG... [--KEY=VALUE ...] [--seeds N] [--run-dir DIR]\n"
        "       algd train --resume DIR [--train.total_steps=N]",
        description="Train a policy. CONFIG is a YAML file or the name of a preset (algd presets); "
        "of several,\nlater ones win over earlier ones, and --KEY=VALUE over all of them. "
        "--base=NAME is one\nmore CONFIG, which a sweep can vary.",
        add_help=False,
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true", help="show this and every key")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        metavar="N",
        help="train N seeds, the config's and those that follow, in one process: on a GPU their "
        "updates are taken together; runs are DIR/seed_K",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run is written")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="continue a run, or all seeds of --seeds; up to more steps than it was started with "
        "where --train.total_steps says so",
    )
    known, overrides = split_overrides(
        arguments,
        flags=("--help",),
        with_value=("--seeds", "--run-dir", "--resume"),
        keys=("--seed",),
    )
    options = parser.parse_args(known)
    if options.help:
        _print_train_help(parser)
        return 0
    if options.resume is not None:
        others = [override for override in overrides if override.option != _TOTAL_STEPS]
        if options.configs or others or options.seeds or options.run_dir is not None:
            parser.error(
                f"--resume takes its configuration from the run; only {_TOTAL_STEPS}=N can be "
                "added, to train on"
            )
        return _resume(options.resume, overrides)
    if not options.configs and not any(override.option == "--base" for override in overrides):
        parser.error("no CONFIG given; `algd presets` lists the shipped ones")
    return _start(options.configs, overrides, options.run_dir, options.seeds)


def _print_train_help(parser: argparse.ArgumentParser) -> None:
    from algd.experiments.reference import stored_reference, wrapped

    width = min(_MAX_HELP_WIDTH, shutil.get_terminal_size().columns - 2)
    print(parser.format_help())
    print(
        "configuration keys (values are written as in YAML: 3e-4, true, null, [64, 64]):\n\n"
        + wrapped(stored_reference(), width)
    )


def _start(
    configs: list[str], overrides: list[Override], given: Path | None, num_seeds: int | None
) -> int:
    config = load_overridden(configs, overrides)
    from algd.training.seeds import train_seeds
    from algd.training.trainer import train

    run_dir = reserve_run_dir(config, num_seeds=num_seeds) if given is None else given
    print(f"run directory: {run_dir}", flush=True)
    try:
        if num_seeds is not None:
            return _until_stopped(lambda: train_seeds(config, num_seeds, run_dir))
        return _until_stopped(lambda: train(config, run_dir))
    finally:
        if given is None:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # which nothing but an unused one allows


def _resume(directory: Path, overrides: list[Override]) -> int:
    runs = [] if is_run_dir(directory) else seed_directories(directory)
    if not runs:
        require_run_dir(directory)
    # Read like any other key, so that a typo in its value is told alike.
    steps = load_overridden([], overrides).train.total_steps if overrides else None
    if runs:
        from algd.training.seeds import resume_seeds

        print(f"continuing {', '.join(run_dir.name for run_dir in runs)}", flush=True)
        return _until_stopped(lambda: resume_seeds(directory, steps))
    from algd.training.exported import is_export
    from algd.training.trainer import resume

    if is_export(directory):
        raise CheckpointError(
            f"{directory} is an exported policy, which cannot be trained on; resume its run"
        )
    return _until_stopped(lambda: resume(directory, steps))


def _until_stopped(work: Callable[[], None]) -> int:
    """Run ``work``; where a signal stops it after a checkpoint, say how to go on."""
    from algd.training.stopping import Interrupted

    try:
        work()
    except Interrupted as stop:
        command = resume_command(stop.run_dir)
        print(
            f"algd: stopped at step {stop.env_step}, checkpoint written; continue with: {command}",
            file=sys.stderr,
        )
        # Pre-emption is no failure: all is saved, and who sent SIGTERM may queue the run again.
        return 0 if stop.signal_number == signal.SIGTERM else 128 + stop.signal_number
    return 0


def reserve_run_dir(
    config: "ExperimentConfig", *, num_seeds: int | None = None, root: Path = Path("runs")
) -> Path:
    """Make and return a new directory; it is named by environment, kinds, seeds and time.

    Of several processes that ask in the same second each gets one of its own.
    """
    last = "" if num_seeds is None else f"to{config.seed + num_seeds - 1}"
    env_id = "".join(c if c.isalnum() or c in "-_." else "_" for c in config.env.id)
    stem = (
        f"{env_id}-{config.policy.kind}-{config.multiplier.kind}-s{config.seed}{last}-"
        f"{time.strftime('%Y%m%d-%H%M%S')}"
    )
    path, number = root / stem, 1
    while True:
        try:
            path.mkdir(parents=True)
        except OSError:
            if not path.exists():
                return path  # whoever claims it says why it cannot be made
            number += 1
            path = root / f"{stem}-{number}"
        else:
            return path
