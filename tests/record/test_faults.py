"""The database goes, the disk fills, the process dies: every row is in the tables exactly once, or counted as lost."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from appliance.record.batch import Position
from appliance.record.recorder import Recorder, State
from appliance.record.settings import RecordSettings, SpoolSettings
from tests.postgres import Server, running_server
from tests.record.samples import RING, Writing, closing, connection, settings
from tests.record.test_spool import small_disk  # noqa: F401  (a fixture)
from tests.record.waiting import until

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def victim() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
async def own_server(victim: Server) -> Server:
    """A server that the test may do anything to, running and empty."""
    if not victim.cluster.is_ready():
        await restart(victim)
    database = await asyncpg.connect(victim.dsn)
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await database.close()
    return victim


async def stored(dsn: str) -> list[bytes]:
    database = await asyncpg.connect(dsn)
    try:
        return [row["id"].bytes for row in await database.fetch("SELECT id FROM traffic_records ORDER BY id")]
    finally:
        await database.close()


def own_settings(server: Server, directory: Path, **changes: object) -> RecordSettings:
    return settings(server.dsn, directory, start_timeout=1.0, **changes)


async def restart(server: Server) -> None:
    await asyncio.to_thread(server.start)


async def test_postgres_killed_again_and_again_under_a_stream_costs_no_row_and_doubles_none(
    own_server: Server, tmp_path: Path
) -> None:
    writing = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-0"))
    await writing.recorder.start()
    enough = asyncio.Event()

    async def stream() -> None:
        while not enough.is_set():
            await writing.stream(batches=1, rows=50, pause=0.005)

    streaming = asyncio.create_task(stream())
    for _ in range(3):
        before = writing.number
        await until(lambda more=before + 20: writing.number > more)  # type: ignore[misc]
        own_server.kill()
        await until(lambda: writing.recorder.state is State.SPOOLING)
        await restart(own_server)
        await until(lambda: writing.recorder.state is State.DATABASE)
    enough.set()
    await streaming
    await until(lambda: writing.recorder.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(writing.ids)
    assert writing.recorder.stats.spooled_rows > 0
    assert writing.recorder.stats.lost_rows == 0
    assert not list(tmp_path.glob("spool/*/*.spool"))
    await writing.recorder.close()


async def test_a_recorder_starts_without_a_database_and_delivers_when_it_comes(
    own_server: Server, tmp_path: Path
) -> None:
    own_server.stop()
    writing = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-0"))
    await writing.recorder.start()
    assert writing.recorder.state is State.SPOOLING
    await writing.stream(batches=5, rows=10)
    assert await writing.recorder.position(RING) == Position(5, b"resume 5")
    await restart(own_server)
    await until(lambda: writing.recorder.state is State.DATABASE)
    await writing.stream(batches=5, rows=10)
    assert await stored(own_server.dsn) == sorted(writing.ids)
    await writing.recorder.close()


async def test_what_a_dead_writer_spooled_is_replayed_by_the_next_and_its_position_counts(
    own_server: Server, tmp_path: Path
) -> None:
    first = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-0"))
    await first.recorder.start()
    await first.stream(batches=3, rows=10)
    own_server.stop()
    await first.stream(batches=4, rows=10)
    await first.recorder.close()
    second = Recorder(own_settings(own_server, tmp_path), "inspector-0")
    await second.start()
    assert await second.position(RING) == Position(7, b"resume 7")
    await restart(own_server)
    await until(lambda: second.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(first.ids)
    await second.close()


async def test_a_spool_that_was_replayed_half_way_is_replayed_again_without_doubling(
    own_server: Server, tmp_path: Path
) -> None:
    first = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-0"))
    await first.recorder.start()
    own_server.stop()
    await first.stream(batches=6, rows=10)
    first.recorder.connection(closing(connection()))
    await first.write()
    await first.recorder.close()
    files = {path: path.read_bytes() for path in tmp_path.glob("spool/*/*.spool")}
    await restart(own_server)
    for _ in range(2):
        for path, data in files.items():
            path.write_bytes(data)
        again = Recorder(own_settings(own_server, tmp_path), "inspector-0")
        await again.start()
        await until(lambda recorder=again: recorder.state is State.DATABASE)  # type: ignore[misc]
        await again.close()
    assert await stored(own_server.dsn) == sorted(first.ids)


async def test_the_spool_of_a_writer_that_is_no_more_is_replayed_by_another(own_server: Server, tmp_path: Path) -> None:
    gone = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-7"))
    await gone.recorder.start()
    own_server.stop()
    await gone.stream(batches=3, rows=10)
    await gone.recorder.close()
    await restart(own_server)
    other = Recorder(own_settings(own_server, tmp_path), "inspector-0")
    await other.start()
    await until(lambda: other.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(gone.ids)
    assert not list(tmp_path.glob("spool/*/*.spool"))
    await other.close()


async def test_a_server_that_hangs_counts_as_away_and_nothing_waits_for_it(own_server: Server, tmp_path: Path) -> None:
    writing = Writing(Recorder(own_settings(own_server, tmp_path, write_timeout=0.5), "inspector-0"))
    await writing.recorder.start()
    database = await asyncpg.connect(own_server.dsn)
    pid = await database.fetchval("SELECT pid FROM pg_stat_activity WHERE application_name = 'weir inspector-0'")
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(5):
            await writing.stream(batches=5, rows=10)
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: writing.recorder.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(writing.ids)
    await database.close()
    await writing.recorder.close()


async def test_a_full_spool_loses_the_newest_counts_it_and_recovers(
    own_server: Server,
    tmp_path: Path,
    small_disk: Path,  # noqa: F811
) -> None:
    configured = own_settings(own_server, tmp_path, spool=SpoolSettings(directory=small_disk))
    writing = Writing(Recorder(configured, "inspector-0"))
    await writing.recorder.start()
    own_server.stop()
    for _ in range(10):
        await writing.stream(batches=1, rows=500)
    stats = writing.recorder.stats
    assert writing.recorder.state is State.LOSING
    assert stats.lost_rows > 0
    assert stats.lost_bytes > 0
    assert stats.spooled_rows + stats.lost_rows == len(writing.ids)
    await restart(own_server)
    await until(lambda: writing.recorder.state is State.DATABASE)
    await writing.stream(batches=1, rows=500)
    kept = await stored(own_server.dsn)
    assert len(kept) == len(writing.ids) - stats.lost_rows
    assert kept == sorted(writing.ids[: stats.spooled_rows] + writing.ids[-500:])
    await writing.recorder.close()


async def test_a_spool_that_cannot_be_made_is_said_and_the_recorder_goes_on(own_server: Server, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    writing = Writing(Recorder(own_settings(own_server, tmp_path), "inspector-0"))
    await writing.recorder.start()
    await writing.stream(batches=2, rows=10)
    own_server.stop()
    await writing.stream(batches=2, rows=10)
    assert writing.recorder.state is State.LOSING
    assert writing.recorder.stats.lost_rows == 20
    await restart(own_server)
    await until(lambda: writing.recorder.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(writing.ids[:20])
    await writing.recorder.close()


async def test_a_database_of_a_newer_version_is_left_alone_and_rows_are_kept(
    own_server: Server, tmp_path: Path
) -> None:
    first = Recorder(own_settings(own_server, tmp_path), "inspector-0")
    await first.start()
    await first.close()
    database = await asyncpg.connect(own_server.dsn)
    await database.execute("INSERT INTO schema_migrations (number, name, checksum) VALUES (999, 'later', '')")
    writing = Writing(Recorder(replace(own_settings(own_server, tmp_path), start_timeout=0.5), "inspector-0"))
    await writing.recorder.start()
    await writing.stream(batches=2, rows=5)
    assert writing.recorder.state is State.SPOOLING
    await database.execute("DELETE FROM schema_migrations WHERE number = 999")
    await until(lambda: writing.recorder.state is State.DATABASE)
    assert await stored(own_server.dsn) == sorted(writing.ids)
    await database.close()
    await writing.recorder.close()
