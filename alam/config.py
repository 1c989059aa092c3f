"""What every configuration has: no unknown keys, and values of the types that are declared.

In: the fields of a dataclass. Out: nothing, or one line that names field, what is allowed and what
came. Files and command lines are read by pydantic, which asks the same; this is for whoever calls
a constructor.
"""

import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class Config:
    """Base of configurations: frozen dataclasses whose ``__post_init__`` checks single values."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            allowed = list(_alternatives(hints[field.name]))
            if not any(_fits(value, one) for one in allowed):
                raise ValueError(f"{field.name} must be {_described(allowed)}, got {_shown(value)}")


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _alternatives(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(allowed: Sequence[Any]) -> str:
    return " or ".join(_description(hint) for hint in allowed)


def _description(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        words = [repr(word) for word in get_args(hint)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if origin is tuple:
        return f"a list, each of it {_description(get_args(hint)[0])}"
    return _NAMES.get(hint, f"a {hint.__name__}")


def _shown(value: Any) -> str:
    is_plain = value is None or isinstance(value, str | Real | Sequence)
    return repr(value) if is_plain else f"a {type(value).__name__}"
