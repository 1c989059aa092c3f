"""The command line: `algd VERB`. What a user can act on is one line on stderr and exit code 2.

In: arguments. Out: an exit code: 0 done, 1 problems found, 2 wrong usage, 128 + n signal n.
Each verb imports what it needs when it runs, so that `algd --help` answers at once.
"""

import argparse
import difflib
import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from algd.errors import UserError
from algd.experiments.arguments import (
    Override,
    VerbParser,
    positive_int,
    seed_int,
    split_overrides,
)

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_USAGE_ERROR = 2
_PROBLEMS_FOUND = 1
_SIGINT_EXIT = 130
_MAX_HELP_WIDTH = 100
# Of the machine, not of the program: the message of the system says it all.
_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:
        # The reader of our output has left. Point stdout elsewhere, or the interpreter's last
        # flush would complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("algd: interrupted", file=sys.stderr)
        return _SIGINT_EXIT
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise
        where = "" if error.filename is None else f": {error.filename}"
        return _complain(f"{error.strerror}{where}")


def _complain(message: str) -> int:
    print(f"algd: error: {' '.join(message.split())}", file=sys.stderr)
    return _USAGE_ERROR


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        from algd import __version__

        print(f"algd {__version__}")
        return 0
    if verb not in _VERBS:
        near = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(_VERBS)}"
        raise UserError(f"unknown verb {verb!r}; {hint}")
    return _VERBS[verb].run(rest)


def _help() -> str:
    lines = ["usage: algd VERB ...", "", "Safe off-policy reinforcement learning.", ""]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in _VERBS.items()]
    lines += [
        "",
        "  algd train algd_point_goal                     train ALGD on SafetyPointGoal1-v0",
        "  algd train sac_alam --env.id=SafetyHopperVelocity-v1 --seed=1",
        "  algd evaluate RUN_DIR --episodes 20 --video    run the trained policy",
        "",
        "`algd VERB --help` says more; `algd train --help` lists every configuration key.",
    ]
    return "\n".join(lines)


def _load(names: Sequence[str], overrides: Sequence[Override]) -> "ExperimentConfig":
    from algd.experiments.config import COMMAND_LINE, load_config
    from algd.experiments.yaml_files import parse_yaml

    given = {
        override.option.removeprefix("--"): parse_yaml(
            override.text, f"{COMMAND_LINE}: {override.option}", numbered=False
        )
        for override in overrides
    }
    return load_config(names, given)


def _train(arguments: list[str]) -> int:
    parser = VerbParser(
        "train",
        usage="algd train CONFIG... [--KEY=VALUE ...] [--run-dir DIR]\n"
        "       algd train --resume RUN_DIR",
        description="Train a policy. CONFIG is a YAML file or the name of a preset (algd presets); "
        "of several,\nlater ones win over earlier ones, and --KEY=VALUE over all of them.",
        add_help=False,
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="store_true", help="show this and every key")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run is written")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue a run")
    known, overrides = split_overrides(
        arguments, flags=("--help",), with_value=("--run-dir", "--resume")
    )
    options = parser.parse_args(known)
    if options.help:
        _print_train_help(parser)
        return 0
    if options.resume is not None:
        if options.configs or overrides or options.run_dir is not None:
            parser.error("--resume takes its configuration from the run and nothing else")
        return _resume(options.resume)
    if not options.configs:
        parser.error("no CONFIG given; `algd presets` lists the shipped ones")
    return _start(options.configs, overrides, options.run_dir)


def _print_train_help(parser: argparse.ArgumentParser) -> None:
    from algd.experiments.config import ExperimentConfig
    from algd.experiments.reference import config_reference

    width = min(_MAX_HELP_WIDTH, shutil.get_terminal_size().columns - 2)
    print(parser.format_help())
    print(
        "configuration keys (values are written as in YAML: 3e-4, true, null, [64, 64]):\n\n"
        + config_reference(ExperimentConfig, width=width)
    )


def _start(configs: list[str], overrides: list[Override], given: Path | None) -> int:
    config = _load(configs, overrides)
    from algd.training.trainer import train

    run_dir = default_run_dir(config) if given is None else given
    print(f"run directory: {run_dir}", flush=True)
    return _until_stopped(lambda: train(config, run_dir))


