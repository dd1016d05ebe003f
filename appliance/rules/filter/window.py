"""The window of ids that a filter on time implies.

Tables are partitioned by id, and ids are minted from the time that the row started (``model.identity``): a condition on
that time is a condition on ids, which lets PostgreSQL leave out whole days.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from appliance.model.identity import floor
from appliance.rules.filter.expression import And, Compare, Expression, OneOf, Op, Or

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)

LOWEST = bytes(16)
HIGHEST = b"\xff" * 16


class Window(NamedTuple):
    """Ids from ``low`` (included) to ``high`` (excluded), as 16 bytes each. Every row that matches is inside."""

    low: bytes = LOWEST
    high: bytes = HIGHEST


ALL = Window()


def from_time(at: datetime) -> bytes:
    """The smallest id of the millisecond that ``at`` (aware) is in."""
    return LOWEST if at < _EPOCH else floor((at - _EPOCH) // _MS * 1_000_000)


def until_time(at: datetime, *, included: bool) -> bytes:
    """The smallest id that is certainly past ``at``; past every row at that very time too when ``included``."""
    if at < _EPOCH:
        return floor(0)
    whole, rest = divmod(at - _EPOCH, _MS)
    return floor((whole + 1 if rest or included else whole) * 1_000_000)


def window_of(expression: Expression) -> Window:
    """The narrowest window that holds every row the expression can match."""
    match expression:
        case And(items):
            windows = [window_of(item) for item in items]
            return Window(
                max([w.low for w in windows], default=LOWEST), min([w.high for w in windows], default=HIGHEST)
            )
        case Or(items):
            windows = [window_of(item) for item in items]
            return Window(min(w.low for w in windows), max(w.high for w in windows))
        case Compare(field, op, datetime() as at) if field.minted:
            return _of_comparison(op, at)
        case OneOf(field, values) if field.minted:
            times = [value for value in values if isinstance(value, datetime)]
            return Window(from_time(min(times)), until_time(max(times), included=True))
    return ALL


def _of_comparison(op: Op, at: datetime) -> Window:
    if op is Op.EQ:
        return Window(from_time(at), until_time(at, included=True))
    if op in (Op.GT, Op.GE):
        return Window(low=from_time(at))
    if op in (Op.LT, Op.LE):
        return Window(high=until_time(at, included=op is Op.LE))
    return ALL
