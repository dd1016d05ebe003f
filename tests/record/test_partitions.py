import asyncio
from datetime import date

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import identity
from appliance.record import partitions
from appliance.record.migrate import migrate

pytestmark = pytest.mark.postgres

TODAY = partitions.day_of(1_795_356_000 * 10**9)


@given(st.integers(0, 4_000_000_000 * 10**9), st.integers(0, 2**74 - 1))
def test_an_id_lies_in_the_partition_of_its_day(at_ns: int, discriminator: int) -> None:
    id = identity.uuid7(at_ns, discriminator)
    first, last = partitions.bounds(partitions.day_of(at_ns))
    assert first.bytes <= id < last.bytes
    assert partitions.day_of_id(id) == partitions.day_of(at_ns)


async def test_partitions_are_made_once_however_many_ask(dsn: str) -> None:
    connections = [await asyncpg.connect(dsn) for _ in range(3)]
    await migrate(connections[0])
    days = partitions.around(TODAY)
    await asyncio.gather(*(partitions.ensure(connection, days) for connection in connections))
    names = [row["relname"] for row in await connections[0].fetch(partitions._PARTITIONS)]
    assert len(names) == 3 * len(days)
    assert f"traffic_records_{partitions.as_date(TODAY):%Y%m%d}" in names
    for connection in connections:
        await connection.close()


async def test_making_a_partition_waits_for_no_reader_and_no_writer(dsn: str) -> None:
    reader, maker = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    await migrate(reader)
    async with reader.transaction():
        await reader.fetch("SELECT * FROM traffic_records")
        await reader.execute("LOCK TABLE traffic_records IN ROW EXCLUSIVE MODE")
        async with asyncio.timeout(5):
            await partitions.ensure(maker, [TODAY])
    await reader.close()
    await maker.close()


async def test_closed_days_get_their_secondary_indexes_and_open_days_do_not(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await partitions.ensure(connection, [TODAY - 2, TODAY - 1, TODAY])
    built = await partitions.index_closed_days(connection, TODAY)
    assert f"traffic_records_{partitions.as_date(TODAY - 2):%Y%m%d}_path" in built
    assert {name.split("_")[2] for name in built} == {f"{partitions.as_date(TODAY - 2):%Y%m%d}"}
    assert await partitions.index_closed_days(connection, TODAY) == []
    await connection.close()


async def test_an_index_that_an_interrupted_build_left_invalid_is_built_again(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await partitions.ensure(connection, [TODAY - 2])
    built = await partitions.index_closed_days(connection, TODAY)
    await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::text::regclass", built[0])
    assert await partitions.index_closed_days(connection, TODAY) == built[:1]
    await connection.close()


def test_a_day_is_a_date() -> None:
    assert partitions.as_date(0) == date(1970, 1, 1)
    assert partitions.as_date(TODAY) == date(2026, 11, 22)
