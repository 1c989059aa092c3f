"""Reads configuration dataclasses: their groups, unions by `kind`, keys and value types in words.

In: dataclass types. Out: descriptions that merging, validation messages and `--help` share. A
group is a field whose type is a dataclass, or a union of dataclasses told apart by their `kind`.
"""

import dataclasses
import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

_MAX_SUGGESTIONS = 3
_MIN_FRAGMENT = 3  # shorter fragments are found in too many names
_MAX_SHOWN = 80  # characters of a value quoted in a message


def field_types(cls: type) -> dict[str, Any]:
    """Return the declared type of every field, in order of declaration."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_dataclass_type(annotation: Any) -> TypeGuard[type]:
    """True for a dataclass itself, not for an instance of one."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def is_group(annotation: Any) -> bool:
    """True where a key holds further keys: a dataclass or a union of them."""
    return is_dataclass_type(annotation) or bool(variants(annotation))


def variants(annotation: Any) -> dict[str, type]:
    """Return the dataclasses of a union by their `kind`; empty for anything else."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = get_args(annotation)
    if not members or not all(map(is_dataclass_type, members)):
        return {}
    return {get_args(field_types(member)["kind"])[0]: member for member in members}


def is_free_form(annotation: Any) -> bool:
    """True for a mapping whose keys the program does not know."""
    return get_origin(annotation) is dict


def all_keys(cls: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key below a group, over all kinds, each once."""
    for name, annotation in field_types(cls).items():
        here = (*path, name)
        members = [annotation] if is_dataclass_type(annotation) else variants(annotation).values()
        below = [key for member in members for key in all_keys(member, here)] or [here]
        yield from dict.fromkeys(below)


def describe_type(annotation: Any) -> str:
    """Return what a value may be, in the words of a message: "a whole number or null"."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe_type(member) for member in get_args(annotation))
    if get_origin(annotation) is Literal:
        values = [show(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(annotation) is tuple:
        return f"a list, each item {describe_type(get_args(annotation)[0])}"
    if is_free_form(annotation):
        return "a mapping"
    if is_group(annotation):
        return "a group of keys"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        type(None): "null",
    }
    return words[annotation]


def literal_values(annotation: Any) -> list[str]:
    """Return the texts that a type lists, for suggestions."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [text for member in get_args(annotation) for text in literal_values(member)]
    return []


def show(value: Any) -> str:
    """Return a value as it would be typed in YAML, shortened to one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float):
        text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def nearest(name: str, allowed: Iterable[str]) -> list[str]:
    """Return up to three of `allowed` that `name` may have meant, nearest first."""
    folded = {candidate.casefold(): candidate for candidate in allowed}
    wanted = name.casefold()
    near = difflib.get_close_matches(wanted, folded, n=_MAX_SUGGESTIONS)
    if not near and len(wanted) >= _MIN_FRAGMENT:
        near = [candidate for candidate in folded if wanted in candidate][:_MAX_SUGGESTIONS]
    return [folded[match] for match in near]


def did_you_mean(candidates: Iterable[str]) -> str:
    """Return "; did you mean X or Y?", or nothing without candidates."""
    text = " or ".join(candidates)
    return f"; did you mean {text}?" if text else ""


def plain(value: Any) -> Any:
    """Return a dataclass, or anything inside one, as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
