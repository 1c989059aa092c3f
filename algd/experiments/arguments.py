"""Arguments of the command line: what argparse knows, and configuration keys beside it.

In: argument lists. Out: the part for argparse, and overrides of configuration keys as text.
"""

import argparse
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from algd.errors import ConfigError, UserError

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_MAX_SEED = 2**32 - 1
_NULL_OF_WANDB = "None"  # as W&B's agents write a null among the values of a sweep
_BASE = "base"  # as a YAML file names the one below it
_SURELY_MEANT = 0.85  # similarity above which an option is a slip and no configuration key


class VerbParser(argparse.ArgumentParser):
    """A parser of one verb that raises ``UserError`` where argparse would print and exit."""

    def __init__(self, verb: str, **kwargs: Any) -> None:
        super().__init__(
            prog=f"algd {verb}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise UserError(f"{message}; see {self.prog} --help")


class Override(NamedTuple):
    """A configuration key given on the command line, `--` included, and its value as text."""

    option: str
    text: str


def split_overrides(
    arguments: Sequence[str],
    *,
    flags: Sequence[str] = (),
    with_value: Sequence[str] = (),
    keys: Sequence[str] = (),
) -> tuple[list[str], list[Override]]:
    """Separate `--a.b=v` and `--a.b v` from positional arguments and the options named here.

    Args:
        arguments: what follows the verb.
        flags: options of the verb that stand alone.
        with_value: options of the verb that take a value.
        keys: of the configuration that look like a misspelt option and are none.

    Raises:
        UserError: a key without a value, or a misspelt option.
    """
    options = (*flags, *with_value)
    known: list[str] = []
    overrides: list[Override] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, has_value, value = argument.partition("=")
        if not option.startswith("--") or option in flags:
            known.append(argument)
        elif option in with_value:
            known.append(argument)
            if not has_value and waiting:
                known.append(waiting.pop(0))
        elif option not in keys and (
            near := difflib.get_close_matches(option, options, n=1, cutoff=_SURELY_MEANT)
        ):
            raise UserError(f"unknown option {option}; did you mean {near[0]}?")
        elif has_value:
            overrides.append(Override(option, value))
        elif waiting and not waiting[0].startswith("--"):
            overrides.append(Override(option, waiting.pop(0)))
        else:
            raise ConfigError(f"command line: {option} has no value; write {option}=VALUE")
    return known, overrides


def load_overridden(names: Sequence[str], overrides: Sequence[Override]) -> "ExperimentConfig":
    """Return the configuration of presets or files, later ones winning, and overrides on top.

    An override `--base=NAME` is one more preset or file, the last of them: a sweep varies it as any
    other key.
    """
    from algd.experiments.yaml_files import COMMAND_LINE, parse_yaml, read_layers

    given = {
        override.option.removeprefix("--"): parse_yaml(
            "null" if override.text == _NULL_OF_WANDB else override.text,
            f"{COMMAND_LINE}: {override.option}",
            numbered=False,
        )
        for override in overrides
    }
    base = given.pop(_BASE, None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{COMMAND_LINE}: base must be a preset or a file, got {base!r}")
    names = [*names, *([] if base is None else [base])]
    read_layers(names)  # a typo is told before the seconds that torch takes to import
    from algd.experiments.config import load_config

    return load_config(names, given)


def positive_int(text: str) -> int:
    """Return a whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def seed_int(text: str) -> int:
    """Return a whole number that numpy and torch take as a seed, for argparse."""
    if not text.isdecimal() or int(text) > _MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be a whole number in [0, {_MAX_SEED}], got {text}")
    return int(text)
