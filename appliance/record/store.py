"""Batches into Postgres: one transaction each, exactly once, whatever happens to the connection.

A batch goes in by COPY. Should its rows be there already (a commit whose answer was lost, a spool that was replayed
half-way before a crash), the unique ids refuse the COPY and the batch is merged instead. Every failure that says
something about the database rather than about the rows is ``StoreAway``: the caller spools and connects again.
"""

import asyncio
import io
from contextlib import suppress
from datetime import UTC, datetime

import asyncpg

from appliance.observe.logging import get_logger
from appliance.record import partitions, rows
from appliance.record.batch import Batch, Entry, Position
from appliance.record.migrate import MigrationError, migrate
from appliance.record.settings import RecordSettings

log = get_logger("store")

MIGRATION_TIMEOUT = 900.0  # seconds; a server that stops answering meanwhile is left after that


class StoreAway(Exception):
    """The database cannot be reached, or takes no rows now; the message says why."""


class PostgresStore:
    """One writer's connection."""

    def __init__(self, settings: RecordSettings, writer_name: str) -> None:
        self._settings = settings
        self._name = f"weir {writer_name}"
        self._connection: asyncpg.Connection | None = None
        self._days: set[int] = set()  # whose partitions are known to exist
        self.merged = 0  # batches that were partly there already
        self.rejected = 0  # rows that the database refuses and that were left out

    @property
    def connected(self) -> bool:
        """Whether the last thing we heard from the database was good."""
        return self._connection is not None

    async def connect(self) -> None:
        """Connect, bring the schema forward, make partitions. Raises ``StoreAway``."""
        await self._disconnect()
        try:
            connection = await self._open()
        except _AWAY as error:
            raise StoreAway(_reason(error)) from error
        try:
            async with asyncio.timeout(MIGRATION_TIMEOUT):
                await migrate(connection)
                today = partitions.day_of(_now_ns())
                await partitions.ensure(connection, partitions.around(today))
                await connection.execute(_STAGING)
        except (MigrationError, *_AWAY) as error:
            connection.terminate()
            raise StoreAway(_reason(error)) from error
        self._days = set(partitions.around(today))
        self._connection = connection

    async def position(self, ring: str) -> Position | None:
        """How far this ring's rows are in the database; None when it never wrote any. Raises ``StoreAway``."""
        try:
            async with asyncio.timeout(self._settings.write_timeout):
                row = await self._live().fetchrow(_POSITION, ring)
        except _AWAY as error:
            await self._disconnect()
            raise StoreAway(_reason(error)) from error
        return None if row is None else Position(row["position"], row["resume"])

    async def forget(self, ring: str) -> None:
        """Delete the position of a ring that is no more. Raises ``StoreAway``."""
        try:
            async with asyncio.timeout(self._settings.write_timeout):
                await self._live().execute(_FORGET, ring)
        except _AWAY as error:
            await self._disconnect()
            raise StoreAway(_reason(error)) from error

    async def write(self, entry: Entry, *, doubtful: bool = False) -> None:
        """Make a batch and its position durable together. ``doubtful``: it may have been committed before.

        Raises ``StoreAway``; it is then not known whether the batch was committed, and writing it again is safe.
        """
        try:
            async with asyncio.timeout(self._settings.write_timeout):
                await self._write(self._live(), entry, doubtful)
        except _AWAY as error:
            await self._disconnect()
            raise StoreAway(_reason(error)) from error

    async def maintain(self) -> list[str]:
        """Partitions ahead and secondary indexes behind, on a connection of its own. Raises ``StoreAway``."""
        try:
            connection = await self._open()
            try:
                today = partitions.day_of(_now_ns())
                await partitions.ensure(connection, partitions.around(today))
                return await partitions.index_closed_days(connection, today)
            finally:
                connection.terminate()
        except _AWAY as error:
            raise StoreAway(_reason(error)) from error

    async def close(self) -> None:
        """Disconnect."""
        await self._disconnect()

    async def _open(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._settings.dsn,
            timeout=self._settings.start_timeout,
            server_settings={"application_name": self._name, "timezone": "UTC"},
        )

    def _live(self) -> asyncpg.Connection:
        if self._connection is None:
            raise StoreAway("not connected")
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Not close(): that waits for a server that may be stopped.
            connection.terminate()

    async def _write(self, connection: asyncpg.Connection, entry: Entry, doubtful: bool) -> None:
        await self._ensure_days(connection, entry.batch.days)
        if doubtful:
            stored = await connection.fetchrow(_POSITION, entry.ring)
            if stored is not None and stored["position"] == entry.position and stored["resume"] == entry.resume:
                return
        try:
            try:
                await self._copy(connection, entry)
            except asyncpg.UniqueViolationError:
                self.merged += 1
                await self._merge(connection, entry)
            except asyncpg.CheckViolationError:
                # "No partition of relation found": somebody dropped one that we knew.
                self._days.clear()
                await self._ensure_days(connection, entry.batch.days)
                await self._merge(connection, entry)
        except _REFUSED as error:
            log.error("the database refuses a row; writing the batch row by row", reason=str(error))
            await self._salvage(connection, entry)

    async def _ensure_days(self, connection: asyncpg.Connection, days: tuple[int, ...]) -> None:
        missing = [day for day in days if day not in self._days]
        if missing:
            await partitions.ensure(connection, missing)
            self._days.update(missing)

    async def _copy(self, connection: asyncpg.Connection, entry: Entry) -> None:
        """The usual way: everything is new."""
        batch = entry.batch
        async with connection.transaction():
            await self._bodies(connection, batch)
            await _copy_in(connection, "traffic_records", rows.RECORD_COLUMNS, batch.records)
            await _copy_in(connection, "traffic_logs", rows.LOG_COLUMNS, batch.connections)
            if batch.endings:
                await _copy_in(connection, "staged_logs", rows.LOG_COLUMNS, batch.endings)
                await connection.execute(_MERGE_LOGS)
            await connection.execute(_ADVANCE, entry.ring, entry.position, entry.resume)

    async def _merge(self, connection: asyncpg.Connection, entry: Entry) -> None:
        """The same, where some rows may be there already."""
        batch = entry.batch
        async with connection.transaction():
            await self._bodies(connection, batch)
            await _copy_in(connection, "staged_records", rows.RECORD_COLUMNS, batch.records)
            await connection.execute(_MERGE_RECORDS)
            for logs in (batch.connections, batch.endings):
                await _copy_in(connection, "staged_logs", rows.LOG_COLUMNS, logs)
                await connection.execute(_MERGE_LOGS)
                await connection.execute("TRUNCATE staged_logs")
            await connection.execute(_ADVANCE, entry.ring, entry.position, entry.resume)

    async def _salvage(self, connection: asyncpg.Connection, entry: Entry) -> None:
        """The same, row by row, leaving out those that the database refuses: one bad row must not cost the others."""
        batch = entry.batch
        async with connection.transaction():
            await self._bodies(connection, batch)
            for table, columns, merge, data in (
                ("staged_records", rows.RECORD_COLUMNS, _MERGE_RECORDS, batch.records),
                ("staged_logs", rows.LOG_COLUMNS, _MERGE_LOGS, batch.connections),
                ("staged_logs", rows.LOG_COLUMNS, _MERGE_LOGS, batch.endings),
            ):
                for row in rows.split(data):
                    try:
                        async with connection.transaction():
                            await connection.execute(f"TRUNCATE {table}")
                            await _copy_in(connection, table, columns, row)
                            await connection.execute(merge)
                    except _REFUSED as error:
                        self.rejected += 1
                        log.error("row left out", id=rows.id_of(row).hex(), reason=str(error))
            await connection.execute(_ADVANCE, entry.ring, entry.position, entry.resume)

    async def _bodies(self, connection: asyncpg.Connection, batch: Batch) -> None:
        if batch.bodies:
            await _copy_in(connection, "staged_bodies", rows.BODY_COLUMNS, batch.bodies)
            await connection.execute(_MERGE_BODIES)


