"""Parameters that several routes share, typed so that the OpenAPI document says exactly what is accepted."""

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any

from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.exceptions import ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter, SkipValidation

from appliance.api.engine import Engine
from appliance.api.live import Hub
from appliance.record.queries.lists import Wanted
from appliance.record.queries.reader import Reader
from appliance.record.queries.stats import Span
from appliance.rules.filter import Fields, Window, literals, parse
from appliance.rules.filter.window import HIGHEST, LOWEST, from_time, until_time

MAX_LIMIT = 1000
DAY = timedelta(days=1)

TheReader = NamedDependency[SkipValidation[Reader]]
TheEngine = NamedDependency[SkipValidation[Engine]]
TheHub = NamedDependency[SkipValidation[Hub]]

Query = Annotated[
    str,
    QueryParameter(
        name="q",
        max_length=4096,
        description="A filter, for example `domain ~ *.example.com and status >= 500` (docs/filter-language.md)",
        required=False,
    ),
]
_TIME = "a time (RFC 3339), a date, or an age such as -1h"
Start = Annotated[
    str | None,
    QueryParameter(name="from", max_length=64, description=f"Start of the window, included: {_TIME}", required=False),
]
End = Annotated[
    str | None,
    QueryParameter(name="to", max_length=64, description=f"End of the window, excluded: {_TIME}", required=False),
]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="How many items at most", required=False)]
Cursor = Annotated[
    str | None,
    QueryParameter(
        name="cursor",
        max_length=1024,
        description="`next` of the page before, as it was given out, with the same other parameters",
        required=False,
    ),
]


def wanted(fields: Fields, q: str, start: str | None, end: str | None, limit: int, after: str | None) -> Wanted:
    """What a list is asked for. Raises ``FilterError`` and ``ValidationException``."""
    now = datetime.now(UTC)
    first, last = _window(start, end, now)
    low = from_time(first) if first else LOWEST
    high = until_time(last, included=False) if last else HIGHEST
    return Wanted(parse(q, fields, now), Window(low, high), limit, after)


def span(start: str | None, end: str | None) -> Span:
    """The window of a statistic: until now unless said, and a day long unless said. Raises ``ValidationException``."""
    first, last = _window(start, end, datetime.now(UTC))
    upto = last or datetime.now(UTC)
    if first is None:
        first = upto - DAY if upto.year > 1970 else upto
    return Span.of(first, upto)


def only_known(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Guard: a parameter that the route does not have is a mistake to be told, not to be ignored."""
    if connection.scope["type"] == ScopeType.WEBSOCKET:
        return  # the live feed reads its parameters itself, to tell what is wrong with them over the socket
    known = {
        field.kwarg_definition.name or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    }
    for name in connection.query_params:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known)) or 'none'}"
            raise ValidationException(extra=[{"key": name[:60], "message": f"there is no such parameter ({hint})"}])


def _window(start: str | None, end: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    first, last = _time("from", start, now), _time("to", end, now)
    if first is not None and last is not None and first > last:
        raise ValidationException(extra=[{"key": "from", "message": "is later than to"}])
    return first, last


def _time(name: str, text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return literals.time(text, now)
    except literals.BadLiteral as error:
        raise ValidationException(extra=[{"key": name, "message": str(error)}]) from error
