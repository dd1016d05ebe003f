"""``${env.NAME}`` and ``${file:/path}``: values that are written elsewhere, so configurations can be shown around."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.app.config.problems import Problem, did_you_mean
from appliance.app.config.source import KeyPath, Tree, show

_REFERENCE = re.compile(r"\$(\$)?\{([^}]*)\}")
_SECRET_WORDS = ("password", "passwd", "token", "secret", "dsn", "key", "credential")

# Looked up when a rule is applied, not when the configuration is read (mission, "Token Proxying").
LOOKED_UP_LATER = ("transformations",)

MAX_SECRET_FILE = 64 << 10


def resolve(tree: Tree, variables: Mapping[str, str]) -> tuple[list[Problem], set[str]]:
    """Put the values in place of the references, in the tree itself.

    Returns a problem for each reference that leads nowhere, and the values that must not be logged: the content of each
    file, and of variables whose own name or key says that they are secret. ``$${`` is a literal ``${``.
    """
    problems: list[Problem] = []
    secret: set[str] = set()

    def text(value: str, path: KeyPath) -> str:
        def substitute(match: re.Match[str]) -> str:
            if match[1]:
                return match[0][1:]
            found, trouble = _look_up(match[2], variables)
            if found is None:
                problems.append(Problem(tree.place(path), show(path), f"{match[0]}: {trouble}"))
                return ""
            hints = f"{match[2]} {show(path)}".lower()
            if match[2].startswith("file:") or any(word in hints for word in _SECRET_WORDS):
                secret.add(found)
            return found

        return _REFERENCE.sub(substitute, value)

    for name, value in tree.root.items():
        if name not in LOOKED_UP_LATER:
            tree.root[name] = _mapped(value, (name,), text)
    return problems, secret


def _look_up(reference: str, variables: Mapping[str, str]) -> tuple[str | None, str]:
    kind, dot, name = reference.partition(".")
    if kind == "env" and dot:
        if name in variables:
            return variables[name], ""
        return None, f"the environment has no variable {name!r}{did_you_mean(name, variables)}"
    if reference.startswith("file:"):
        path = Path(reference.removeprefix("file:"))
        try:
            with path.open("rb") as file:
                content = file.read(MAX_SECRET_FILE + 1)
            if len(content) > MAX_SECRET_FILE:
                return None, f"{path} is larger than {MAX_SECRET_FILE >> 10} KB: this is no secret"
            return content.decode().rstrip("\r\n"), ""
        except OSError as error:
            return None, f"{path} cannot be read: {error.strerror}"
        except ValueError:  # also UnicodeDecodeError, and a path with a zero byte
            return None, f"{path} is not text"
    return None, "is no reference (write ${env.NAME} or ${file:/path}; a literal is $${…})"


def _mapped(value: Any, path: KeyPath, text: Callable[[str, KeyPath], str]) -> Any:
    if isinstance(value, str):
        return text(value, path)
    if isinstance(value, dict):
        return {name: _mapped(inner, (*path, name), text) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, (*path, index), text) for index, inner in enumerate(value)]
    return value
