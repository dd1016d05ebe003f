"""An expression as a condition for WHERE: text with numbered parameters (asyncpg), values apart from it.

Only columns written in ``fields.py`` and operators written here become text; whatever a user typed is a parameter.
Two-valued logic is kept by ``IS NOT TRUE`` where something is negated: AND and OR alone cannot tell NULL from false.
"""

import re
from ipaddress import ip_interface
from typing import Any, NamedTuple
from uuid import UUID

from appliance.rules.filter.expression import (
    ORDERING,
    And,
    Compare,
    Exists,
    Expression,
    Network,
    Not,
    OneOf,
    Op,
    Or,
    Value,
)
from appliance.rules.filter.fields import Field, Kind
from appliance.rules.filter.glob import like
from appliance.rules.filter.window import ALL, window_of

_TYPE = {
    Kind.TEXT: "text",
    Kind.STATUS: "text",
    Kind.TAGS: "text",
    Kind.NUMBER: "int8",
    Kind.SIZE: "int8",
    Kind.WORDS: "int8",
    Kind.DURATION: "float8",
    Kind.TIME: "timestamptz",
    Kind.ADDRESS: "inet",
    Kind.UUID: "uuid",
}
_HTTP_STATUS = re.compile(r"[1-9][0-9]{2}")


class Condition(NamedTuple):
    """SQL text and the values of its parameters, in order."""

    text: str
    arguments: list[Any]


def to_sql(expression: Expression, first: int = 1) -> Condition:
    """Compile to a condition whose parameters are numbered from ``$first``.

    A condition on the time that rows started is given as a window of ids too, so that partitions are pruned. The text
    may be NULL where it is not true.
    """
    compiler = _Compiler(first, steered=_has_key(expression))
    text = compiler.condition(expression)
    window = window_of(expression)
    if window != ALL:
        low, high = (compiler.parameter(UUID(bytes=bound), "uuid") for bound in window)
        text = f"(id >= {low} AND id < {high} AND {text})"
    return Condition(text, compiler.arguments)


def _has_key(expression: Expression) -> bool:
    """Whether every match shares a value that has an index of its own on (column, id)."""
    items = expression.items if isinstance(expression, And) else (expression,)
    return any(isinstance(item, Compare) and item.op is Op.EQ and item.field.keyed for item in items)


class _Compiler:
    def __init__(self, first: int, steered: bool) -> None:
        self._first = first
        self._steered = steered
        self.arguments: list[Any] = []

    def parameter(self, value: Any, type_: str) -> str:
        self.arguments.append(value)
        return f"${self._first + len(self.arguments) - 1}::{type_}"

    def condition(self, expression: Expression) -> str:
        match expression:
            case And(items):
                return self._joined(items, " AND ", "TRUE")
            case Or(items):
                return self._joined(items, " OR ", "FALSE")
            case Not(inner):
                return f"({self.condition(inner)} IS NOT TRUE)"
            case Exists(field):
                return self._exists(field)
            case OneOf(field, values):
                return self._one_of(field, values)
            case Compare(field, Op.NE, value):
                return f"({self._one_of(field, (value,))} IS NOT TRUE)"
            case Compare(field, op, value):
                return self._compare(field, op, value)

    def _joined(self, items: tuple[Expression, ...], word: str, empty: str) -> str:
        return f"({word.join(self.condition(item) for item in items)})" if items else empty

    def _exists(self, field: Field) -> str:
        if field.kind is Kind.TAGS:
            return f"(cardinality({field.column}) > 0)"
        if field.kind is Kind.OBJECT:
            return f"(jsonb_typeof({field.column}) = 'object')"
        return f"({field.column} IS NOT NULL)"

    def _one_of(self, field: Field, values: tuple[Value, ...]) -> str:
        if field.kind is Kind.ADDRESS:
            # asyncpg takes interfaces for inet; <<= is "is contained in or equal to".
            networks = [ip_interface(str(value)) for value in values if isinstance(value, Network)]
            exact = [n for n in networks if n.network.num_addresses == 1]
            if len(exact) == len(networks) == 1:
                return f"({field.column} = {self.parameter(exact[0], 'inet')})"
            return f"({field.column} <<= ANY({self.parameter(networks, 'inet[]')}))"
        if field.kind is Kind.STATUS and all(_HTTP_STATUS.fullmatch(str(value)) for value in values):
            # The number is smaller and indexed; it equals the text for every status of three digits.
            return self._equal(self._number(field), [int(str(value)) for value in values], "int8")
        return self._equal(field.column, list(values), _TYPE[field.kind])

    def _equal(self, column: str, values: list[Any], type_: str) -> str:
        if len(values) == 1:
            return f"({column} = {self.parameter(values[0], type_)})"
        return f"({column} = ANY({self.parameter(values, f'{type_}[]')}))"

    def _compare(self, field: Field, op: Op, value: Value) -> str:
        column, type_ = field.column, _TYPE[field.kind]
        if op is Op.EQ:
            return self._one_of(field, (value,))
        if op in ORDERING:
            if field.kind is Kind.STATUS:
                number = self._number(field)
                return f"({number} > 0 AND {number} {op} {self.parameter(int(str(value)), 'int8')})"
            # Code points, like Python's; the database's collation would order by language.
            collation = ' COLLATE "C"' if field.kind is Kind.TEXT else ""
            return f"({column} {op} {self.parameter(value, type_)}{collation})"
        if op is Op.CONTAINS:
            return self._contains(field, value)
        if op is Op.STARTSWITH:
            return f"starts_with({column}, {self.parameter(value, type_)})"
        return f"({column} LIKE {self.parameter(like(str(value)), type_)})"

    def _contains(self, field: Field, value: Value) -> str:
        if field.kind is Kind.WORDS:
            asked = self.parameter(value, "int8")
            return f"({field.column} & {asked} = {asked})"
        if field.kind is Kind.TAGS:
            return f"({self.parameter(value, 'text')} = ANY({field.column}))"
        return f"(strpos({field.column}, {self.parameter(value, 'text')}) > 0)"

    def _number(self, field: Field) -> str:
        """The status column, out of reach of its index when a rarer value has been given.

        Without this, PostgreSQL walks the failures of all domains, newest first, hoping to meet the one asked for soon
        (measured: 17.2 s for a rare domain; 76 ms by the domain's index, which has the same order).
        """
        return f"({field.number} + 0)" if self._steered else field.number
