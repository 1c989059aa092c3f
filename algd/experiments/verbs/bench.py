"""`algd bench`: how fast the updates are against plain references and against their floors.

The references are tests of the checkout, not part of the installed package.
"""

import os
import subprocess
import sys
from pathlib import Path

from algd.errors import UserError
from algd.experiments.arguments import VerbParser, positive_int


def run(arguments: list[str]) -> int:
    """Run the benchmark of the checkout in a process of its own, on one thread."""
    parser = VerbParser("bench", description="Time updates, one action and the replay.")
    parser.add_argument("--rounds", type=positive_int, help="turns of each run, default 15")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the figures, as JSON")
    parser.parse_args(arguments)
    checkout = Path(__file__).resolve().parents[3]
    script = checkout / "tests" / "benchmarks" / "update_speed.py"
    if not script.is_file():
        raise UserError(
            "algd bench needs a checkout of the repository: its references are in "
            f"tests/benchmarks, which {checkout} lacks"
        )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(checkout), str(checkout / "tests"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [sys.executable, "-m", "benchmarks.update_speed", *arguments]
    return subprocess.run(command, env=environment, check=False).returncode
