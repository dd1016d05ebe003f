"""Reading the configuration: all sources, all mistakes at once, one frozen document.

Precedence, weakest first: defaults, files in their order, ``conf.d/*.yaml`` beside the first file, ``.env``, the
environment's ``WEIR__A__B``, ``--set``.
"""

import copy
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from appliance.app.config import source
from appliance.app.config.check import check, listens
from appliance.app.config.document import Document
from appliance.app.config.problems import Place, Problem, did_you_mean
from appliance.app.config.secrets import resolve
from appliance.app.config.source import KeyPath, Tree, show
from appliance.app.config.standing import in_force

DEFAULT_FILE = Path("/etc/weir/weir.yaml")

# Validation is repeated without what was wrong, to find what contradicts in the rest.
_ROUNDS = 8

_WORDS = {
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing_size": "is too large a number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_parsing": "is neither true nor false",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "path_type": "is not a path",
    "tuple_type": "is not a list (write [a, b], or lines that start with a dash)",
    "dict_type": "is not a section of KEY: value",
    "model_type": "is not a section of KEY: value",
    "model_attributes_type": "is not a section of KEY: value",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read. ``document`` is None when there are errors; ``secrets`` are values that must not be logged."""

    document: Document | None
    problems: tuple[Problem, ...]
    secrets: frozenset[str] = frozenset()

    @property
    def errors(self) -> list[Problem]:
        """The problems that keep the configuration from being used."""
        return [problem for problem in self.problems if problem.severity == "error"]


def load(
    files: Sequence[Path] = (),
    *,
    settings: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    dotenv: Path | None = None,
) -> Loaded:
    """Read the configuration. Never raises for what a user wrote.

    Without files, ``/etc/weir/weir.yaml`` is read if it is there. ``dotenv`` is ``.env`` beside the first file, or in
    the working directory when there is none.
    """
    problems: list[Problem] = []
    tree = Tree()
    if not files and DEFAULT_FILE.exists():
        files = [DEFAULT_FILE]
    extra = sorted(files[0].parent.glob("conf.d/*.yaml")) if files else []
    for file in [*files, *extra]:
        layer, found = source.read_yaml(file)
        problems += found
        tree.lay(layer)
    variables, found = source.read_dotenv(dotenv or (files[0].parent if files else Path()) / ".env")
    problems += found
    variables |= source.environment(environ)
    chosen, found = source.settings_of(settings)
    problems += found
    for path, text, place in [*source.overrides(variables), *chosen]:
        try:
            tree.put(path, source.parse_value(text), place)
        except ValueError as error:
            problems.append(Problem(place, show(path), str(error)))
    found, secrets = resolve(tree, {name: value for name, (value, _) in variables.items()})
    problems += found
    document, found = validate(tree)
    # A reference that leads nowhere leaves an empty value behind: one message about it is enough.
    unresolved = {problem.key for problem in problems}
    problems += [problem for problem in found if problem.key not in unresolved]
    problems.sort(key=lambda problem: (problem.severity, problem.place.file, problem.place.line, problem.place.column))
    if any(problem.severity == "error" for problem in problems):
        return Loaded(None, tuple(problems), frozenset(secrets))
    if document is not None:
        secrets |= {user.password for user in document.proxy.socks.users} | set(document.api.tokens)
    return Loaded(document, tuple(problems), frozenset(secrets))


def validate(tree: Tree) -> tuple[Document | None, list[Problem]]:
    """The document of a tree, or every error in it; warnings in both cases."""
    problems: list[Problem] = []
    wrong: list[str] = []
    rest = Tree(copy.deepcopy(tree.root), tree.keys, tree.values)
    document = None
    for _ in range(_ROUNDS):
        try:
            document = Document.model_validate(rest.root)
            break
        except ValidationError as error:
            # One pass names every mistake; later passes only see what lacks something after it was taken out.
            problems = problems or _translated(error, tree)
            wrong += _remove(error, rest)
    for key, message in check(document) if document is not None else ():
        if not any(_touches(key, one) for one in wrong):
            problems.append(Problem(tree.place(_path_of(key)), key, message))
    if problems:
        document = None
    return document, problems + _warnings(tree, document)


def _touches(key: str, wrong: str) -> bool:
    """Whether a finding may come from a mistake that was taken out; a list that lost entries counts as a whole."""
    ours, theirs = key.partition("[")[0], wrong.partition("[")[0]
    return ours == theirs if "[" in wrong else key.startswith(wrong) or wrong.startswith(f"{key}.")


def _warnings(tree: Tree, document: Document | None) -> list[Problem]:
    """Keys that were written but do nothing in this version or this mode. One warning for a section is enough."""
    warnings: list[Problem] = []
    told: list[str] = []
    for path in tree.keys:
        key = ".".join(part for part in map(str, path) if not part.isdigit())
        if not any(key == one or key.startswith(f"{one}.") for one in told) and not in_force(key):
            told.append(key)
            message = "accepted, not in force in this version"
            warnings.append(Problem(tree.place(path, key=True), show(path), message, "warning"))
    for kind in ("transparent", "direct_http"):
        if document is not None and ("proxy", kind) in tree.keys and not listens(document, kind):
            place = tree.place(("proxy", kind), key=True)
            message = f"does nothing while proxy.mode is {document.proxy.mode} (write mode: hybrid)"
            warnings.append(Problem(place, f"proxy.{kind}", message, "warning"))
    return warnings


def _translated(error: ValidationError, tree: Tree) -> list[Problem]:
    """Pydantic's errors in our words, at the user's text. Alternatives of one value become one message."""
    found: dict[KeyPath, tuple[Place, list[str]]] = {}
    for detail in error.errors(include_url=False, include_input=True):
        kind = detail["type"]
        path = _written(detail["loc"], tree, missing=kind == "missing")
        place = tree.place(path, key=kind == "extra_forbidden")
        message = _message(kind, dict(detail), path)
        _, messages = found.setdefault(path, (place, []))
        if message not in messages:
            messages.append(message)
    return [Problem(place, show(path), ", and ".join(texts)) for path, (place, texts) in found.items()]


def _message(kind: str, detail: dict[str, Any], path: KeyPath) -> str:
    context = detail.get("ctx", {})
    value = detail.get("input")
    secret = any(word in show(path[-1:]) for word in ("password", "token", "dsn", "secret"))
    shown = "the value" if secret or isinstance(value, dict | list) else repr(value)
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind == "literal_error":
        options = str(context.get("expected", ""))
        words = [word.strip().strip("'") for word in options.replace(" or ", ", ").split(",")]
        return f"{shown} is not one of {', '.join(words)}{did_you_mean(str(value), words)}"
    if value is None and not kind.startswith("greater"):
        return "has no value"
    if kind in _WORDS:
        return f"{shown} {_WORDS[kind]}"
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "less_than_equal": ("at most", "le"),
        "greater_than": ("more than", "gt"),
        "less_than": ("less than", "lt"),
    }
    if kind in bounds:
        words_, name = bounds[kind]
        return f"{shown} is out of range: {words_} {context.get(name)}"
    if kind == "string_too_short":
        return (
            "is empty" if context.get("min_length") == 1 else f"is shorter than {context.get('min_length')} characters"
        )
    if kind == "string_too_long":
        return f"is longer than {context.get('max_length')} characters"
    if kind == "string_pattern_mismatch" and context.get("pattern") == "^/":
        return f"{shown} does not start with a slash"
    return f"{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _unknown(path: KeyPath) -> str:
    name = str(path[-1])
    if name == "default" and "direct_http" in path:
        return "is unknown here: the default is `direct_http.default_upstream`, outside the list"
    model = model_at(path[:-1])
    known = list(model.model_fields) if model else []
    guess = did_you_mean(name, known)
    if not guess:
        # The right word in the wrong section: say where it belongs.
        homes = [key for key in keys() if key.rpartition(".")[2] == name]
        if len(homes) == 1:
            guess = f" (did you mean {homes[0]!r}?)"
    return f"is unknown{guess}" if guess or not known else f"is unknown (known: {', '.join(known)})"


def model_at(path: KeyPath) -> type[BaseModel] | None:
    """The model of the section at this path of the document."""
    annotation: Any = Document
    for part in path:
        if isinstance(part, int):
            continue  # lists are transparent: their element was unwrapped already
        model = section_of(annotation)
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
    return section_of(annotation)


def keys(model: type[BaseModel] = Document, prefix: str = "") -> list[str]:
    """Every key of the document, dotted, without list indexes; sections before what is in them."""
    found = []
    for name, info in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        found.append(key)
        inner = section_of(info.annotation)
        if inner is not None:
            found += keys(inner, key)
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section's model inside an annotation such as ``tuple[User, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        for argument in get_args(annotation):
            if (found := section_of(argument)) is not None:
                return found
    return None


def _written(location: Sequence[str | int], tree: Tree, *, missing: bool) -> KeyPath:
    """The part of pydantic's location that the user wrote: it names alternatives of unions as well."""
    node: Any = tree.root
    path: list[str | int] = []
    for depth, part in enumerate(location):
        if isinstance(node, dict) and str(part) in node:
            node = node[str(part)]
            path.append(str(part))
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
            path.append(part)
        else:
            if missing and depth == len(location) - 1:
                path.append(part)
            break
    return tuple(path)


def _remove(error: ValidationError, tree: Tree) -> list[str]:
    """Take what is wrong out of the tree, and of what lacks something the whole entry; says what was taken."""
    paths = {_written(detail["loc"], tree, missing=False) for detail in error.errors(include_url=False)} - {()}
    # Later entries of a list first, so that the indexes of the others stay true.
    for path in sorted(paths, key=lambda path: [str(part).zfill(6) for part in path], reverse=True):
        node: Any = tree.root
        for part in path[:-1]:
            node = node[part]
        del node[path[-1]]
    return [show(path) for path in paths]


def _path_of(key: str) -> KeyPath:
    path: list[str | int] = []
    for part in key.split("."):
        name, bracket, index = part.partition("[")
        path.append(name)
        if bracket:
            path.append(int(index.rstrip("]")))
    return tuple(path)
