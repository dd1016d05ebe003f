import asyncio

import asyncpg
import pytest

from appliance.record.migrate import MIGRATIONS, Migration, MigrationError, applied, checked, migrate, pending
from tests.record.waiting import until

pytestmark = pytest.mark.postgres

ONE = Migration(1, "one", "CREATE TABLE one (n integer)")
TWO = Migration(2, "two", "CREATE TABLE two (n integer); INSERT INTO one VALUES (2)")
SLOW = Migration(2, "slow", "CREATE TABLE two (n integer); SELECT pg_sleep(60)")
BROKEN = Migration(2, "broken", "CREATE TABLE two (n integer); SELECT 1 / 0")


async def test_our_own_migrations_make_the_tables_and_a_second_run_does_nothing(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    assert await migrate(connection) == [migration.number for migration in MIGRATIONS]
    assert await migrate(connection) == []
    await connection.close()


async def test_processes_that_start_together_apply_each_migration_once(dsn: str) -> None:
    connections = [await asyncpg.connect(dsn) for _ in range(4)]
    done = await asyncio.gather(*(migrate(connection, (ONE, TWO)) for connection in connections))
    assert sorted(map(len, done)) == [0, 0, 0, 2]
    assert await connections[0].fetchval("SELECT count(*) FROM one") == 1
    for connection in connections:
        await connection.close()


async def test_a_migration_interrupted_half_way_leaves_nothing_and_is_applied_next_time(dsn: str) -> None:
    victim, witness = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    running = asyncio.create_task(migrate(victim, (ONE, SLOW)))
    sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    pid = await until(lambda: witness.fetchval(sleeping))
    await witness.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await running
    assert await witness.fetchval("SELECT to_regclass('two')") is None
    assert list(await applied(witness)) == [1]
    assert await migrate(witness, (ONE, TWO)) == [2]
    await witness.close()


async def test_a_migration_that_fails_is_named_and_leaves_nothing(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    with pytest.raises(MigrationError, match=r"migration 0002 \(broken\) failed: division by zero"):
        await migrate(connection, (ONE, BROKEN))
    assert await connection.fetchval("SELECT to_regclass('two')") is None
    await connection.close()


async def test_an_applied_migration_that_changed_is_refused(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection, (ONE,))
    with pytest.raises(MigrationError, match=r"migration 0001 \(one\) differs .* write a new one"):
        await migrate(connection, (Migration(1, "one", "CREATE TABLE other (n integer)"),))
    await connection.close()


def test_a_newer_database_is_refused_with_the_way_out() -> None:
    with pytest.raises(MigrationError, match="schema 2, this version of Weir knows 1"):
        pending((ONE,), {1: ONE.checksum, 2: TWO.checksum})


def test_a_history_with_a_hole_is_refused() -> None:
    with pytest.raises(MigrationError, match="has schema 2 but not 1"):
        pending((ONE, TWO), {2: TWO.checksum})


def test_a_missing_number_among_the_files_is_refused() -> None:
    with pytest.raises(MigrationError, match=r"numbered \[2\]"):
        checked((TWO,))
