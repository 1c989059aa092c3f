"""The command line: `algd VERB`. What a user can act on is one line on stderr and exit code 2.

In: arguments. Out: an exit code: 0 done, 1 problems found, 2 wrong usage, 128 + n signal n (0 for
SIGTERM once training has saved).
Each verb is a module of ``algd.experiments.verbs``, imported when it runs, so that `algd --help`
answers at once.
"""

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from algd.errors import UserError

_USAGE_ERROR = 2
_SIGINT_EXIT = 130
# Of the machine, not of the program: the message of the system says it all.
_MACHINE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),  # a file where a directory is to be, or in turn
)
_VERBS = {
    "train": "train a policy, or continue a run",
    "evaluate": "run a trained policy",
    "sweep": "train many settings and seeds",
    "runs": "list runs",
    "compare": "groups of runs side by side, with intervals",
    "dashboard": "runs in one page, from a file or a local server",
    "lab": "figures and a table of what a run has learnt",
    "ablate": "compare settings along one axis, with intervals",
    "export": "turn a run into a policy to give away",
    "bench": "how fast the updates are, against references and floors",
    "check-env": "say what is wrong with an environment",
    "doctor": "examine this machine",
    "presets": "list the shipped configurations",
}


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
    return import_module(f"algd.experiments.verbs.{verb.replace('-', '_')}").run(rest)


def _help() -> str:
    lines = ["usage: algd VERB ...", "", "Safe off-policy reinforcement learning.", ""]
    lines += [f"  {name:<10} {summary}" for name, summary in _VERBS.items()]
    lines += [
        "",
        "  algd train algd_point_goal                     train ALGD on SafetyPointGoal1-v0",
        "  algd train sac_alam --env.id=SafetyHopperVelocity-v1 --seed=1",
        "  algd evaluate RUN_DIR --episodes 20 --video    run the trained policy",
        "",
        "`algd VERB --help` says more; `algd train --help` lists every configuration key.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
