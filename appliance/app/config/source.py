"""Where configuration is written: YAML files with positions, ``.env`` files, the environment, ``--set``.

Each source becomes a ``Tree``: plain dicts, lists and scalars, and the place of every key and value in it. Trees are
laid over each other; what is laid over brings its places along, so that a message always points at the text that
decided.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from appliance.app.config.problems import Place, Problem

KeyPath = tuple[str | int, ...]

PREFIX = "WEIR__"

# A configuration is written by people. These stop what is not: alias bombs and recursion.
MAX_BYTES = 4 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"

# The mission's document puts a key beside list entries (contract §4).
_SLIP_KEY = "proxy.direct_http.upstream_routing"
_SLIP_MESSAGE = (
    "`default` stands beside the entries of a list, which is no YAML: "
    "write it as `direct_http.default_upstream`, outside the list"
)


@dataclass(slots=True)
class Tree:
    """A document, or a part of one, and where each of its keys and values was written."""

    root: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath, *, key: bool = False) -> Place:
        """Where the path, or the nearest part of it above, was written."""
        for length in range(len(path), -1, -1):
            marks = (self.keys, self.values) if key and length == len(path) else (self.values, self.keys)
            for mark in marks:
                if path[:length] in mark:
                    return mark[path[:length]]
        return Place("defaults")

    def lay(self, other: "Tree") -> None:
        """Lay another tree over this one: mappings merge, everything else is replaced."""
        self._lay(self.root, other.root, (), other)

    def _lay(self, under: dict[str, Any], over: dict[str, Any], path: KeyPath, other: "Tree") -> None:
        for name, value in over.items():
            here = (*path, name)
            if isinstance(value, dict) and isinstance(under.get(name), dict):
                self._lay(under[name], value, here, other)
            else:
                self._forget(here)
                under[name] = value
                for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
                    ours.update((at, place) for at, place in theirs.items() if at[: len(here)] == here)

    def put(self, path: KeyPath, value: Any, place: Place) -> None:
        """Set one key from outside any file; numbers address entries of lists that exist."""
        node: Any = self.root
        for depth, name in enumerate(path[:-1]):
            follower: dict[str, Any] = {}
            if isinstance(node, list):
                node = node[_index(node, name, path[:depth])]
                continue
            if str(name) not in node:
                self.keys.setdefault(tuple(map(str, path[: depth + 1])), place)
            node = node.setdefault(str(name), follower)
            if node is None or not isinstance(node, dict | list):
                raise ValueError(f"{show(path[: depth + 1])} is no section: it has no {path[depth + 1]!r}")
        last: Any = path[-1]
        if isinstance(node, list):
            last = _index(node, last, path[:-1])
        here = _resolved(self.root, path)
        self._forget(here)
        node[last] = value
        self.keys[here] = self.values[here] = place

    def _forget(self, path: KeyPath) -> None:
        for marks in (self.keys, self.values):
            for at in [at for at in marks if at[: len(path)] == path]:
                del marks[at]


def show(path: KeyPath) -> str:
    """``proxy.socks.users[0].password``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(file: Path) -> tuple[Tree, list[Problem]]:
    """The tree of one YAML file; what cannot be read is a problem, never an exception."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        return Tree(), [Problem(Place(str(file)), "", f"cannot be read: {error.strerror}")]
    if len(raw) > MAX_BYTES:
        return Tree(), [Problem(Place(str(file)), "", f"is larger than {MAX_BYTES >> 20} MB: this is no configuration")]
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        return Tree(), [Problem(Place(str(file), line), "", "is not UTF-8 text")]
    return parse_yaml(text, str(file))


def parse_yaml(text: str, file: str) -> tuple[Tree, list[Problem]]:
    """The tree of a YAML text. ``file`` is only for messages."""
    problems: list[Problem] = []
    lines = text.splitlines()
    node, trouble = _compose(text, file, lines)
    if trouble is not None and _is_slip(lines, trouble):
        # Say what to write, take the entry out, and go on reading, so that the other mistakes are found as well.
        problems.append(replace(trouble, key=_SLIP_KEY, message=_SLIP_MESSAGE))
        node, trouble = _compose(_without_block(lines, trouble.place.line - 1), file, lines)
    if trouble is not None:
        return Tree(), [*problems, replace(trouble, message=_syntax_hint(trouble.message))]
    reader = _Reader(file, lines)
    tree = reader.read(node)
    return tree, problems + reader.problems


def parse_value(text: str) -> Any:
    """The value of one ``KEY=VALUE`` outside files, read as YAML so that numbers and lists can be given."""
    tree, problems = parse_yaml(f"value: {text}", "value")
    return text if problems or len(tree.root) != 1 else tree.root["value"]


def read_dotenv(file: Path) -> tuple[dict[str, tuple[str, Place]], list[Problem]]:
    """The variables of a ``.env`` file: ``NAME=value`` lines, ``export`` and quotes allowed, ``#`` comments."""
    variables: dict[str, tuple[str, Place]] = {}
    problems = []
    try:
        text = file.read_text(errors="replace")
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [Problem(Place(str(file)), "", f"cannot be read: {error.strerror}")]
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        # The value may be a secret: it is not kept as a source line.
        place = Place(str(file), number)
        if not equals or not name.strip().isidentifier():
            problems.append(Problem(place, "", "is not NAME=value"))
            continue
        variables[name.strip()] = (_unquoted(value.strip()), place)
    return variables, problems


