"""What is wrong with a configuration, where, and what was probably meant."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# What follows such a key on a source line is not shown: `users: [{usernme: dev, password: hunter2}]` is one line.
_SECRET_KEY = r"[\w.-]*(?:password|token|secret|dsn|key)[\w.-]*"
_SECRET = re.compile(rf"""(?i)(["']?{_SECRET_KEY}["']?\s*:).*""")
_SECRET_ENTRY = re.compile(rf"(?i){_SECRET_KEY}(\[\d+\])?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written. Lines and columns count from 1; ``text`` is the whole source line."""

    file: str
    line: int = 1
    column: int = 1
    text: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One message about one key."""

    place: Place
    key: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """``FILE:LINE:COL: error: KEY: message``."""
        key = f"{self.key}: " if self.key else ""
        return f"{self.place.file}:{self.place.line}:{self.place.column}: {self.severity}: {key}{self.message}"

    def pretty(self) -> str:
        """The message, the source line, and a mark under the column; the values of secrets are not shown."""
        text = self.place.text.rstrip().replace("\t", " ")
        if not text:
            return str(self)
        shown = _SECRET.sub(r"\1 [hidden]", text)
        if shown == text and _SECRET_ENTRY.fullmatch(self.key.rpartition(".")[2]):
            return str(self)  # the value alone, on a line of a list
        if shown != text and self.place.column > len(shown):
            return f"{self}\n    {shown}"
        return f"{self}\n    {shown}\n    {' ' * min(self.place.column - 1, len(shown))}^"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)`` when one of the known words is close, else nothing."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
