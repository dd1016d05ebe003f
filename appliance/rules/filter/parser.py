"""Tokens to a typed expression, by recursive descent. Depth, length and number of terms are bounded.

filter  = or
or      = and { ("or" | "||") and }
and     = not { ("and" | "&&") not }
not     = ("not" | "!") not | "(" or ")" | term
term    = FIELD [ COMPARISON value | ["not"] ("contains" | "startswith") value | ["not"] "in" values ]
values  = value | "(" value { "," value } ")"
value   = WORD | STRING
"""

import re
from datetime import datetime

from appliance.rules.filter import literals
from appliance.rules.filter.error import FilterError, did_you_mean
from appliance.rules.filter.expression import (
    EVERYTHING,
    ORDERING,
    And,
    Compare,
    Exists,
    Expression,
    Not,
    OneOf,
    Op,
    Or,
    Value,
)
from appliance.rules.filter.fields import Field, Fields, Kind
from appliance.rules.filter.lexer import Lexeme, Token, tokens

MAX_LENGTH = 4096
MAX_DEPTH = 32
MAX_TERMS = 256

_COMPARISONS = {"=": Op.EQ, "==": Op.EQ, "!=": Op.NE, "<": Op.LT, "<=": Op.LE, ">": Op.GT, ">=": Op.GE, "~": Op.GLOB}
_WORDS = {"contains": Op.CONTAINS, "startswith": Op.STARTSWITH, "in": Op.IN}

_STATUS_NUMBER = re.compile(r"[0-9]{1,9}")

_EQUAL = {Op.EQ, Op.NE, Op.IN}
_LIKE = {Op.GLOB, Op.CONTAINS, Op.STARTSWITH}
ALLOWED: dict[Kind, frozenset[Op]] = {
    Kind.TEXT: frozenset(_EQUAL | _LIKE | ORDERING),
    Kind.STATUS: frozenset(_EQUAL | _LIKE | ORDERING),
    Kind.NUMBER: frozenset(_EQUAL | ORDERING),
    Kind.SIZE: frozenset(_EQUAL | ORDERING),
    Kind.DURATION: frozenset(_EQUAL | ORDERING),
    Kind.TIME: frozenset(_EQUAL | ORDERING),
    Kind.ADDRESS: frozenset(_EQUAL),
    Kind.UUID: frozenset(_EQUAL),
    Kind.WORDS: frozenset(_EQUAL | {Op.CONTAINS}),
    Kind.TAGS: frozenset({Op.CONTAINS}),
    Kind.OBJECT: frozenset(),
}


