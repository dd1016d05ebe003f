"""The four statistics: domains, traffic over time, latency, sources.

Windows are half open, to the millisecond. Rankings are paged by keyset over (rank, name); their cursor carries the
window, so that pages belong together while traffic goes on.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from appliance.record.queries import cursor
from appliance.record.queries.lists import Page
from appliance.record.queries.reader import Session
from appliance.rules.filter.window import from_time, until_time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime(2200, 1, 1, tzinfo=UTC)

Sort = Literal["connections", "exchanges", "bytes"]
Grouping = Literal["all", "domain", "protocol", "listener", "server"]


class Span(NamedTuple):
    """A time window: ``start`` included, ``end`` excluded; both aware."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, start: datetime, end: datetime) -> "Span":
        """The part of a window that can hold rows: ids begin in 1970, and arithmetic must not leave the calendar."""
        return cls(min(max(start, _EPOCH), _LAST), min(max(end, _EPOCH), _LAST))

    @property
    def ids(self) -> tuple[UUID, UUID]:
        """The same window over ids."""
        return UUID(bytes=from_time(self.start)), UUID(bytes=until_time(self.end, included=False))


class DomainTotals(msgspec.Struct, frozen=True):
    """What went to one domain. ``bytes_in`` went to servers, ``bytes_out`` to clients."""

    domain: str
    connections: int
    exchanges: int
    bytes_in: int
    bytes_out: int
    last_seen: datetime


class SourceTotals(msgspec.Struct, frozen=True):
    """What came from one client address."""

    source_ip: str
    connections: int
    exchanges: int
    bytes_in: int
    bytes_out: int
    domains: int
    last_seen: datetime


class TrafficBucket(msgspec.Struct, frozen=True):
    """What began between ``timestamp`` and one bucket later. Bytes are those of the connections that began then."""

    timestamp: datetime
    connections: int
    exchanges: int
    errors: int
    bytes_in: int
    bytes_out: int


class LatencySummary(msgspec.Struct, frozen=True):
    """How long exchanges took, in milliseconds, from the start of the request to the end of the response.

    ``name`` is the domain, protocol, listener or server; null when everything is one group.
    """

    name: str | None
    count: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class _Place(NamedTuple):
    """The last row of a page of a ranking, and the question it answered."""

    start: datetime
    end: datetime
    by: str
    rank: int
    name: str


_TOP_DOMAINS = """
    SELECT *
      FROM (SELECT *, CASE $3::text WHEN 'bytes' THEN bytes_in + bytes_out WHEN 'exchanges' THEN exchanges
                                    ELSE connections END AS rank
              FROM (SELECT domain AS name, count(*) AS connections, sum(exchanges)::int8 AS exchanges,
                           sum(bytes_in)::int8 AS bytes_in, sum(bytes_out)::int8 AS bytes_out,
                           max(timestamp) AS last_seen
                      FROM traffic_logs
                     WHERE id >= $1 AND id < $2 AND domain IS NOT NULL
                     GROUP BY domain) AS totals) AS ranked
     WHERE $4::int8 IS NULL OR rank < $4 OR (rank = $4 AND name > $5::text COLLATE "C")
     ORDER BY rank DESC, name COLLATE "C"
     LIMIT $6
"""


