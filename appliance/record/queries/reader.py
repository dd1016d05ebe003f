"""Connections to the database for readers, and what it means when there are none.

The pool connects when it is asked, so that the API starts and answers while PostgreSQL is away.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec

# Reads come from people and dashboards; writers have their own connections.
_POOL = 6
_CONNECT_SECONDS = 3.0
_STATEMENT_SECONDS = 10

# Parameters decide which partitions and indexes are good: a plan for no parameters in particular is a bad plan here.
_SETTINGS = {
    "application_name": "weir-api",
    "statement_timeout": f"{_STATEMENT_SECONDS}s",
    "plan_cache_mode": "force_custom_plan",
    "default_transaction_read_only": "on",
    "jit": "off",
}

Session = asyncpg.pool.PoolConnectionProxy


class StoreAway(Exception):
    """The database cannot be asked now; the text says why. Recording goes on without it (into the spool)."""


class TookTooLong(Exception):
    """A query was stopped at its time limit."""


class Reader:
    """Read-only access to what was recorded. Close it with ``close``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection for a few queries. Raises ``StoreAway`` or ``TookTooLong``, also from inside the block."""
        try:
            pool = await self._open()
            async with asyncio.timeout(_CONNECT_SECONDS) as acquiring, pool.acquire() as session:
                acquiring.reschedule(asyncio.get_running_loop().time() + 2 * _STATEMENT_SECONDS)
                try:
                    yield session
                except asyncpg.InternalClientError:
                    # asyncpg's own state machine, when a connection dies between two steps of a query.
                    session.terminate()
                    raise
        except asyncpg.QueryCanceledError as error:
            raise TookTooLong(f"the query was stopped after {_STATEMENT_SECONDS} s") from error
        except asyncpg.UndefinedTableError as error:
            raise StoreAway("the tables are not there yet") from error
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, *_REFUSALS) as error:
            raise StoreAway(getattr(error, "strerror", None) or str(error) or "it does not answer") from error

    async def check(self) -> None:
        """Return when the database answers and has our tables; raises ``StoreAway`` otherwise."""
        async with self.session() as session:
            await session.fetchval("SELECT 1 FROM traffic_records WHERE false")

    async def close(self) -> None:
        """Close all connections, the busy ones too."""
        if self._pool is not None:
            self._pool.terminate()

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=_POOL,
                    timeout=_CONNECT_SECONDS,
                    init=_prepare,
                    server_settings=_SETTINGS,
                    max_inactive_connection_lifetime=60.0,
                )
        return self._pool


# Class 08 and the states of a server that starts, stops, is full, or does not know us.
_REFUSALS = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
)


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
    )
