"""`algd runs`: list the runs under some directories."""

import argparse
import sys
from pathlib import Path

from algd.experiments.arguments import VerbParser


def run(arguments: list[str]) -> int:
    """Print a table of runs; a directory that cannot be read is a line on stderr."""
    parser = VerbParser(
        "runs",
        description="List the runs in DIR and below. Return and cost are those of the last "
        "evaluation; a run is\nrunning, finished, or crashed (algd train --resume continues it).",
    )
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help="default: runs")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        type=_filter,
        metavar="KEY=VALUE",
        help="a configuration key or env, agent, seed, state, run; VALUE may hold * and ?; "
        "repeat for more",
    )
    parser.add_argument("--sort", metavar="KEY", help="a column of the table, or a metric")
    parser.add_argument("--reverse", action="store_true", help="largest first")
    options = parser.parse_args(arguments)
    if options.reverse and options.sort is None:
        parser.error("--reverse goes with --sort KEY")
    from algd.experiments.run_data import require_runs
    from algd.experiments.runs_table import select_runs, sort_runs, table_of

    found = require_runs(options.dirs or [Path("runs")])
    for line in found.skipped:
        print(f"algd: {line}", file=sys.stderr)
    runs = select_runs(found.runs, options.filter)
    if options.sort is not None and runs:
        runs = sort_runs(runs, options.sort, descending=options.reverse)
    print(table_of(runs))
    return 0


def _filter(text: str) -> object:
    from algd.experiments.runs_table import parse_filter

    try:
        return parse_filter(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
