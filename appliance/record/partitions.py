"""Days of storage: partitions made ahead of the rows, and their costlier indexes built behind them.

A day is a number, days since the Unix epoch in UTC. Ids begin with their time, so a day of rows is a range of ids.
Partitions are made aside and then attached: attaching takes a lock that reading and writing do not mind.
"""

import uuid
from collections.abc import Iterable
from datetime import date, timedelta

import asyncpg

from appliance.model import identity

DAY_NS = 86_400 * 1_000_000_000
DAY_MS = 86_400 * 1_000
DAYS_BEHIND, DAYS_AHEAD = 1, 2
LOCK = 0x57656972_0002  # making partitions
INDEX_LOCK = 0x57656972_0003  # building indexes behind
_EPOCH = date(1970, 1, 1)
_BY_ID = ("traffic_records", "traffic_logs")


def day_of(at_ns: int) -> int:
    """The day of a time in nanoseconds since the epoch."""
    return at_ns // DAY_NS


def day_of_id(id: bytes) -> int:
    """The day in which an id was minted (RFC 9562 §5.7: the first 48 bits are milliseconds)."""
    return int.from_bytes(id[:6], "big") // DAY_MS


def as_date(day: int) -> date:
    """The calendar date of a day."""
    return _EPOCH + timedelta(days=day)


def bounds(day: int) -> tuple[uuid.UUID, uuid.UUID]:
    """The ids of a day: first included, last excluded."""
    first, last = (uuid.UUID(bytes=identity.floor(at * DAY_NS)) for at in (day, day + 1))
    return first, last


def around(day: int) -> range:
    """The days whose partitions should exist on this day."""
    return range(day - DAYS_BEHIND, day + DAYS_AHEAD + 1)


async def ensure(connection: asyncpg.Connection, days: Iterable[int]) -> None:
    """Make the partitions of these days where they are missing. Safe to call from many processes."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        existing = {row["relname"] for row in await connection.fetch(_PARTITIONS)}
        for day in sorted(set(days)):
            suffix = f"{as_date(day):%Y%m%d}"
            first, last = bounds(day)
            for table in _BY_ID:
                if f"{table}_{suffix}" not in existing:
                    await connection.execute(_LIKE.format(table=table, suffix=suffix))
                    await connection.execute(_ATTACH_RANGE.format(table=table, suffix=suffix, first=first, last=last))
            if f"bodies_{suffix}" not in existing:
                await connection.execute(_LIKE.format(table="bodies", suffix=suffix))
                await connection.execute(_ATTACH_DAY.format(suffix=suffix, day=as_date(day)))


async def index_closed_days(connection: asyncpg.Connection, today: int) -> list[str]:
    """Build the secondary indexes (S16, S17) of days that get no more rows; return the names of those built.

    Builds do not block writers and take as long as they take; one process works, others return at once.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", INDEX_LOCK):
        return []
    built = []
    try:
        existing = {row["relname"]: row["valid"] for row in await connection.fetch(_INDEXES)}
        for partition in [row["relname"] for row in await connection.fetch(_PARTITIONS)]:
            table, _, suffix = partition.rpartition("_")
            # Yesterday may still get the ends of long exchanges; its turn is tomorrow.
            if suffix >= f"{as_date(today - DAYS_BEHIND):%Y%m%d}":
                continue
            for name, definition in _BEHIND.get(table, ()):
                index = f"{partition}_{name}"
                if existing.get(index):
                    continue
                if index in existing:  # left invalid by a build that was interrupted
                    await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
                await connection.execute(f"CREATE INDEX CONCURRENTLY {index} ON {partition} {definition}")
                built.append(index)
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", INDEX_LOCK)
    return built


_PARTITIONS = """
    SELECT child.relname
      FROM pg_inherits
      JOIN pg_class parent ON parent.oid = inhparent
      JOIN pg_class child  ON child.oid = inhrelid
     WHERE parent.oid IN ('traffic_records'::regclass, 'traffic_logs'::regclass, 'bodies'::regclass)
     ORDER BY child.relname
"""
_INDEXES = """
    SELECT class.relname, index.indisvalid AS valid
      FROM pg_index index
      JOIN pg_class class ON class.oid = index.indexrelid
     WHERE class.relname LIKE 'traffic\\_%'
"""
_LIKE = "CREATE TABLE {table}_{suffix} (LIKE {table} INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION)"
_ATTACH_RANGE = "ALTER TABLE {table} ATTACH PARTITION {table}_{suffix} FOR VALUES FROM ('{first}') TO ('{last}')"
_ATTACH_DAY = "ALTER TABLE bodies ATTACH PARTITION bodies_{suffix} FOR VALUES IN ('{day}')"

# Name and definition. They speed up what nobody asks of the last two days, and would cost every row some microseconds.
_BEHIND = {
    "traffic_records": (
        ("destination", "(protocol, destination_addr, id)"),
        ("path", "(left(request_path, 64), id)"),
        ("status", "(status_code, timestamp)"),
        ("moment", "(timestamp, connection_id)"),
        (
            "duration",
            "((CASE WHEN response_time_ms < 10 THEN 0 WHEN response_time_ms < 100 THEN 1 "
            "WHEN response_time_ms < 1000 THEN 2 ELSE 3 END), id) WHERE response_time_ms IS NOT NULL",
        ),
        ("size", "(payload_size_bucket, id)"),
    ),
    "traffic_logs": (("destination", "(dest_ip, id)"),),
}
