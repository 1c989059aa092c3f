"""`algd dashboard`: runs in one page, from a file, a local server, or W&B."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from algd.errors import ConfigError, UserError
from algd.experiments.arguments import VerbParser
from algd.training.run_directory import make_output_directory

_PORT = 8765
_MAX_PORT = 65_535


def run(arguments: list[str]) -> int:
    """Write the page, serve it, or set up W&B's own dashboards."""
    options = _parse(arguments)
    if options.wandb is not None:
        wandb_dashboard = import_module("algd.experiments.wandb_dashboard")
        out = options.out or Path("wandb_dashboard.json")
        runs = _run_dirs(options.runs) if options.runs else None
        return wandb_dashboard.run(options.wandb, runs, out)
    if not options.runs:
        raise UserError("which runs? give run directories, or parents of some")
    if options.serve:
        return _serve(options.runs, _PORT if options.port is None else options.port)
    out = options.out or Path("dashboard.html")
    return _write(options.runs, out, options.videos or "embed")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = VerbParser("dashboard", description="Show runs in one page that needs no network.")
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", help="run directories, or parents of some"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default dashboard.html")
    parser.add_argument(
        "--videos",
        choices=("embed", "link", "none"),
        help="embed them in the file, link them where they lie, or leave them out; default embed",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the page on this machine; it follows the runs"
    )
    parser.add_argument("--port", type=_port, help=f"of --serve, default {_PORT}")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="create a workspace and a report there instead"
    )
    options = parser.parse_args(arguments)
    of_a_file = (options.wandb, options.out, options.videos)
    if options.serve and any(option is not None for option in of_a_file):
        raise UserError("--serve takes neither --out nor --videos nor --wandb")
    if options.wandb is not None and options.videos is not None:
        raise UserError("--wandb takes no --videos: runs have brought theirs there")
    if options.port is not None and not options.serve:
        raise UserError("--port goes with --serve")
    return options


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be in [0, {_MAX_PORT}], got {text!r}")
    return int(text)


def _run_dirs(paths: list[Path]) -> list[Path]:
    from algd.experiments.run_data import find_run_dirs

    directories, skipped = find_run_dirs(paths)
    for line in skipped:
        print(line, file=sys.stderr)
    if not directories:
        raise UserError(f"no run found in {', '.join(map(str, paths))}")
    return directories


def _write(paths: list[Path], out: Path, videos: str) -> int:
    from algd.experiments.dashboard import dashboard_data
    from algd.experiments.dashboard_html import render
    from algd.experiments.dashboard_media import MediaSources
    from algd.experiments.run_data import require_runs

    found = require_runs(paths)
    for line in found.skipped:
        print(line, file=sys.stderr)
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a directory; a file is wanted")
    sources = MediaSources(out.parent, videos=videos)
    page = render(dashboard_data(found, sources)).encode()
    make_output_directory(out.parent)
    out.write_bytes(page)
    linked = f"; {sources.linked} pictures and videos are linked" if sources.linked else ""
    print(f"{out}: {len(found.runs)} runs, {len(page) / 1e6:.1f} MB{linked}")
    return 0


def _serve(paths: list[Path], port: int) -> int:
    from algd.experiments.dashboard_server import DashboardServer, LiveRuns

    runs = LiveRuns(paths)
    for line in runs.data()["skipped"]:
        print(line, file=sys.stderr)
    with DashboardServer(runs, port) as server:
        print(f"{server.url} follows the runs; end with Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
