"""PostgreSQL's plans for the lists: few partitions, the right index."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from appliance.record import partitions
from appliance.record.migrate import migrate
from appliance.record.queries import lists
from appliance.record.queries.reader import Reader
from appliance.rules.filter import EXCHANGES, parse, to_sql
from appliance.rules.filter.window import HIGHEST, LOWEST

pytestmark = pytest.mark.postgres

NOW = datetime.now(UTC)
TODAY = int(NOW.timestamp()) // 86_400

# Ids are minted from the time, as model.identity does. One domain has almost all rows and failures all along; the rare
# one has a few, long ago.
_FILL = """
    INSERT INTO traffic_records
           (id, connection_id, timestamp, request_bytes, response_bytes, source_port, destination_port, completeness,
            status_code, payload_size_bucket, source_addr, protocol, listener, domain, status)
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::int8), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
           gen_random_uuid(), at, 1, 1, 1, 1, 0, code, 0, '10.0.0.1', 'http/1.1', 'socks5', domain, code::text
      FROM (SELECT n, $1::timestamptz - n * interval '4 seconds' AS at,
                   CASE WHEN n % 5 = 0 THEN 502 ELSE 200 END AS code,
                   CASE WHEN n > 40000 AND n % 400 = 0 THEN 'rare.example.com' ELSE 'common.example.com' END AS domain
              FROM generate_series(1, 42000) AS n) AS made
"""


async def plan(reader: Reader, q: str) -> str:
    condition, arguments = to_sql(parse(q, EXCHANGES, NOW), first=4)
    query = lists._EXCHANGES.format(condition=condition)
    low, high = (UUID(bytes=bound) for bound in (LOWEST, HIGHEST))
    async with reader.session() as session:
        rows: list[Any] = await session.fetch(f"EXPLAIN {query}", low, high, 51, *arguments)
    return "\n".join(row[0] for row in rows)


@pytest.fixture
async def reader(dsn: str) -> Any:
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await partitions.ensure(connection, range(TODAY - 3, TODAY + 2))
    await connection.execute(_FILL, NOW)
    await connection.execute("ANALYZE traffic_records")
    await connection.close()
    reader = Reader(dsn)
    yield reader
    await reader.close()


async def test_lists_read_the_right_rows(reader: Reader) -> None:
    day = partitions.as_date(TODAY)
    trap = await plan(reader, "domain == rare.example.com and status == 502")
    assert trap.count("domain_id_idx") >= 2, trap
    assert "status_code_id_idx" not in trap, trap
    assert f"using traffic_records_{day:%Y%m%d}_id_idx" not in trap, trap

    recent = await plan(reader, f"started_at >= {day.isoformat()}T00:00:00Z and started_at < {day + timedelta(days=1)}")
    read = set(re.findall(r"traffic_records_\d{8}", recent))
    assert read == {f"traffic_records_{day:%Y%m%d}"}, recent

    newest = await plan(reader, "")
    assert "Sort" not in newest, newest  # the newest partition is read first, and the others only if it is too small
