"""`algd sweep`: train every setting of a sweep file with every seed, and tabulate the outcome."""

import argparse
from pathlib import Path

from algd.experiments.arguments import VerbParser, positive_int


def run(arguments: list[str]) -> int:
    """Run a sweep, or continue it."""
    parser = VerbParser(
        "sweep",
        description="Train every setting of FILE with every seed. FILE has W&B's sweep format and "
        "works with\n`wandb sweep`, too. The same command continues a sweep that was stopped or "
        "killed. DIR\nreceives a run directory per trial, their logs, and table.csv.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML, as in configs/sweeps")
    parser.add_argument(
        "--on", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster"
    )
    parser.add_argument("--address", metavar="ADDR", help="of the Ray cluster; default: start one")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        metavar="N",
        help="train with seeds 0 to N-1; default: those of FILE, else 5",
    )
    parser.add_argument(
        "--jobs", type=positive_int, metavar="N", help="trials at a time; default: what fits"
    )
    parser.add_argument(
        "--retries", type=_count, default=1, metavar="N", help="of a trial that fails; default 1"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="leave out settings with other values of a parameter; may be repeated",
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="default: runs/NAME of the sweep")
    options = parser.parse_args(arguments)
    if options.address is not None and options.on != "ray":
        parser.error("--address goes with --on ray")
    from algd.experiments.sweep import sweep

    only: dict[str, list[str]] = {}
    for key, value in options.only:
        only.setdefault(key, []).append(value)
    return sweep(
        options.file,
        options.dir,
        seeds=options.seeds,
        engine=options.on,
        address=options.address,
        jobs=options.jobs,
        retries=options.retries,
        only=only,
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number >= 0, got {text!r}")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, got {text!r}")
    return key, value
