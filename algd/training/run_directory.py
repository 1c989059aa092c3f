"""What makes a directory a run, and who may start one there.

In: paths. Out: a claimed directory or one clear error. Imports no torch, so that a mistyped path
is answered at once. Names in a run directory: ``config.yaml``, ``checkpoints/``, ``policies/``,
``replay/`` and ``replay_copy/`` (segment files), besides what trainer and tracker write.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from algd.errors import CheckpointError, ConfigError
from algd.training.durable_files import make_directory

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
SEED_PREFIX = "seed_"  # of the runs in a directory of several seeds
POLICIES = ("latest", "best_safe")  # what a run keeps to act with


def is_run_dir(path: Path) -> bool:
    """Say whether a run was started in ``path``."""
    return (path / CONFIG_FILE).is_file() or (path / CHECKPOINTS).is_dir()


def require_run_dir(path: Path) -> Path:
    """Return ``path`` if a run was started there.

    Raises:
        CheckpointError: naming what was looked for.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory; expected the directory of a run")
    seeds = [] if is_run_dir(path) else seed_directories(path)
    if seeds:
        names = ", ".join(seed.name for seed in seeds)
        raise CheckpointError(f"{path} holds the runs of several seeds; name one of {names} in it")
    if not is_run_dir(path):
        raise CheckpointError(
            f"{path} holds no run: found neither {CONFIG_FILE} nor a {CHECKPOINTS} directory"
        )
    return path


def require_config(path: Path) -> Path:
    """Return the configuration of the run in ``path``.

    Raises:
        CheckpointError: it is missing, or empty.
    """
    config = path / CONFIG_FILE
    if not config.is_file():
        raise CheckpointError(
            f"{path} holds no {CONFIG_FILE}: its run ended before it began; start it anew"
        )
    if not config.stat().st_size:
        raise CheckpointError(f"{config} is empty; it held what the run was started with")
    return config


@contextmanager
def config_must_fit(path: Path) -> Iterator[None]:
    """Name the configuration of the run in ``path`` where saved states do not fit what it makes.

    Raises:
        CheckpointError: instead of what torch and mappings raise then.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path / CONFIG_FILE} does not fit what the run has saved (was it edited?): {reason}"
        ) from error


def seed_directories(directory: Path) -> list[Path]:
    """Return the runs of ``algd.training.seeds`` in a directory, in the order of their seeds."""
    found = [path for path in directory.glob(f"{SEED_PREFIX}*") if is_run_dir(path)]
    numbered = [path for path in found if path.name.removeprefix(SEED_PREFIX).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.name.removeprefix(SEED_PREFIX)))


def resume_command(path: Path) -> str:
    """Return the command that continues what is in ``path``."""
    return f"algd train --resume {shlex.quote(str(path))}"


def claim_run_dir(path: Path) -> None:
    """Create ``path`` for a new run; of two processes that try at once only one succeeds.

    Raises:
        ConfigError: the directory already holds a run, or cannot be created.
    """
    taken = ConfigError(
        f"{path} already holds a run; continue it with `{resume_command(path)}` "
        "or choose another directory"
    )
    if seed_directories(path):
        raise ConfigError(
            f"{path} holds the runs of several seeds; continue them with "
            f"`{resume_command(path)}` or choose another directory"
        )
    try:
        make_directory(path)
        if is_run_dir(path):
            raise taken
        (path / CHECKPOINTS).mkdir()
    except FileExistsError as error:
        if is_run_dir(path):
            raise taken from error
        raise ConfigError(
            f"{path} cannot be created: {error.filename} is not a directory"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be created: {error.strerror}") from error


def make_output_directory(path: Path) -> None:
    """Create a directory for what a verb writes, with its missing parents.

    Raises:
        ConfigError: it cannot be created, or is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "is not a directory" if path.is_file() else f"cannot be created: {error.strerror}"
        raise ConfigError(f"{path} {why}") from error
