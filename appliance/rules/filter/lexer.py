"""Characters to tokens. Linear in the length of the text, which the parser bounds."""

import re
from enum import Enum
from typing import NamedTuple

from appliance.rules.filter.error import FilterError


class Lexeme(Enum):
    """What kind of token it is."""

    WORD = "word"
    STRING = "string"
    OPERATOR = "operator"
    OPEN = "("
    CLOSE = ")"
    COMMA = ","
    END = "end"


class Token(NamedTuple):
    """One token: its value (unquoted) and where it starts, in characters."""

    lexeme: Lexeme
    text: str
    position: int


# Alternatives begin with different characters, so nothing is tried twice.
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<operator>==|!=|<=|>=|&&|\|\||[=<>~!])
      | (?P<open>\()
      | (?P<close>\))
      | (?P<comma>,)
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<word>[^\s"'(),=!<>~&|]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_LEXEMES = {
    "operator": Lexeme.OPERATOR,
    "open": Lexeme.OPEN,
    "close": Lexeme.CLOSE,
    "comma": Lexeme.COMMA,
    "word": Lexeme.WORD,
}
# Inside quotes a backslash takes the next quote or backslash literally; before anything else it stands for itself, so
# that it reaches a pattern, where it makes * and ? literal.
_ESCAPE = re.compile(r"""\\(["'\\])""")


def tokens(text: str) -> list[Token]:
    """Split a filter into tokens, the last one being END. Raises ``FilterError``."""
    found: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _unreadable(text, position)
        group = match.lastgroup
        if group == "string":
            found.append(Token(Lexeme.STRING, _ESCAPE.sub(r"\1", match[0][1:-1]), position))
        elif group is not None and group != "space":
            found.append(Token(_LEXEMES[group], match[0], position))
        position = match.end()
    found.append(Token(Lexeme.END, "", len(text)))
    return found


def _unreadable(text: str, position: int) -> FilterError:
    character = text[position]
    if character in "\"'":
        return FilterError("this quote is never closed", text, position)
    if character in "&|":
        return FilterError(f"a single {character!r} means nothing here", text, position, f"write {character * 2}")
    return FilterError(f"{character!r} means nothing here", text, position)
