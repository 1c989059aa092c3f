"""The reference of all configuration keys, as `algd train --help` prints it.

In: the configuration dataclasses with their docstrings. Out: text: every key with what it may be,
its default, and what it means. Nothing is written twice: a key is described where it is declared.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from algd.experiments.schema import describe_type, field_types, is_dataclass_type, show, variants

_INDENT = " " * 8


def config_reference(cls: type, *, width: int) -> str:
    """Return the reference of a configuration class, wrapped to ``width`` columns."""
    default = cls()
    docs = field_docs(cls)
    sections = []
    for name, annotation in field_types(cls).items():
        value = getattr(default, name)
        if kinds := variants(annotation):
            sections.append(_union_section(name, kinds, value, width))
        elif is_dataclass_type(annotation):
            sections.append(_group_section(name, annotation, value, width))
        else:
            sections.append(_entry(name, annotation, value, docs.get(name, ""), width))
    return "\n\n".join(sections)


def _union_section(name: str, kinds: dict[str, type], default: Any, width: int) -> str:
    chosen = f"one of {', '.join(kinds)}"
    head = f"--{name}.kind  {chosen}  (default {default.kind})"
    parts = [f"{name}\n{_wrap(head, width, '  ', _INDENT)}"]
    for kind, member in kinds.items():
        title = f"{name}, with --{name}.kind={kind}"
        parts.append(_group_section(name, member, member(), width, title=title))
    return "\n\n".join(parts)


def _group_section(
    name: str, cls: type, default: Any, width: int, *, title: str | None = None
) -> str:
    heading = _wrap(f"{title or name}: {prose(cls)}", width, "", "  ")
    return "\n".join([heading, *_entries(name, cls, default, width, is_member=title is not None)])


def _entries(
    prefix: str, cls: type, default: Any, width: int, *, is_member: bool = False
) -> Iterator[str]:
    """Yield the entries of a group; a union's member leaves its kind to the union."""
    docs = field_docs(cls)
    shown = ""  # what is said of several fields is printed once
    for name, annotation in field_types(cls).items():
        if is_member and name == "kind":
            continue
        value, key = getattr(default, name), f"{prefix}.{name}"
        if is_dataclass_type(annotation):
            yield _wrap(f"{key}: {prose(annotation)}", width, "  ", "    ")
            yield from _entries(key, annotation, value, width)
        else:
            doc = docs.get(name, "")
            yield _entry(key, annotation, value, "" if doc == shown else doc, width)
            shown = doc


def _entry(key: str, annotation: Any, default: Any, doc: str, width: int) -> str:
    head = f"--{key}  {describe_type(annotation)}  (default {show(default)})"
    lines = [_wrap(head, width, "  ", _INDENT)]
    if doc:
        lines.append(_wrap(doc, width, _INDENT, _INDENT))
    return "\n".join(lines)


def _wrap(text: str, width: int, first: str, rest: str) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def prose(cls: type) -> str:
    """Return the paragraphs of a class docstring that describe no single field."""
    pattern = _field_pattern(cls)
    return " ".join(text for text in _paragraphs(cls) if not pattern.match(text))


def field_docs(cls: type) -> dict[str, str]:
    """Return what is said of each field: in the class docstring, or in a string below the field.

    A docstring describes fields in paragraphs of "name: text" or "name, name: text".
    """
    pattern = _field_pattern(cls)
    docs: dict[str, str] = {}
    for text in _paragraphs(cls):
        if not pattern.match(text):
            continue
        _, *pairs = pattern.split(text)
        for names, doc in zip(pairs[::2], pairs[1::2], strict=True):
            described = doc.strip().rstrip(";")
            if "," in names:
                described = f"{names}: {described}"
            docs.update(dict.fromkeys(names.split(", "), described))
    return docs | _strings_below_fields(cls)


def _field_pattern(cls: type) -> re.Pattern[str]:
    name = f"(?:{'|'.join(field_types(cls))})"
    return re.compile(rf"(?:^|(?<=\s))({name}(?:, {name})*): ")


def _paragraphs(cls: type) -> list[str]:
    text = inspect.getdoc(cls) or ""
    return [" ".join(part.split()).replace("``", "`") for part in text.split("\n\n")]


def _strings_below_fields(cls: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        match node, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs
