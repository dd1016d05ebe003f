"""Bring a database's schema forward: numbered SQL files, each applied once, in order, in its own transaction.

The files are the history: an applied one never changes again, which its SHA-256 in the database proves. Several
processes may start at once; an advisory lock lets one of them work while the others wait. A process that dies half-way
leaves the database as it was after the last complete migration.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg

LOCK = 0x57656972_0001  # "Weir", 1: any number that other users of the database do not take


class MigrationError(RuntimeError):
    """The database and this version of Weir do not fit together; says how and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. ``name`` is the file's name without its number and suffix."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file's text, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load() -> tuple[Migration, ...]:
    """The migrations that come with this version, in order. Raises ``MigrationError`` when a number is missing."""
    found = []
    for entry in resources.files("appliance.record").joinpath("migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append(Migration(int(number), name, entry.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    return checked(tuple(found))


def checked(migrations: tuple[Migration, ...]) -> tuple[Migration, ...]:
    """The same migrations, if their numbers are 1, 2, 3…"""
    numbers = [migration.number for migration in migrations]
    if numbers != list(range(1, len(numbers) + 1)):
        raise MigrationError(f"the migrations are numbered {numbers}: every number from 1 on must be there once")
    return migrations


# Read at import: a child process has dropped its privileges by the time it connects, and may not see our files then.
MIGRATIONS = load()


async def migrate(connection: asyncpg.Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> list[int]:
    """Apply what is missing; return the numbers that were applied. Raises ``MigrationError``."""
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
    try:
        await connection.execute(_TABLE)
        missing = pending(migrations, await applied(connection))
        for migration in missing:
            await _apply(connection, migration)
        return [migration.number for migration in missing]
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)


async def applied(connection: asyncpg.Connection) -> dict[int, str]:
    """Number and checksum of every migration that the database has had; empty for a new database."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return {}
    return {row["number"]: row["checksum"] for row in await connection.fetch(_APPLIED)}


def pending(migrations: tuple[Migration, ...], applied: dict[int, str]) -> tuple[Migration, ...]:
    """What is left to apply. Raises ``MigrationError`` when the database's history is not the beginning of ours."""
    known = {migration.number: migration for migration in checked(migrations)}
    newest = max(applied, default=0)
    if newest > len(known):
        raise MigrationError(
            f"the database is at schema {newest}, this version of Weir knows {len(known)}: it was used by a newer Weir "
            "(run that version, or restore an older dump; migrations only go forward)"
        )
    for number in range(1, newest + 1):
        if number not in applied:
            raise MigrationError(
                f"the database has schema {newest} but not {number}: its history was edited (restore a dump)"
            )
        if applied[number] != known[number].checksum:
            raise MigrationError(
                f"migration {number:04} ({known[number].name}) differs from the one this database was made with: "
                "an applied migration never changes, write a new one"
            )
    return migrations[newest:]


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(_RECORD, migration.number, migration.name, migration.checksum)
    except asyncpg.PostgresError as error:
        # Class 57 is an operator's or the server's own end, and says nothing about the migration.
        if (error.sqlstate or "").startswith("57"):
            raise
        raise MigrationError(f"migration {migration.number:04} ({migration.name}) failed: {error}") from error


_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        number   integer     PRIMARY KEY,
        name     text        NOT NULL,
        checksum text        NOT NULL,
        applied  timestamptz NOT NULL DEFAULT now()
    )
"""
_APPLIED = "SELECT number, checksum FROM schema_migrations ORDER BY number"
_RECORD = "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)"
