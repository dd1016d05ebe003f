"""Wildcards: ``*`` is any run of characters, ``?`` is any one, a backslash makes the next character literal.

A pattern matches the whole value. Both forms (a function here, LIKE there) are made from the same pieces. Matching
never backtracks past a star: the leftmost place where a piece fits is as good as any other.
"""

from collections.abc import Callable

_ANY = None  # one unknown character inside a piece
Piece = tuple[str | None, ...]


def pieces(pattern: str) -> list[Piece]:
    """What stands between the stars: characters, or None for a question mark. At least one piece, perhaps empty."""
    found: list[list[str | None]] = [[]]
    escaped = False
    for character in pattern:
        if escaped:
            found[-1].append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "*":
            found.append([])
        else:
            found[-1].append(_ANY if character == "?" else character)
    if escaped:
        found[-1].append("\\")
    return [tuple(piece) for piece in found]


def like(pattern: str) -> str:
    """The same pattern for SQL's LIKE with its default escape, the backslash."""
    escape = {"%": "\\%", "_": "\\_", "\\": "\\\\"}
    return "%".join(
        "".join("_" if character is _ANY else escape.get(character, character) for character in piece)
        for piece in pieces(pattern)
    )


def glob(pattern: str) -> Callable[[str], bool]:
    """A function that says whether a whole value fits."""
    first, *rest = pieces(pattern)
    if not rest:
        return lambda value: len(value) == len(first) and _fits(first, value, 0)
    *middle, last = rest
    least = len(first) + len(last)

    def fits(value: str) -> bool:
        end = len(value) - len(last)
        if len(value) < least or not _fits(first, value, 0) or not _fits(last, value, end):
            return False
        at = len(first)
        for piece in middle:
            found = _find(piece, value, at, end)
            if found < 0:
                return False
            at = found + len(piece)
        return at <= end

    return fits


def _fits(piece: Piece, value: str, at: int) -> bool:
    return all(character is _ANY or value[at + i] == character for i, character in enumerate(piece))


def _find(piece: Piece, value: str, start: int, end: int) -> int:
    """The leftmost place from ``start`` where the piece fits before ``end``; -1 when there is none."""
    if _ANY not in piece:
        return value.find("".join(character or "" for character in piece), start, end)
    return next((at for at in range(start, end - len(piece) + 1) if _fits(piece, value, at)), -1)
