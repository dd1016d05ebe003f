"""What a reload may change: pure comparison of two documents."""

from dataclasses import dataclass
from typing import Any

from appliance.app.config.document import Document
from appliance.app.config.standing import is_live


@dataclass(frozen=True, slots=True)
class Change:
    """``document`` is what is in force after the reload: the old one with the new values of live keys.

    ``changed`` are the keys that are in force now, ``needs_restart`` those whose new values wait for a restart.
    """

    document: Document
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


def compare(old: Document, new: Document) -> Change:
    """What becomes of the old document when the new one is read."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed: list[str] = []
    waiting: list[str] = []
    for path in _differences(before, after):
        key = ".".join(path)
        if is_live(key):
            changed.append(key)
            _copy(path, after, before)
        else:
            waiting.append(key)
    return Change(Document.model_validate(before), tuple(changed), tuple(waiting))


def _differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of values that differ. Mappings are compared by key where both have it; lists are values."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [found for name in old for found in _differences(old[name], new[name], (*path, name))]
    return [path] if old != new else []


def _copy(path: tuple[str, ...], source: dict[str, Any], target: dict[str, Any]) -> None:
    for name in path[:-1]:
        source, target = source[name], target[name]
    target[path[-1]] = source[path[-1]]
