"""Configuration files: YAML in and out, `base` files, shipped presets.

In: paths or names of presets. Out: layers, each a mapping with the file it came from, most general
first. Reading follows YAML 1.2's core rules, since 1.1 takes 3e-4 for text and `off` for false.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from algd.errors import ConfigError
from algd.experiments.schema import did_you_mean, nearest, show

COMMAND_LINE = "command line"

_BASE_KEY = "base"
_SUFFIX = ".yaml"


class Layer(NamedTuple):
    """A mapping of differences, and what to call the place it was read from."""

    source: str
    tree: dict[str, Any]


class _Reader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, text keys given once, and no anchors."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - typed so upstream
    # No dates, sets, bytes or merge keys: what is read is what JSON can hold.
    yaml_constructors = {  # noqa: RUF012 - typed so upstream
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "float", "str", "seq", "map")
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse anchors: they allow cycles and exponential files, and nothing here needs them."""
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise ComposerError(
                None, None, "anchors and aliases are not supported", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are not text or come twice; YAML itself keeps the last silently."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(
                    None, None, f"a key must be text, got {show(key)}", key_node.start_mark
                )
            if key in seen:
                raise ConstructorError(
                    None,
                    None,
                    f"key {key!r} is given twice (first on line {seen[key]})",
                    key_node.start_mark,
                )
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _Writer(yaml.SafeDumper):
    """SafeDumper that quotes exactly the texts that ``_Reader`` would take for something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - typed so upstream

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - upstream's signature
        """Write shared values out each time."""
        return True


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
for _name, _pattern, _first in _SCALARS:
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first
        )


def _construct_int(loader: _Reader, node: Any) -> int:
    text = loader.construct_scalar(node)
    prefixes = {"0o": 8, "0x": 16}
    return int(text, prefixes.get(text[:2], 10))


_Reader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _represent_list(dumper: _Writer, data: list[Any]) -> Any:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Writer.add_representer(list, _represent_list)


def parse_yaml(text: str, source: str, *, numbered: bool = True) -> Any:
    """Return the value of YAML text; ``numbered`` adds the line to the source in messages.

    Raises:
        ConfigError: one line that names ``source`` and, where known, line and problem.
    """
    try:
        return yaml.load(text, _Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if numbered and mark is not None else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{source}{line}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{source}: not valid YAML: {problem}") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid YAML: nested too deeply") from error


def write_yaml(tree: dict[str, Any]) -> str:
    """Return YAML text that ``parse_yaml`` reads back to the same tree, floats bit for bit."""
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, width=100, allow_unicode=True)


def presets_dir() -> Path:
    """Return where the shipped presets are: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_presets() -> dict[str, str]:
    """Return the shipped presets: name -> the comment on the first line of its file."""
    presets = {}
    for path in sorted(presets_dir().glob(f"*{_SUFFIX}")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        presets[path.stem] = first.lstrip("# ").strip() if first.startswith("#") else ""
    return presets


def read_layers(names: Sequence[str | Path]) -> list[Layer]:
    """Return the layers of files or presets in order, each preceded by its bases.

    A base that an earlier file has already brought in is not applied a second time, so that two
    presets with the same base can be combined. Other presets cannot: they hold what differs from
    the defaults, and what the first sets would stay under the name of the second.

    Raises:
        ConfigError: one line that names the file or preset and what is wrong with it.
    """
    layers: list[Layer] = []
    applied: set[Path] = set()
    first: tuple[str, str] | None = None  # a preset, and the file that it is built on
    for name in map(str, names):
        path = _resolve(name, Path(), COMMAND_LINE)
        is_preset = path.parent == presets_dir() and path.stem == name
        if is_preset and path.resolve() in applied:
            raise ConfigError(f"{COMMAND_LINE}: {name} is a part of what is given before it")
        _collect(path, (), layers, applied)
        if not is_preset:
            continue
        root = _root(path)
        if first is not None and root != first[1]:
            raise ConfigError(
                f"{COMMAND_LINE}: {first[0]} and {name} are presets of different methods: what "
                f"{first[0]} sets would stay; give one of them"
            )
        first = (name, root)
    return layers


def _root(path: Path) -> str:
    """Return the name of the file that a preset is built on, its own where on none."""
    layers: list[Layer] = []
    _collect(path, (), layers, set())
    return layers[0].source


def _collect(path: Path, trail: tuple[Path, ...], layers: list[Layer], applied: set[Path]) -> None:
    key = path.resolve()
    if key in trail:
        cycle = " -> ".join(str(step) for step in [*trail[trail.index(key) :], key])
        raise ConfigError(f"{path}: base files form a cycle: {cycle}")
    if trail and key in applied:
        return
    tree = _read_file(path)
    given = tree.pop(_BASE_KEY, [])
    bases = [given] if isinstance(given, str) else given
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(
            f"{path}: base must be a file name or a list of file names, got {show(given)}"
        )
    for base in bases:
        _collect(_resolve(base, path.parent, str(path)), (*trail, key), layers, applied)
    applied.add(key)
    layers.append(Layer(str(path), tree))


def _resolve(name: str, directory: Path, source: str) -> Path:
    """Return the file that a name stands for: a path as it is, or a shipped preset."""
    path = directory / name
    if path.is_file():
        return path
    bare = Path(name)
    is_name = bare.name == name and not bare.suffix
    preset = presets_dir() / f"{name}{_SUFFIX}"
    if is_name and preset.is_file():
        return preset
    if path.is_dir():
        raise ConfigError(f"{source}: {path} is a directory, a configuration file is wanted")
    if is_name:
        known = list_presets()
        hint = did_you_mean(nearest(name, known)) or f"; the presets are {', '.join(known)}"
        raise ConfigError(f"{source}: {name!r} is neither a file nor a preset{hint}")
    files = {file.stem: str(file) for file in sorted(path.parent.glob(f"*{_SUFFIX}"))}
    near = did_you_mean(files[stem] for stem in nearest(path.stem, files))
    preset_hint = f"; {bare.stem} is a preset" if bare.stem in list_presets() else ""
    raise ConfigError(f"{source}: no file {path}{near or preset_hint}")


def read_utf8(path: Path) -> str:
    """Return the text of a file that a user named.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _read_file(path: Path) -> dict[str, Any]:
    tree = parse_yaml(read_utf8(path), str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration file holds keys, got {show(tree)}")
    return tree
