"""Which code a run was trained with: the comment lines at the head of its config.yaml."""

import subprocess
from pathlib import Path

from algd import __version__

_PACKAGE = Path(__file__).parents[1]
_COMMIT = ", commit "


def with_origin(text: str, earlier: str = "") -> str:
    """Return a configuration behind a line that names this code, as that of a run.

    Args:
        text: YAML. earlier: the file that it replaces, whose lines of other code are kept.
    """
    lines = [*_comments(earlier), f"# {origin()}"]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines)) + text


def origin() -> str:
    """Return "algd VERSION, commit HASH", with "-dirty" behind it where files had been changed.

    The commit is left out where algd does not lie in a checkout of its own.
    """
    try:
        # The package may lie in a virtual environment inside somebody else's repository.
        _git("ls-files", "--error-unmatch", "__init__.py")
        return (
            f"algd {__version__}{_COMMIT}{_git('describe', '--always', '--dirty', '--exclude=*')}"
        )
    except (OSError, subprocess.SubprocessError):
        return f"algd {__version__}"


def commits_of(text: str) -> list[str]:
    """Return the commits that a configuration of a run names, oldest first."""
    found = [line.partition(_COMMIT)[2] for line in _comments(text)]
    return [commit for commit in found if commit]


def _comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("# algd ")]


def _git(*words: str) -> str:
    called = subprocess.run(
        ["git", *words], cwd=_PACKAGE, capture_output=True, text=True, check=True, timeout=10
    )
    return called.stdout.strip()