async def _copy_in(connection: asyncpg.Connection, table: str, columns: tuple[str, ...], data: bytes) -> None:
    if data:
        source = io.BytesIO(b"".join((rows.HEADER, data, rows.TRAILER)))
        await connection.copy_to_table(table, source=source, columns=columns, format="binary")


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp()) * 1_000_000_000


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the database does not answer"
    with suppress(AttributeError):
        return f"{error.sqlstate}: {error}"  # type: ignore[attr-defined]
    return f"{type(error).__name__}: {error}"


# What says something about the rows and would come again with them: values, limits (class 54), constraints.
_REFUSED = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, asyncpg.IntegrityConstraintViolationError)
# Whatever else goes wrong between us and the server is temporary from the rows' point of view.
_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_STAGING = """
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_records (LIKE traffic_records) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_logs    (LIKE traffic_logs)    ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE IF NOT EXISTS staged_bodies  (LIKE bodies)          ON COMMIT DELETE ROWS;
    ALTER TABLE staged_bodies ALTER COLUMN data SET STORAGE EXTERNAL;
"""
_POSITION = "SELECT position, resume FROM ring_positions WHERE ring = $1"
_FORGET = "DELETE FROM ring_positions WHERE ring = $1"
_ADVANCE = """
    INSERT INTO ring_positions (ring, position, resume) VALUES ($1, $2, $3)
        ON CONFLICT (ring) DO UPDATE
       SET position = EXCLUDED.position, resume = EXCLUDED.resume, written = now()
"""
# In one order for all writers: two that store the same bodies in different orders would wait for each other.
_MERGE_BODIES = """
    INSERT INTO bodies (hash, day, format, size_original, size_compressed, data)
    SELECT hash, day, format, size_original, size_compressed, data FROM staged_bodies ORDER BY day, hash
        ON CONFLICT (hash, day) DO NOTHING
"""
_MERGE_RECORDS = """
    INSERT INTO traffic_records
    SELECT DISTINCT ON (id) * FROM staged_records ORDER BY id
        ON CONFLICT (id) DO NOTHING
"""
# A row that says how its connection ended is never replaced by one that does not know.
_MERGE_LOGS = """
    INSERT INTO traffic_logs AS old
    SELECT DISTINCT ON (id) * FROM staged_logs ORDER BY id, duration_ms NULLS LAST
        ON CONFLICT (id) DO UPDATE
       SET latency_ms = EXCLUDED.latency_ms, duration_ms = EXCLUDED.duration_ms,
           bytes_in = EXCLUDED.bytes_in, bytes_out = EXCLUDED.bytes_out, exchanges = EXCLUDED.exchanges,
           completeness = EXCLUDED.completeness, missing_bytes = EXCLUDED.missing_bytes,
           dest_ip = EXCLUDED.dest_ip, dest_port = EXCLUDED.dest_port, domain = EXCLUDED.domain,
           domain_source = EXCLUDED.domain_source, protocol = EXCLUDED.protocol, detail = EXCLUDED.detail,
           end_reason = EXCLUDED.end_reason, error = EXCLUDED.error
     WHERE old.duration_ms IS NULL
"""