def overrides(variables: Mapping[str, tuple[str, Place]]) -> Iterator[tuple[KeyPath, str, Place]]:
    """The ``WEIR__A__B`` among the variables, as paths."""
    for name, (value, place) in sorted(variables.items()):
        if name.startswith(PREFIX) and len(name) > len(PREFIX):
            yield _path(name[len(PREFIX) :].lower().split("__")), value, place


def environment(environ: Mapping[str, str] | None = None) -> dict[str, tuple[str, Place]]:
    """The process's environment in the shape of ``read_dotenv``."""
    source = os.environ if environ is None else environ
    return {
        name: (value, Place(f"environment {name}" if name.startswith(PREFIX) else "environment"))
        for name, value in source.items()
    }


def settings_of(arguments: Iterable[str]) -> tuple[list[tuple[KeyPath, str, Place]], list[Problem]]:
    """The ``--set a.b=c`` arguments as paths."""
    found = []
    problems = []
    for number, argument in enumerate(arguments, 1):
        key, equals, value = argument.partition("=")
        place = Place("--set", number, 1, argument if not equals else f"{key}=")
        if not equals or not all(key.split(".")):
            problems.append(Problem(place, key, "is not a setting (write --set a.b=value)"))
            continue
        found.append((_path(key.split(".")), value, place))
    return found, problems


def _path(parts: list[str]) -> KeyPath:
    return tuple(int(part) if part.isdigit() and len(part) < 6 else part for part in parts)


def _index(items: list[Any], name: str | int, path: KeyPath) -> int:
    if not isinstance(name, int) or name >= len(items):
        raise ValueError(f"{show(path)} is a list of {len(items)}: it has no entry {name!r}")
    return name


def _resolved(root: Any, path: KeyPath) -> KeyPath:
    """The path with numbers only where lists are: ``port_mappings.80`` is a key, not an index."""
    resolved: list[str | int] = []
    node = root
    for part in path:
        resolved.append(part if isinstance(node, list) else str(part))
        if isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            node = node.get(str(part)) if isinstance(node, dict) else None
    return tuple(resolved)


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.split(" #", 1)[0].rstrip()


def _compose(text: str, file: str, lines: list[str]) -> tuple[Node | None, Problem | None]:
    """The YAML node graph, or the first syntax error in the parser's words."""
    try:
        return YAML(typ="safe", pure=True).compose(text), None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        source = lines[line - 1] if line <= len(lines) else ""
        return None, Problem(Place(file, line, column, source), "", error.problem or "")
    except (YAMLError, ValueError, AttributeError, IndexError, KeyError, TypeError, AssertionError) as error:
        # ruamel's scanner lets some of these escape on malformed directives and escapes.
        return None, Problem(Place(file), "", str(error).split("\n", 1)[0])
    except RecursionError:
        return None, Problem(Place(file), "", "nested too deeply")