async def top_domains(session: Session, span: Span, sort: Sort, limit: int, after: str | None) -> Page[DomainTotals]:
    """Domains by connections, exchanges or bytes. Raises ``cursor.CursorError``."""
    span, place = _resume("top-domains", span, sort, after)
    rows = await session.fetch(_TOP_DOMAINS, *span.ids, sort, *place, limit + 1)
    items = [
        DomainTotals(r["name"], r["connections"], r["exchanges"], r["bytes_in"], r["bytes_out"], r["last_seen"])
        for r in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(items, _next("top-domains", span, sort, (last["rank"], last["name"]) if last else None))


_SOURCES = """
    SELECT *
      FROM (SELECT *, CASE $3::text WHEN 'bytes' THEN bytes_in + bytes_out WHEN 'exchanges' THEN exchanges
                                    ELSE connections END AS rank
              FROM (SELECT host(source_ip) AS name, count(*) AS connections, sum(exchanges)::int8 AS exchanges,
                           sum(bytes_in)::int8 AS bytes_in, sum(bytes_out)::int8 AS bytes_out,
                           count(DISTINCT domain) AS domains, max(timestamp) AS last_seen
                      FROM traffic_logs
                     WHERE id >= $1 AND id < $2
                     GROUP BY source_ip) AS totals) AS ranked
     WHERE $4::int8 IS NULL OR rank < $4 OR (rank = $4 AND name > $5::text COLLATE "C")
     ORDER BY rank DESC, name COLLATE "C"
     LIMIT $6
"""


async def source_ips(session: Session, span: Span, sort: Sort, limit: int, after: str | None) -> Page[SourceTotals]:
    """Client addresses by connections, exchanges or bytes. Raises ``cursor.CursorError``."""
    span, place = _resume("source-ips", span, sort, after)
    rows = await session.fetch(_SOURCES, *span.ids, sort, *place, limit + 1)
    items = [
        SourceTotals(
            r["name"], r["connections"], r["exchanges"], r["bytes_in"], r["bytes_out"], r["domains"], r["last_seen"]
        )
        for r in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(items, _next("source-ips", span, sort, (last["rank"], last["name"]) if last else None))


_LATENCY = """
    SELECT name, rank, quantiles[1] AS p50, quantiles[2] AS p90, quantiles[3] AS p95, quantiles[4] AS p99,
           least, mean, most
      FROM (SELECT name, count(*) AS rank, min(response_time_ms) AS least, avg(response_time_ms) AS mean,
                   max(response_time_ms) AS most,
                   percentile_cont(ARRAY[0.5, 0.9, 0.95, 0.99]) WITHIN GROUP (ORDER BY response_time_ms) AS quantiles
              FROM (SELECT response_time_ms,
                           CASE $3::text WHEN 'domain' THEN domain WHEN 'protocol' THEN protocol
                                         WHEN 'listener' THEN listener WHEN 'server' THEN host(destination_addr)
                                         ELSE '' END AS name
                      FROM traffic_records
                     WHERE id >= $1 AND id < $2 AND response_time_ms IS NOT NULL) AS named
             WHERE name IS NOT NULL
             GROUP BY name) AS summaries
     WHERE $4::int8 IS NULL OR rank < $4 OR (rank = $4 AND name > $5::text COLLATE "C")
     ORDER BY rank DESC, name COLLATE "C"
     LIMIT $6
"""


async def latency(session: Session, span: Span, by: Grouping, limit: int, after: str | None) -> Page[LatencySummary]:
    """Percentiles of all exchanges, or of each group, the largest group first. Raises ``cursor.CursorError``."""
    span, place = _resume("latency", span, by, after)
    rows = await session.fetch(_LATENCY, *span.ids, by, *place, limit + 1)
    items = [
        LatencySummary(
            name=r["name"] or None,
            count=r["rank"],
            min_ms=r["least"],
            mean_ms=r["mean"],
            p50_ms=r["p50"],
            p90_ms=r["p90"],
            p95_ms=r["p95"],
            p99_ms=r["p99"],
            max_ms=r["most"],
        )
        for r in rows[:limit]
    ]
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(items, _next("latency", span, by, (last["rank"], last["name"]) if last else None))


def _resume(of: str, span: Span, by: str, after: str | None) -> tuple[Span, tuple[int | None, str | None]]:
    if after is None:
        return span, (None, None)
    place = cursor.decode(of, after, _Place)
    if place.by != by or place.start.tzinfo is None or place.end.tzinfo is None or not -(2**63) <= place.rank < 2**63:
        raise cursor.CursorError("this cursor continues a list with other parameters")
    if "\0" in place.name:
        raise cursor.CursorError("this cursor was not given out by this list")
    return Span.of(place.start, place.end), (place.rank, place.name)


def _next(of: str, span: Span, by: str, last: tuple[int, str] | None) -> str | None:
    return None if last is None else cursor.encode(of, _Place(span.start, span.end, by, *last))


_CONNECTION_BUCKETS = """
    SELECT date_bin($3::interval, timestamp, 'epoch'::timestamptz) AS at, count(*) AS connections,
           sum(bytes_in)::int8 AS bytes_in, sum(bytes_out)::int8 AS bytes_out
      FROM traffic_logs
     WHERE id >= $1 AND id < $2
     GROUP BY 1
"""

_EXCHANGE_BUCKETS = """
    SELECT date_bin($3::interval, timestamp, 'epoch'::timestamptz) AS at, count(*) AS exchanges,
           count(*) FILTER (WHERE error IS NOT NULL OR status_code >= 500
                               OR (status_code = 0 AND status <> 'ok')) AS errors
      FROM traffic_records
     WHERE id >= $1 AND id < $2
     GROUP BY 1
"""


class _From(NamedTuple):
    start: datetime
    end: datetime
    bucket: float


async def traffic(
    session: Session, span: Span, bucket: timedelta, limit: int, after: str | None
) -> Page[TrafficBucket]:
    """What began in each bucket of time, oldest first, empty ones included; buckets are aligned to the epoch.

    The first and last bucket hold only what the window covers of them. Raises ``cursor.CursorError``.
    """
    if after is not None:
        place = cursor.decode("traffic", after, _From)
        if place.bucket != bucket.total_seconds() or place.start.tzinfo is None or place.end.tzinfo is None:
            raise cursor.CursorError("this cursor continues a list with other parameters")
        span = Span.of(place.start, place.end)
    first = _EPOCH + (span.start - _EPOCH) // bucket * bucket
    # Only this page's part of the window is read.
    end = min(span.end, first + limit * bucket)
    ids = Span(span.start, end).ids
    began = {row["at"]: row for row in await session.fetch(_CONNECTION_BUCKETS, *ids, bucket)}
    talked = {row["at"]: row for row in await session.fetch(_EXCHANGE_BUCKETS, *ids, bucket)}
    items = []
    at = first
    while at < end:
        one, other = began.get(at), talked.get(at)
        items.append(
            TrafficBucket(
                timestamp=at,
                connections=one["connections"] if one else 0,
                exchanges=other["exchanges"] if other else 0,
                errors=other["errors"] if other else 0,
                bytes_in=one["bytes_in"] if one else 0,
                bytes_out=one["bytes_out"] if one else 0,
            )
        )
        at += bucket
    more = cursor.encode("traffic", _From(end, span.end, bucket.total_seconds())) if end < span.end else None
    return Page(items, more)
