"""An expression as a predicate over records as the API shows them: mappings with the contract's field names.

Values may be what JSON holds (addresses, times and ids as text) or the objects behind them. An absent value, None and
an empty list of tags are the same. Each node becomes one closure; a record costs one call per condition asked.
"""

import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any
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
from appliance.rules.filter.glob import glob
from appliance.rules.filter.literals import bits

Record = Mapping[str, Any]
Predicate = Callable[[Record], bool]
Test = Callable[[Any], bool]

_ORDER: dict[Op, Callable[[Any, Any], bool]] = {
    Op.LT: operator.lt,
    Op.LE: operator.le,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
}
_STATUS_CODE = re.compile(r"[0-9]{3}")


def matcher(expression: Expression) -> Predicate:
    """Compile to a function that says whether a record matches."""
    match expression:
        case And(items):
            all_of = tuple(matcher(item) for item in items)
            return lambda record: all(one(record) for one in all_of)
        case Or(items):
            any_of = tuple(matcher(item) for item in items)
            return lambda record: any(one(record) for one in any_of)
        case Not(inner):
            positive = matcher(inner)
            return lambda record: not positive(record)
        case Exists(field):
            value = _getter(field)
            return lambda record: value(record) is not None
        case OneOf(field, values):
            return _on(field, _one_of(field.kind, values))
        case Compare(field, Op.NE, value):
            equal = _on(field, _one_of(field.kind, (value,)))
            return lambda record: not equal(record)
        case Compare(field, op, value):
            return _on(field, _comparison(field.kind, op, value))


def _on(field: Field, test: Test) -> Predicate:
    value = _getter(field)

    def ask(record: Record) -> bool:
        found = value(record)
        return found is not None and test(found)

    return ask


def _comparison(kind: Kind, op: Op, value: Value) -> Test:
    if op is Op.EQ:
        return _one_of(kind, (value,))
    if op in ORDERING:
        ordered = _ORDER[op]
        if kind is Kind.STATUS:
            number = int(str(value))
            return lambda found: (code := _code(found)) is not None and ordered(code, number)
        return lambda found: ordered(found, value)
    if op is Op.CONTAINS and kind is Kind.WORDS:
        asked = int(str(value))
        return lambda found: bool(found & asked == asked)
    text = str(value)
    if op is Op.CONTAINS:
        return lambda found: text in found
    if op is Op.STARTSWITH:
        return lambda found: bool(found.startswith(text))
    return glob(text)


def _one_of(kind: Kind, values: tuple[Value, ...]) -> Test:
    if kind is not Kind.ADDRESS:
        return frozenset(values).__contains__
    networks = tuple(value for value in values if isinstance(value, Network))
    return lambda found: any(found in network for network in networks)


def _code(status: str) -> int | None:
    """The number of a status that is one; 000 is none, as in the tables."""
    return int(status) or None if _STATUS_CODE.fullmatch(status) else None


def _getter(field: Field) -> Callable[[Record], Any]:
    """How to take this field out of a record, as the type its literals have; None when it has no value."""
    outer, _, inner = field.name.partition(".")
    if inner:
        return lambda record: _inner(record.get(outer), inner)
    convert = _CONVERT.get(field.kind)
    name = field.name
    if convert is None:
        return lambda record: record.get(name)

    def get(record: Record) -> Any:
        value = record.get(name)
        return None if value is None else convert(value)

    return get


def _inner(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _to_time(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _to_address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ip_address(value)
    except ValueError:
        return None  # a name that was never resolved; the tables have no address then either


def _to_uuid(value: Any) -> Any:
    return UUID(value) if isinstance(value, str) else value


def _to_bits(value: Any) -> Any:
    return bits(value) if isinstance(value, str) else value


_CONVERT: dict[Kind, Callable[[Any], Any]] = {
    Kind.TIME: _to_time,
    Kind.ADDRESS: _to_address,
    Kind.UUID: _to_uuid,
    Kind.WORDS: _to_bits,
    Kind.TAGS: lambda value: value or None,
}
