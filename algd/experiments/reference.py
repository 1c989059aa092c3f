"""The reference of all configuration keys, as `algd train --help` prints it.

In: the configuration dataclasses with their docstrings. Out: text: every key with what it may be,
its default, and what it means. Nothing is written twice: a key is described where it is declared.
Reading the dataclasses imports torch, which takes seconds: the help reads ``reference.json``, which
`python -m algd.experiments.reference` writes and a test compares with them.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from algd.experiments.schema import describe_type, field_types, is_dataclass_type, show, variants

STORED = Path(__file__).with_name("reference.json")
_INDENT = " " * 8


class Line(NamedTuple):
    """A paragraph to be wrapped, and the indents of its first line and of the rest."""

    text: str
    first: str = ""
    rest: str = ""


_BLANK = Line("")


def stored_reference() -> list[Line]:
    """Return the reference of ``ExperimentConfig`` from its file."""
    return [Line(*line) for line in json.loads(STORED.read_text(encoding="utf-8"))]


def wrapped(lines: Iterable[Line], width: int) -> str:
    """Return the reference as text of ``width`` columns."""
    return "\n".join(
        textwrap.fill(
            line.text,
            width,
            initial_indent=line.first,
            subsequent_indent=line.rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )


def config_reference(cls: type) -> list[Line]:
    """Return the reference of a configuration class."""
    default = cls()
    docs = field_docs(cls)
    lines: list[Line] = []
    for name, annotation in field_types(cls).items():
        value = getattr(default, name)
        if lines:
            lines.append(_BLANK)
        if kinds := variants(annotation):
            lines += _union_section(name, kinds, value)
        elif is_dataclass_type(annotation):
            lines += _group_section(name, annotation, value)
        else:
            lines += _entry(name, annotation, value, docs.get(name, ""))
    return lines


def _union_section(name: str, kinds: dict[str, type], default: Any) -> Iterator[Line]:
    yield Line(name)
    yield Line(f"--{name}.kind  one of {', '.join(kinds)}  (default {default.kind})", "  ", _INDENT)
    for kind, member in kinds.items():
        yield _BLANK
        title = f"{name}, with --{name}.kind={kind}"
        yield from _group_section(name, member, member(), title=title)


def _group_section(
    name: str, cls: type, default: Any, *, title: str | None = None
) -> Iterator[Line]:
    yield Line(f"{title or name}: {prose(cls)}", "", "  ")
    yield from _entries(name, cls, default, is_member=title is not None)


def _entries(prefix: str, cls: type, default: Any, *, is_member: bool = False) -> Iterator[Line]:
    """Yield the entries of a group; a union's member leaves its kind to the union."""
    docs = field_docs(cls)
    shown = ""  # what is said of several fields is printed once
    for name, annotation in field_types(cls).items():
        if is_member and name == "kind":
            continue
        value, key = getattr(default, name), f"{prefix}.{name}"
        if is_dataclass_type(annotation):
            yield Line(f"{key}: {prose(annotation)}", "  ", "    ")
            yield from _entries(key, annotation, value)
        else:
            doc = docs.get(name, "")
            yield from _entry(key, annotation, value, "" if doc == shown else doc)
            shown = doc


def _entry(key: str, annotation: Any, default: Any, doc: str) -> Iterator[Line]:
    yield Line(f"--{key}  {describe_type(annotation)}  (default {show(default)})", "  ", _INDENT)
    if doc:
        yield Line(doc, _INDENT, _INDENT)


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


def main() -> None:
    """Write the reference of ``ExperimentConfig`` to its file."""
    from algd.experiments.config import ExperimentConfig

    lines = [list(line) for line in config_reference(ExperimentConfig)]
    STORED.write_text(json.dumps(lines, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
