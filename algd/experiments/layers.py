"""Merges layers of differences over the defaults and validates the result.

In: a configuration dataclass and layers, most general first. Out: an instance of it, or one
``ConfigError`` line that names the key, what is allowed, the value got, and where it came from.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from algd.errors import ConfigError
from algd.experiments.schema import (
    all_keys,
    describe_type,
    did_you_mean,
    field_types,
    is_dataclass_type,
    is_free_form,
    is_group,
    literal_values,
    nearest,
    plain,
    show,
    variants,
)
from algd.experiments.yaml_files import Layer

Config = TypeVar("Config")
Key = tuple[str, ...]
_NAMES_OF_BASE = ("preset", "presets", "bases", "config")  # that people try


def build(cls: type[Config], layers: Sequence[Layer]) -> Config:
    """Return the configuration that the layers describe; later layers win.

    A layer that changes the `kind` of a union drops what earlier layers said about that union.
    Keys of a free-form mapping accumulate over layers; an empty mapping clears it.
    """
    tree = plain(cls())
    sources: dict[Key, str] = {}
    for layer in layers:
        _LayerMerge(cls, layer.source, sources).merge(cls, tree, layer.tree, ())
    try:
        return _adapter(cls).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise ConfigError(_explain(cls, tree, error, sources)) from error


@cache
def _adapter(cls: type[Config]) -> TypeAdapter[Config]:
    return TypeAdapter(cls)


class _LayerMerge:
    """Writes one layer into the full tree and notes, per key, that it came from there."""

    def __init__(self, root: type, source: str, sources: dict[Key, str]) -> None:
        self.root = root
        self.source = source
        self.sources = sources

    def merge(
        self,
        cls: type,
        tree: dict[str, Any],
        difference: dict[str, Any],
        path: Key,
        kinds: dict[str, type] | None = None,
    ) -> None:
        """Write the part for the group ``cls`` at ``path``, one of ``kinds`` if it is a union."""
        types = field_types(cls)
        for name, value in difference.items():
            here = (*path, name)
            if name not in types:
                raise self.unknown_key(cls, here, value, kinds or {})
            annotation = types[name]
            if is_group(annotation):
                group = self.choose_group(annotation, tree, value, here)
                self.merge(group, tree[name], value, here, variants(annotation))
                continue
            self.require_usable(value, annotation, here)
            if is_free_form(annotation) and isinstance(value, dict) and value:
                value = {**tree[name], **value} if isinstance(tree[name], dict) else value
            tree[name] = value
            self.sources[here] = self.source

    def choose_group(self, annotation: Any, tree: dict[str, Any], value: Any, here: Key) -> type:
        """Return the dataclass of a group; a new kind puts its defaults into ``tree``."""
        key, kinds = ".".join(here), variants(annotation)
        if not isinstance(value, dict):
            hint = f"; write {key}.kind to choose one of {', '.join(kinds)}" if kinds else ""
            raise ConfigError(
                f"{self.source}: {key} must be a group of keys, got {show(value)}{hint}"
            )
        if not kinds:
            return annotation
        current = tree[here[-1]]["kind"]
        kind = value.get("kind", current)
        if not isinstance(kind, str) or kind not in kinds:
            near = nearest(kind, kinds) if isinstance(kind, str) else []
            raise ConfigError(
                f"{self.source}: {key}.kind must be one of {', '.join(kinds)}, "
                f"got {show(kind)}{did_you_mean(near)}"
            )
        if kind != current:
            tree[here[-1]] = plain(kinds[kind]())
            for dropped in [path for path in self.sources if path[: len(here)] == here]:
                del self.sources[dropped]
        return kinds[kind]

    def require_usable(self, value: Any, annotation: Any, here: Key) -> None:
        """Refuse what no typed key can mean: nan, infinity, broken characters."""
        typed = not is_free_form(annotation)
        for scalar in _scalars(value):
            if typed and isinstance(scalar, float) and not math.isfinite(scalar):
                problem = f"must be {describe_type(annotation)}, got {show(value)}"
            elif isinstance(scalar, str) and re.search("[\ud800-\udfff]", scalar):
                problem = "holds characters that are not valid text"
            else:
                continue
            raise ConfigError(f"{self.source}: {'.'.join(here)} {problem}")

    def unknown_key(self, cls: type, here: Key, value: Any, kinds: dict[str, type]) -> ConfigError:
        """Say that a key does not exist, and which one may have been meant."""
        *parents, name = here
        text = f"{self.source}: {'.'.join(here)} is not a key"
        if kinds:
            kind = next(kind for kind, member in kinds.items() if member is cls)
            text += f" of {'.'.join(parents)}.kind {kind}"
        text += f", got {show(value)}"
        owners = [kind for kind, member in kinds.items() if name in field_types(member)]
        if owners:
            return ConfigError(f"{text}; it belongs to {', '.join(owners)}")
        if not parents and name in _NAMES_OF_BASE:
            return ConfigError(f"{text}; a preset or file to build on is named by base")
        keys = list(all_keys(self.root))
        dotted = tuple(here[-1].split("."))
        if len(dotted) > 1 and (*parents, *dotted) in keys:
            *groups, last = dotted
            nested = f"{last}: {show(value)}"
            for group in reversed(groups):
                nested = f"{group}: {{{nested}}}"
            return ConfigError(f"{text}; in a file groups are nested: {nested}")
        elsewhere = [".".join(key) for key in keys if key[-1] == name]
        if elsewhere:
            return ConfigError(text + did_you_mean(elsewhere))
        near = [".".join((*parents, match)) for match in nearest(name, field_types(cls))]
        if not near:
            matches = nearest(name, [key[-1] for key in keys])
            near = [".".join(key) for key in keys if key[-1] in matches]
        known = f"; the keys of {'.'.join(parents) or 'the top level'} are "
        return ConfigError(text + (did_you_mean(near) or known + ", ".join(field_types(cls))))


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def _explain(
    cls: type, tree: dict[str, Any], error: ValidationError, sources: dict[Key, str]
) -> str:
    """Turn pydantic's first complaint into one line."""
    first = error.errors()[0]
    path, annotation = _locate(cls, first["loc"])
    if first["type"] == "value_error":
        message = str(first.get("ctx", {})["error"])
        return _explain_value_error(message, annotation, path, sources)
    value: Any = tree
    for part in path:
        value = value[part]
    allowed = describe_type(annotation)
    hint = ""
    if isinstance(value, str):
        hint = did_you_mean(nearest(value, literal_values(annotation)))
    elif isinstance(value, float) and value.is_integer() and describe_type(int) in allowed:
        hint = f" (write {int(value)})"
    source = sources.get(path, "defaults")
    return f"{source}: {'.'.join(path)} must be {allowed}, got {show(value)}{hint}"


def _locate(cls: type, location: tuple[int | str, ...]) -> tuple[Key, Any]:
    """Return the key that pydantic's location points into, and its declared type."""
    path: list[str] = []
    annotation: Any = cls
    for step in map(str, location):
        if step in variants(annotation):
            annotation = variants(annotation)[step]
        elif is_dataclass_type(annotation) and step in field_types(annotation):
            path.append(step)
            annotation = field_types(annotation)[step]
        else:
            break
    return tuple(path), annotation


def _explain_value_error(message: str, group: type, path: Key, sources: dict[Key, str]) -> str:
    """Complete the message of a ``__post_init__`` by the path of its key and the sources."""
    prefix = "".join(f"{part}." for part in path)
    message = " ".join(message.removeprefix(prefix).split())
    names = field_types(group)
    mentioned = [(*path, name) for name in names if re.search(rf"\b{name}\b", message)]
    where = [sources[key] for key in mentioned if key in sources]
    if not where:
        where = [source for key, source in sources.items() if key[: len(path)] == path]
    first_word = re.match(r"\w*", message)
    if path and (first_word is None or first_word[0] not in names):
        prefix = prefix.removesuffix(".") + ": "
    return f"{' and '.join(dict.fromkeys(where)) or 'defaults'}: {prefix}{message}"
