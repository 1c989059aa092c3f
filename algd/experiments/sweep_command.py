"""The `command` of a sweep file: W&B's macros, and the `algd train` line inside.

In: the list that W&B's agent would run. Out: the configurations and overrides that it hands to
`algd train` besides the parameters.
"""

import os
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from algd.errors import ConfigError, UserError
from algd.experiments.arguments import Override, split_overrides
from algd.experiments.schema import show

EXAMPLE = "command: [algd, train, PRESET, --env.id=ID, '${args}']"
# Both give `algd train` the same: --key=value, or --key value.
_ARGUMENTS = ("${args}", "${args_no_equals}")
_ENV = ("${env}", "/usr/bin/env")
_INTERPRETERS = ("${interpreter}", "python", "python3")
_MODULE = ["-m", "algd.experiments.cli"]
_ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")  # W&B's own pattern


class TrainCommand(NamedTuple):
    """What `algd train` gets besides the parameters: configurations, and overrides on top."""

    configs: tuple[str, ...]
    overrides: tuple[Override, ...]


def read_command(
    given: Any, program: str, source: str, *, varies_base: bool = False
) -> TrainCommand:
    """Return what a command hands to `algd train`; ``program`` stands for the macro ${program}.

    ``varies_base``: a parameter names the preset, so that the command may name none.

    Raises:
        ConfigError: the command runs something else, or leaves the parameters out.
    """
    if given is None:
        raise ConfigError(f"{source}: command is missing; write {EXAMPLE}")
    if not isinstance(given, list) or not all(type(word) in (str, int, float) for word in given):
        raise ConfigError(f"{source}: command must be a list of words, got {show(given)}")
    words = [_expanded(str(word).replace("${program}", program), source) for word in given]
    rest = _after_train(words)
    if rest is None:
        raise ConfigError(
            f"{source}: command must run `algd train`, got {show(' '.join(words))}; write {EXAMPLE}"
        )
    if sum(word in _ARGUMENTS for word in rest) != 1:
        raise ConfigError(f"{source}: command must hold ${{args}} once, where the parameters go")
    words = [word for word in rest if word not in _ARGUMENTS]
    macros = [word for word in words if word.startswith("${")]
    if macros:
        raise ConfigError(f"{source}: command holds {macros[0]}, `algd train` takes ${{args}} only")
    try:
        configs, overrides = split_overrides(words, with_value=("--run-dir", "--resume"))
    except UserError as error:
        raise ConfigError(f"{source}: command: {error}") from error
    options = [word for word in configs if word.startswith("-")]
    if options:
        raise ConfigError(f"{source}: command must leave out {options[0]}: the sweep sets it")
    if any(override.option == "--seed" for override in overrides):
        raise ConfigError(
            f"{source}: command must leave out --seed: list seeds under parameters.seed, or say "
            "how many with --seeds"
        )
    if not configs and not varies_base:
        raise ConfigError(f"{source}: command names no preset or file; write {EXAMPLE}")
    return TrainCommand(tuple(configs), tuple(overrides))


def _expanded(word: str, source: str) -> str:
    def value(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise ConfigError(f"{source}: command: the variable {match[1]} is not set") from None

    return _ENVIRONMENT_VARIABLE.sub(value, word)


def _after_train(words: Sequence[str]) -> list[str] | None:
    """Return what follows `algd train`, or the same by module; None where neither stands."""
    rest = list(words)
    if rest and rest[0] in _ENV:
        rest.pop(0)
    if rest and PurePath(rest[0]).name in _INTERPRETERS:
        rest.pop(0)
        if rest[:2] != _MODULE:
            return None
        rest = rest[2:]
    elif rest and PurePath(rest[0]).name == "algd":
        rest.pop(0)
    else:
        return None
    return rest[1:] if rest[:1] == ["train"] else None
