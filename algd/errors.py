"""Errors that a user can act on: the command line prints them as one line, without a traceback."""

from importlib.metadata import PackageNotFoundError, requires


class UserError(Exception):
    """Something outside the program is wrong; the message says what, what is allowed, what came."""


def install_command(extra: str) -> str:
    """Return what installs the packages of an extra; algd itself is on no index."""
    try:
        lines = [line.partition(";") for line in requires("algd") or ()]
    except PackageNotFoundError:  # a checkout that was not installed
        return f"pip install '.[{extra}]' in the checkout"
    wanted = [name.strip() for name, _, marker in lines if f"extra == '{extra}'" in marker]
    return "pip install " + " ".join(f"'{name}'" for name in wanted)


class ConfigError(UserError, ValueError):
    """A configuration key or value that cannot be used."""


class EnvironmentFault(UserError, RuntimeError):
    """An environment that cannot be made, breaks its contract, or returned unusable numbers."""


class EnvironmentCrash(EnvironmentFault):
    """The code of an environment raised, died or hung; another episode may well run."""


class CheckpointError(UserError, RuntimeError):
    """A run directory or checkpoint that cannot be written, read or used here."""


class DivergenceError(UserError, ArithmeticError):
    """Training whose weights, gradients or losses are no longer finite numbers."""