def _resume(run_dir: Path) -> int:
    from algd.training.run_directory import require_run_dir

    require_run_dir(run_dir)
    from algd.training.trainer import resume

    return _until_stopped(lambda: resume(run_dir))


def _until_stopped(work: Callable[[], None]) -> int:
    """Run ``work``; where a signal stops it after a checkpoint, say how to go on."""
    from algd.training.trainer import Interrupted

    try:
        work()
    except Interrupted as stop:
        command = f"algd train --resume {shlex.quote(str(stop.run_dir))}"
        print(
            f"algd: stopped at step {stop.env_step}, checkpoint written; continue with: {command}",
            file=sys.stderr,
        )
        return 128 + stop.signal_number
    return 0


def default_run_dir(config: "ExperimentConfig", *, root: Path = Path("runs")) -> Path:
    """Return a name that no directory has yet: environment, policy, multiplier, seed, time."""
    env_id = "".join(c if c.isalnum() or c in "-_." else "_" for c in config.env.id)
    stem = (
        f"{env_id}-{config.policy.kind}-{config.multiplier.kind}-s{config.seed}-"
        f"{time.strftime('%Y%m%d-%H%M%S')}"
    )
    path, number = root / stem, 1
    while path.exists():
        number += 1
        path = root / f"{stem}-{number}"
    return path


def _evaluate(arguments: list[str]) -> int:
    parser = VerbParser("evaluate", description="Run the latest policy of a run directory.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--episodes", type=positive_int, default=10, help="default 10")
    parser.add_argument(
        "--mode", choices=("deterministic", "stochastic"), help="default: that of the run"
    )
    parser.add_argument("--video", action="store_true", help="write an mp4 of the first episode")
    parser.add_argument("--seed", type=seed_int, help="default: that of the run")
    options = parser.parse_args(arguments)
    from algd.training.run_directory import require_run_dir

    require_run_dir(options.run_dir)
    from algd.training.evaluation import evaluate_run

    evaluate_run(
        options.run_dir,
        episodes=options.episodes,
        mode=options.mode,
        video=options.video,
        seed=options.seed,
    )
    return 0


def _check_env(arguments: list[str]) -> int:
    parser = VerbParser(
        "check-env",
        usage="algd check-env ID [--env.KEY=VALUE ...] [--steps N]",
        description="Say what is wrong with an environment, and what a random policy meets in it.",
    )
    parser.add_argument("id", metavar="ID", help="a Safety-Gymnasium or Gymnasium id, module:Id")
    parser.add_argument("--steps", type=positive_int, default=2000, help="default 2000")
    known, overrides = split_overrides(arguments, flags=("--help",), with_value=("--steps",))
    options = parser.parse_args(known)
    config = _load([], [*overrides, Override("--env.id", options.id)])
    from algd.environments.checking import check_env

    findings = check_env(config.env, steps=options.steps, cost_limit=config.constraint.cost_limit)
    for finding in findings:
        print(finding)
    return _PROBLEMS_FOUND if any(finding.kind == "problem" for finding in findings) else 0


def _doctor(arguments: list[str]) -> int:
    parser = VerbParser("doctor", description="Examine versions, device, rendering and W&B login.")
    parser.parse_args(arguments)
    from algd.experiments.doctor import run_doctor

    return run_doctor()


def _presets(arguments: list[str]) -> int:
    parser = VerbParser("presets", description="List the shipped configurations.")
    parser.parse_args(arguments)
    from algd.experiments.yaml_files import list_presets, presets_dir

    presets = list_presets()
    width = max(map(len, presets), default=0)
    for name, comment in presets.items():
        print(f"{name:<{width}}  {comment}")
    print(f"\nThe files are in {presets_dir()}")
    return 0


class _Verb(NamedTuple):
    run: Callable[[list[str]], int]
    summary: str


_VERBS = {
    "train": _Verb(_train, "train a policy, or continue a run"),
    "evaluate": _Verb(_evaluate, "run a trained policy"),
    "check-env": _Verb(_check_env, "say what is wrong with an environment"),
    "doctor": _Verb(_doctor, "examine this machine"),
    "presets": _Verb(_presets, "list the shipped configurations"),
}


if __name__ == "__main__":
    sys.exit(main())
