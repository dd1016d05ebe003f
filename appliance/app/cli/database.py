"""``weir db``: the schema of the database that the configuration names."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from appliance.app import wiring
from appliance.app.cli.configuration import document
from appliance.app.cli.output import Format, emit, show
from appliance.app.errors import AppError, DaemonUnreachable
from appliance.record import migrate as schema

_Result = TypeVar("_Result")

_STORED = """
    SELECT relname AS name, coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint AS bytes, count(inhrelid) AS days
      FROM pg_class LEFT JOIN pg_inherits ON inhparent = pg_class.oid
     WHERE relname = ANY($1) AND relkind = 'p'
     GROUP BY relname
     ORDER BY relname
"""
_TABLES = ["traffic_logs", "traffic_records", "bodies"]


def migrate(files: list[Path], settings: list[str], output: Format) -> None:
    """Apply what is missing."""
    applied = _with_database(files, settings, schema.migrate)
    if output is Format.TABLE:
        emit(f"applied: {', '.join(map(str, applied))}" if applied else "nothing to apply")
    else:
        show({"applied": applied}, output)


def status(files: list[Path], settings: list[str], output: Format) -> None:
    """What is applied, and how large the tables are."""

    async def look(connection: "asyncpg.Connection[Any]") -> dict[str, Any]:
        known = await schema.applied(connection)
        rows = await connection.fetch(_STORED, _TABLES)
        return {
            "server": str(connection.get_server_version().major),
            "applied": sorted(known),
            "pending": [migration.number for migration in schema.pending(schema.MIGRATIONS, known)],
            "tables": {row["name"]: {"bytes": row["bytes"], "days": row["days"]} for row in rows},
        }

    found = _with_database(files, settings, look)
    lines = [(name, found[name]) for name in ("server", "applied", "pending")]
    lines += [(name, f"{sizes['bytes']} bytes in {sizes['days']} days") for name, sizes in found["tables"].items()]
    show(found, output, lines)


def _with_database(
    files: list[Path], settings: list[str], work: "Callable[[asyncpg.Connection[Any]], Awaitable[_Result]]"
) -> _Result:
    async def connected() -> _Result:
        connection = await asyncpg.connect(dsn=wiring.dsn(document(files, settings)), timeout=10)
        try:
            return await work(connection)
        finally:
            await connection.close()

    try:
        return asyncio.run(connected())
    except schema.MigrationError as error:
        raise AppError(str(error)) from error
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        reason = str(error) or type(error).__name__
        raise DaemonUnreachable(f"no database: {reason} (an embedded one runs with weir run)") from error
