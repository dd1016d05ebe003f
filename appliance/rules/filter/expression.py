"""The frozen tree that a filter is read into. Values are typed; nothing in it depends on where it will run."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from uuid import UUID

from appliance.rules.filter.fields import Field

Network = IPv4Network | IPv6Network
Value = str | int | float | datetime | UUID | Network


class Op(StrEnum):
    """What a field is asked."""

    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    GLOB = "~"
    CONTAINS = "contains"
    STARTSWITH = "startswith"
    IN = "in"


ORDERING = frozenset({Op.LT, Op.LE, Op.GT, Op.GE})


@dataclass(frozen=True, slots=True)
class Compare:
    """``field op value``. False when the record has no such value, except ``!=``, which is the negation of ``==``."""

    field: Field
    op: Op
    value: Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """``field in (…)``."""

    field: Field
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """A bare field: the record has a value for it."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """True when the inner expression is not."""

    inner: "Expression"


@dataclass(frozen=True, slots=True)
class And:
    """True when all are; an empty one is true."""

    items: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True when any is."""

    items: tuple["Expression", ...]


Expression = Compare | OneOf | Exists | Not | And | Or

EVERYTHING: Expression = And(())
