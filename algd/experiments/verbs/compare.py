"""`algd compare`: groups of runs side by side, with intervals."""

import sys
from pathlib import Path

from algd.errors import UserError, install_command
from algd.experiments.arguments import VerbParser
from algd.training.run_directory import make_output_directory

_TABLE_FILES = ("comparison.csv", "runs.csv", "comparison.tex")


def run(arguments: list[str]) -> int:
    """Print the comparison of groups of runs; with --out, write tables and figures."""
    parser = VerbParser(
        "compare",
        description="Compare groups of runs. Runs that differ in nothing but the seed are a group.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or parents of some"
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="KEY",
        help="configuration keys that define groups, comma between them; env.id compares inside "
        "each environment. Default: all keys that differ",
    )
    parser.add_argument("--baseline", metavar="GROUP", help="default: the group of the first run")
    parser.add_argument(
        "--metric", default="eval/return", help="what is compared as return, default eval/return"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="write CSV, LaTeX and figures"
    )
    options = parser.parse_args(arguments)
    keys = [key.strip() for given in options.by for key in given.split(",") if key.strip()]
    from algd.experiments.compare import compare, usable_runs
    from algd.experiments.compare_groups import group_runs, pooled_keys
    from algd.experiments.compare_tables import legend, terminal_table
    from algd.experiments.run_data import require_runs

    found = require_runs(options.runs)
    for line in found.skipped:
        print(line, file=sys.stderr)
    usable = usable_runs(found.runs, score=options.metric)
    for line in usable.notes:
        print(line, file=sys.stderr)
    groups = group_runs(usable.runs, keys)
    if pooled := pooled_keys(groups):
        print(
            f"runs of one group differ in {', '.join(pooled)}; --by would part them",
            file=sys.stderr,
        )
    comparisons = compare(groups, baseline=options.baseline, score=options.metric)
    print("\n\n".join(terminal_table(comparison) for comparison in comparisons))
    print(f"\n{legend(comparisons[0])}")
    if options.out is not None:
        _write(options.out, comparisons)
    return 0


def _write(directory: Path, comparisons: list) -> None:
    """Write tables, then figures where matplotlib is installed."""
    from algd.experiments.compare_tables import csv_table, latex_table, runs_table

    texts = (csv_table(comparisons), runs_table(comparisons), latex_table(comparisons))
    make_output_directory(directory)
    for name, text in zip(_TABLE_FILES, texts, strict=True):
        (directory / name).write_text(text, encoding="utf-8")
    try:
        import matplotlib  # noqa: F401 - asked for first, so that no other fault is taken for it
    except ImportError as error:
        raise UserError(
            f"tables are in {directory}; figures need matplotlib: {install_command('lab')}"
        ) from error
    from algd.experiments.compare_figures import write_figures

    figures = write_figures(comparisons, directory)
    print(f"written to {directory}: {', '.join([*_TABLE_FILES, *(path.name for path in figures)])}")
