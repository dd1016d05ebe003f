"""A filter that cannot be read: what is wrong, where, and what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 60


class FilterError(ValueError):
    """What a user typed is no filter.

    ``message`` is one line, ``position`` counts characters from 0, ``hint`` says what to write instead (may be empty).
    ``str()`` shows all of it, with a caret under the place.
    """

    def __init__(self, message: str, text: str, position: int, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.text = text
        self.position = position
        self.hint = hint

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        # A window of the text, so that the caret can be seen under a long filter; control characters would move it.
        start = max(0, self.position - _SHOWN)
        shown = "".join(c if c.isprintable() else " " for c in self.text[start : self.position + _SHOWN])
        return f"column {self.position + 1}: {self.message}{hint}\n  {shown}\n  {' ' * (self.position - start)}^"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known words; lists all of them when none is close."""
    names = sorted(known)
    close = get_close_matches(word.lower(), names, n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(names)}"
