"""Pages of connections and exchanges, newest first, and single ones by id."""

from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from appliance.record.queries import cursor, documents
from appliance.record.queries.reader import Session
from appliance.rules.filter import Expression, Window, to_sql

T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    """Some items, and the cursor of the page after; None when this was the last."""

    items: list[T]
    next: str | None


class Wanted(NamedTuple):
    """Which rows of a list: matching the filter, inside the window, after the cursor; at most ``limit``."""

    filter: Expression
    window: Window
    limit: int
    cursor: str | None = None


_EXCHANGES = """
    SELECT id, connection_id, timestamp, protocol, source_addr, source_port, destination_addr, destination_port,
           domain, listener, method, request_path, status, response_time_ms, first_byte_ms, request_bytes,
           response_bytes, error, completeness, metadata, tags
      FROM traffic_records
     WHERE id >= $1 AND id < $2 AND {condition}
     ORDER BY id DESC
     LIMIT $3
"""


async def exchanges(session: Session, wanted: Wanted) -> Page[documents.Exchange]:
    """A page of exchanges. Raises ``cursor.CursorError``."""
    low, high = _bounds("exchanges", wanted)
    condition, arguments = to_sql(wanted.filter, first=4)
    query = _EXCHANGES.format(condition=condition)
    rows = await session.fetch(query, low, high, wanted.limit + 1, *arguments)
    return _page("exchanges", [documents.exchange(row) for row in rows], wanted.limit)


_EXCHANGE = """
    SELECT id, connection_id, timestamp, protocol, source_addr, source_port, destination_addr, destination_port,
           domain, listener, method, request_path, status, response_time_ms, first_byte_ms, request_bytes,
           response_bytes, error, completeness, metadata, tags
      FROM traffic_records
     WHERE id = $1
"""


async def exchange(session: Session, id: UUID) -> documents.ExchangeDetail | None:
    """One exchange; None when there is none with this id."""
    row = await session.fetchrow(_EXCHANGE, id)
    return documents.exchange_detail(row) if row else None


_CONNECTIONS = """
    SELECT id, timestamp, source_ip, source_port, dest_ip, dest_port, domain, domain_source, protocol, listener, path,
           latency_ms, bytes_in, bytes_out, duration_ms, exchanges, end_reason, completeness, missing_bytes, detail,
           error, user_name, tls, tags
      FROM traffic_logs
     WHERE id >= $1 AND id < $2 AND {condition}
     ORDER BY id DESC
     LIMIT $3
"""


async def connections(session: Session, wanted: Wanted) -> Page[documents.Connection]:
    """A page of connections. Raises ``cursor.CursorError``."""
    low, high = _bounds("connections", wanted)
    condition, arguments = to_sql(wanted.filter, first=4)
    query = _CONNECTIONS.format(condition=condition)
    rows = await session.fetch(query, low, high, wanted.limit + 1, *arguments)
    return _page("connections", [documents.connection(row) for row in rows], wanted.limit)


_CONNECTION = """
    SELECT id, timestamp, source_ip, source_port, dest_ip, dest_port, domain, domain_source, protocol, listener, path,
           latency_ms, bytes_in, bytes_out, duration_ms, exchanges, end_reason, completeness, missing_bytes, detail,
           error, user_name, tls, tags
      FROM traffic_logs
     WHERE id = $1
"""


async def connection(session: Session, id: UUID) -> documents.Connection | None:
    """One connection; None when there is none with this id."""
    row = await session.fetchrow(_CONNECTION, id)
    return documents.connection(row) if row else None


def _bounds(of: str, wanted: Wanted) -> tuple[UUID, UUID]:
    """The ids that this page may hold: the window, and below the last one of the page before."""
    low, high = (UUID(bytes=bound) for bound in wanted.window)
    if wanted.cursor is not None:
        high = min(high, cursor.decode(of, wanted.cursor, UUID))
    return low, high


Row = TypeVar("Row", documents.Exchange, documents.Connection)


def _page(of: str, items: list[Row], limit: int) -> Page[Row]:
    """One row more than asked for says that there is a next page."""
    more = len(items) > limit
    items = items[:limit]
    return Page(items, cursor.encode(of, items[-1].id) if more else None)