def _syntax_hint(message: str) -> str:
    if "found character '\\t'" in message:
        return "a tab: YAML is indented with spaces"
    if "mapping values are not allowed" in message:
        return "a second colon on this line, or a wrong indentation (put values with colons in quotes)"
    if "expected <block end>" in message:
        return "does not fit the indentation of the lines above"
    return f"is no YAML: {message}" if message else "is no YAML"


def _is_slip(lines: list[str], trouble: Problem) -> bool:
    """Whether the parser stumbled over ``default:`` beside the entries of a list."""
    if trouble.place.line > len(lines) or "expected <block end>" not in trouble.message:
        return False
    return lines[trouble.place.line - 1].strip().partition(":")[0].strip() == "default"


def _without_block(lines: list[str], start: int) -> str:
    """The text without one key and what is indented below it; the other lines keep their numbers."""
    indentation = len(lines[start]) - len(lines[start].lstrip())
    kept = list(lines)
    kept[start] = ""
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if line.strip() and len(line) - len(line.lstrip()) <= indentation:
            break
        kept[number] = ""
    return "\n".join(kept) + "\n"


class _Reader:
    """Walks a node graph into a tree."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self._file = file
        self._lines = lines
        self._count = 0
        self.problems: list[Problem] = []
        self._tree = Tree()

    def read(self, node: Node | None) -> Tree:
        if node is None:
            return self._tree
        root = self._value(node, (), 0)
        if isinstance(root, dict):
            self._tree.root = root
        elif root is not None:
            self._problem(node, (), "is no mapping: a configuration is KEY: value")
        return self._tree

    def _value(self, node: Node, path: KeyPath, depth: int) -> Any:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            if self._count <= MAX_NODES + 1 and not any("aliases" in problem.message for problem in self.problems):
                self._problem(node, path, "is nested too deeply, or repeated too often by aliases")
            self._count = max(self._count, MAX_NODES + 1)
            return None
        self._tree.values[path] = self._place(node)
        if isinstance(node, MappingNode | SequenceNode) and not str(node.tag).startswith((f"{_TAG}map", f"{_TAG}seq")):
            self._problem(node, path, f"has the tag {node.tag}, which a configuration does not need")
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return [self._value(entry, (*path, index), depth + 1) for index, entry in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        written: dict[str, Place] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._problem(key_node, path, "a key is a plain word")
                continue
            name = str(key_node.value)
            if key_node.tag == f"{_TAG}merge":
                # YAML 1.1's `<<: *anchor`; what is written beside it wins.
                merged = self._value(value_node, path, depth + 1)
                for part in merged if isinstance(merged, list) else [merged]:
                    if not isinstance(part, dict):
                        self._problem(value_node, path, "<< takes a section, or a list of sections")
                        continue
                    for inherited, value in part.items():
                        mapping.setdefault(inherited, value)
                continue
            here = (*path, name)
            if name in written:
                self._problem(key_node, here, f"is written twice (first on line {written[name].line})")
                continue
            written[name] = self._tree.keys[here] = self._place(key_node)
            mapping[name] = self._value(value_node, here, depth + 1)
        return mapping

    def _scalar(self, node: Node, path: KeyPath) -> Any:
        text = str(node.value)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in ("true", "yes", "on", "y")
        if kind in ("int", "float"):
            return _as_number(text)
        if kind not in ("str", "timestamp", "merge"):
            self._problem(node, path, f"has the tag {node.tag}, which a configuration does not need")
        return text

    def _place(self, node: Node) -> Place:
        line = node.start_mark.line if node.start_mark else 0
        column = node.start_mark.column if node.start_mark else 0
        text = self._lines[line] if line < len(self._lines) else ""
        return Place(self._file, line + 1, column + 1, text)

    def _problem(self, node: Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._place(node), show(path), message))


def _as_number(text: str) -> int | float | str:
    plain = text.replace("_", "")
    for base in (10, 0):  # "010" is ten in YAML 1.2; 0x1f and 0o17 say their base
        try:
            return int(plain, base)
        except ValueError:
            continue
    try:
        return float(plain)
    except ValueError:
        return text
