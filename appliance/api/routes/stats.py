"""The four statistics of the second founding document, at its paths and under /api/v1."""

import re
from datetime import timedelta
from typing import Annotated

import msgspec
from litestar import get
from litestar.params import QueryParameter

from appliance.api.parameters import Cursor, End, Limit, Start, TheReader, span
from appliance.api.problems import documented
from appliance.record.queries import stats
from appliance.record.queries.stats import DomainTotals, Grouping, LatencySummary, Sort, SourceTotals, TrafficBucket

_TAG = "statistics"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Chosen when none is given: the first that makes at most this many buckets of the window.
_CHOICES = (1, 10, 60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400)
_BUCKETS = 300

SortBy = Annotated[Sort, QueryParameter(description="What the ranking counts", required=False)]
Bucket = Annotated[
    str | None,
    QueryParameter(
        pattern=r"^[1-9][0-9]{0,4}[smhd]$",
        description="Width of a bucket: 30s, 5m, 1h, 1d. Chosen by the window unless said",
        required=False,
    ),
]
GroupBy = Annotated[Grouping, QueryParameter(name="by", description="What to group by", required=False)]


class TopDomains(msgspec.Struct, frozen=True):
    """A page of the ranking. ``next`` is the cursor of the page after, null on the last."""

    items: list[DomainTotals]
    next: str | None


class SourceIps(msgspec.Struct, frozen=True):
    """A page of the ranking. ``next`` is the cursor of the page after, null on the last."""

    items: list[SourceTotals]
    next: str | None


class Traffic(msgspec.Struct, frozen=True):
    """A page of buckets, oldest first. ``bucket_seconds`` is their width."""

    bucket_seconds: float
    items: list[TrafficBucket]
    next: str | None


class Latency(msgspec.Struct, frozen=True):
    """A page of groups, the largest first. ``next`` is the cursor of the page after, null on the last."""

    items: list[LatencySummary]
    next: str | None


@get(["/stats/top-domains", "/api/v1/stats/top-domains"], tags=[_TAG], responses=documented(400, 503))
async def top_domains(
    reader: TheReader,
    start: Start = None,
    end: End = None,
    sort: SortBy = "connections",
    limit: Limit = 10,
    cursor: Cursor = None,
) -> TopDomains:
    """Rank domains; the last day unless a window is given."""
    asked = span(start, end)
    async with reader.session() as session:
        page = await stats.top_domains(session, asked, sort, limit, cursor)
    return TopDomains(page.items, page.next)


@get(["/stats/source-ips", "/api/v1/stats/source-ips"], tags=[_TAG], responses=documented(400, 503))
async def source_ips(
    reader: TheReader,
    start: Start = None,
    end: End = None,
    sort: SortBy = "connections",
    limit: Limit = 10,
    cursor: Cursor = None,
) -> SourceIps:
    """Rank client addresses; the last day unless a window is given."""
    asked = span(start, end)
    async with reader.session() as session:
        page = await stats.source_ips(session, asked, sort, limit, cursor)
    return SourceIps(page.items, page.next)


@get(["/stats/traffic", "/api/v1/stats/traffic"], tags=[_TAG], responses=documented(400, 503))
async def traffic(
    reader: TheReader,
    start: Start = None,
    end: End = None,
    bucket: Bucket = None,
    limit: Limit = 300,
    cursor: Cursor = None,
) -> Traffic:
    """Count what began over time; the last day unless a window is given."""
    asked = span(start, end)
    width = _width(bucket, asked)
    async with reader.session() as session:
        page = await stats.traffic(session, asked, width, limit, cursor)
    return Traffic(width.total_seconds(), page.items, page.next)


@get(["/stats/latency", "/api/v1/stats/latency"], tags=[_TAG], responses=documented(400, 503))
async def latency(
    reader: TheReader,
    start: Start = None,
    end: End = None,
    by: GroupBy = "all",
    limit: Limit = 10,
    cursor: Cursor = None,
) -> Latency:
    """Summarise how long exchanges took; the last day unless a window is given."""
    asked = span(start, end)
    async with reader.session() as session:
        page = await stats.latency(session, asked, by, limit, cursor)
    return Latency(page.items, page.next)


def _width(bucket: str | None, asked: stats.Span) -> timedelta:
    if bucket is not None and (match := re.fullmatch(r"(\d+)([smhd])", bucket)):
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])
    seconds = (asked.end - asked.start).total_seconds()
    return timedelta(seconds=next((choice for choice in _CHOICES if seconds <= choice * _BUCKETS), _CHOICES[-1]))