def parse(text: str, fields: Fields, now: datetime) -> Expression:
    """Read a filter over ``fields``; an empty one matches everything.

    ``now`` (aware) is what ``-1h`` counts from. Raises ``FilterError``, and nothing else, on any text.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(f"a filter has at most {MAX_LENGTH} characters", text, MAX_LENGTH)
    return _Parser(text, fields, now).filter()


class _Parser:
    def __init__(self, text: str, fields: Fields, now: datetime) -> None:
        self._text = text
        self._fields = fields
        self._now = now
        self._tokens = tokens(text)
        self._at = 0
        self._terms = 0

    def filter(self) -> Expression:
        if self._is(Lexeme.END):
            return EVERYTHING
        expression = self._or(0)
        if self._is(Lexeme.END):
            return expression
        if self._is(Lexeme.CLOSE):
            raise self._error("nothing is open that this could close")
        hint = "join conditions with and / or" if self._next.lexeme is Lexeme.WORD else ""
        raise self._error(f"expected and, or, or the end, found {self._next.text!r}", hint)

    def _or(self, depth: int) -> Expression:
        items = [self._and(depth)]
        while self._take("or", "||"):
            items.append(self._and(depth))
        return items[0] if len(items) == 1 else Or(tuple(items))

    def _and(self, depth: int) -> Expression:
        items = [self._not(depth)]
        while self._take("and", "&&"):
            items.append(self._not(depth))
        return items[0] if len(items) == 1 else And(tuple(items))

    def _not(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        if self._take("not", "!"):
            return Not(self._not(depth + 1))
        if not self._is(Lexeme.OPEN):
            return self._term()
        opened = self._advance()
        inner = self._or(depth + 1)
        if not self._is(Lexeme.CLOSE):
            raise FilterError("this parenthesis is never closed", self._text, opened.position)
        self._advance()
        return inner

    def _term(self) -> Expression:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._error(f"more than {MAX_TERMS} conditions")
        field = self._field()
        operator = self._next
        if operator.lexeme is Lexeme.OPERATOR and operator.text in _COMPARISONS:
            self._advance()
            return self._compare(field, _COMPARISONS[operator.text], operator)
        negated = self._negates()
        if negated:
            self._advance()
        operator = self._next
        op = _WORDS.get(operator.text.lower()) if operator.lexeme is Lexeme.WORD else None
        if op is None:
            return Exists(field)
        self._advance()
        found = self._one_of(field, operator) if op is Op.IN else self._compare(field, op, operator)
        return Not(found) if negated else found

    def _field(self) -> Field:
        token = self._next
        if token.lexeme is Lexeme.STRING:
            raise self._error("a condition begins with a field", f'write e.g. target contains "{token.text[:20]}"')
        if token.lexeme is not Lexeme.WORD:
            found = repr(token.text) if token.text else "the end"
            raise self._error(f"expected a field, found {found}")
        name = token.text.lower()
        field = self._fields.by_name.get(name)
        if field is None:
            hint = self._fields.computed.get(name) or did_you_mean(name, self._fields.names)
            raise self._error(f"{self._fields.of} have no field {token.text[:40]!r} to ask for", hint)
        self._advance()
        return field

    def _negates(self) -> bool:
        """Whether what follows is ``not in``, ``not contains`` or ``not startswith``."""
        following = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else self._next
        return (
            self._next.lexeme is Lexeme.WORD
            and self._next.text.lower() == "not"
            and following.lexeme is Lexeme.WORD
            and following.text.lower() in _WORDS
        )

    def _compare(self, field: Field, op: Op, operator: Token) -> Expression:
        self._check(field, op, operator)
        token = self._next
        value = self._value(field, op)
        if field.kind is Kind.ADDRESS and op is not Op.IN and "/" in token.text:
            raise FilterError("a network is not equal to an address", self._text, operator.position, "write in")
        if field.kind is Kind.STATUS and op in ORDERING and not _STATUS_NUMBER.fullmatch(str(value)):
            raise FilterError(f"{token.text!r} is not a number to order by", self._text, token.position)
        return Compare(field, op, value)

    def _one_of(self, field: Field, operator: Token) -> Expression:
        self._check(field, Op.IN, operator)
        if not self._is(Lexeme.OPEN):
            return OneOf(field, (self._value(field, Op.IN),))
        opened = self._advance()
        values = [self._value(field, Op.IN)]
        while self._is(Lexeme.COMMA):
            self._advance()
            values.append(self._value(field, Op.IN))
        if not self._is(Lexeme.CLOSE):
            raise FilterError("this list is never closed", self._text, opened.position, "separate values by commas")
        self._advance()
        return OneOf(field, tuple(values))

    def _check(self, field: Field, op: Op, operator: Token) -> None:
        allowed = ALLOWED[field.kind]
        if op not in allowed:
            can = ", ".join(known for known in Op if known in allowed) or "only whether it exists"
            message = f"{field.name} cannot be asked {operator.text!r}"
            raise FilterError(message, self._text, operator.position, f"it takes: {can}")

    def _value(self, field: Field, op: Op) -> Value:
        token = self._next
        if token.lexeme not in (Lexeme.WORD, Lexeme.STRING):
            found = repr(token.text) if token.text else "the end"
            raise self._error(f"expected a value, found {found}", "quote values with spaces or any of ( ) , = ! < > ~")
        try:
            value = literals.read(field.kind, token.text, self._now)
        except literals.BadLiteral as error:
            raise self._error(str(error)) from None
        if field.kind is Kind.WORDS and op is Op.CONTAINS and value == 0:
            raise self._error("a record that is complete lists no reasons", "write completeness == complete")
        self._advance()
        return value

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _is(self, lexeme: Lexeme) -> bool:
        return self._next.lexeme is lexeme

    def _advance(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _take(self, word: str, symbol: str) -> bool:
        token = self._next
        taken = (token.lexeme is Lexeme.WORD and token.text.lower() == word) or (
            token.lexeme is Lexeme.OPERATOR and token.text == symbol
        )
        if taken:
            self._advance()
        return taken

    def _error(self, message: str, hint: str = "") -> FilterError:
        return FilterError(message, self._text, self._next.position, hint)
