import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from appliance.model.connection import ConnectionRecord
from appliance.model.connection import Path as How
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Body, Missing
from appliance.record import partitions
from appliance.record.batch import Position
from appliance.record.pack import unpack_body, unpack_heads
from appliance.record.recorder import Recorder, State
from appliance.record.settings import SamplingSettings
from tests.record.samples import (
    NOON,
    REQUEST_HEAD,
    RESPONSE_HEAD,
    RING,
    Writing,
    closing,
    connection,
    exchange,
    new_id,
    settings,
    whole,
)

pytestmark = pytest.mark.postgres


@pytest.fixture
async def writing(dsn: str, tmp_path: Path) -> AsyncIterator[Writing]:
    recorder = Recorder(settings(dsn, tmp_path), "inspector-0")
    await recorder.start()
    yield Writing(recorder)
    await recorder.close()


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connected = await asyncpg.connect(dsn)
    yield connected
    await connected.close()


async def record(writing: Writing, database: asyncpg.Connection, **changes: Any) -> asyncpg.Record:
    """The row of one exchange."""
    writing.add(**changes)
    await writing.write()
    row = await database.fetchrow("SELECT * FROM traffic_records WHERE id = $1", uuid.UUID(bytes=writing.ids[-1]))
    assert row is not None
    return row


async def body(database: asyncpg.Connection, hash: bytes) -> bytes:
    row = await database.fetchrow("SELECT * FROM bodies WHERE hash = $1", hash)
    assert row is not None
    return unpack_body(row["format"], row["data"])


async def test_an_exchange_becomes_a_row_with_every_column(writing: Writing, database: asyncpg.Connection) -> None:
    row = await record(writing, database)
    assert row["timestamp"].timestamp() * 1e9 == NOON
    assert (row["first_byte_ms"], row["response_time_ms"]) == (2.0, 3.5)
    assert (row["request_bytes"], row["response_bytes"]) == (len(REQUEST_HEAD), len(RESPONSE_HEAD) + 5)
    assert (str(row["source_addr"]), row["source_port"]) == ("192.0.2.7", 40_000)
    assert (str(row["destination_addr"]), row["destination_port"]) == ("2001:db8::1", 80)
    assert (row["protocol"], row["method"], row["request_path"]) == ("http/1.1", "GET", "/items/1")
    assert (row["status"], row["status_code"], row["domain"], row["listener"]) == ("200", 200, "shop.example", "socks")
    assert (row["completeness"], row["payload_size_bucket"], row["error"], row["metadata"]) == (0, 0, None, None)
    assert unpack_heads(row["headers"]) == (REQUEST_HEAD, RESPONSE_HEAD)
    assert row["request_data"] is None
    assert await body(database, row["response_data"]) == b"hello"


async def test_text_that_no_database_holds_is_stored_in_a_form_that_it_does(
    writing: Writing, database: asyncpg.Connection
) -> None:
    row = await record(
        writing,
        database,
        target="/a\0b\udcff",
        method="G\0T",
        domain="x" * 5000,
        error="bad\udc80",
        status_code=99_999,
        metadata={"a\0": "b\0\udcff", "raw": b"\xff", "deep": [{"n": 1}]},
        violations=("http.bare-lf",),
        first_byte_ns=0,
        ended_ns=0,
    )
    assert row["request_path"] == "/a\\x00b\\udcff"
    assert (row["domain"], row["error"], row["status_code"]) == ("x" * 255, "bad\\udc80", 0)
    assert (row["first_byte_ms"], row["response_time_ms"]) == (None, None)
    assert json.loads(row["metadata"])["violations"] == ["http.bare-lf"]


async def test_a_connection_is_one_row_when_it_opens_and_when_it_ends(
    writing: Writing, database: asyncpg.Connection
) -> None:
    opened = connection(detail="because", user="dev")
    writing.recorder.connection(ConnectionRecord(opened, None))
    await writing.write()
    row = await database.fetchrow("SELECT * FROM traffic_logs")
    assert (row["duration_ms"], row["end_reason"], row["protocol"]) == (None, None, "tcp")
    writing.recorder.connection(closing(opened, missing=7))
    await writing.write()
    row = await database.fetchrow("SELECT * FROM traffic_logs")
    assert await database.fetchval("SELECT count(*) FROM traffic_logs") == 1
    assert (row["duration_ms"], row["latency_ms"], row["end_reason"]) == (250.0, 1.5, "closed")
    assert (row["bytes_in"], row["bytes_out"], row["exchanges"], row["protocol"]) == (111, 222, 3, "http/1.1")
    assert (row["missing_bytes"], row["completeness"]) == (7, Missing.REQUEST_GAP | Missing.RESPONSE_GAP)
    assert (row["detail"], row["user_name"], row["domain_source"], row["path"]) == ("because", "dev", "socks", "relay")


async def test_a_connection_that_opens_and_ends_within_a_batch_is_one_row(
    writing: Writing, database: asyncpg.Connection
) -> None:
    opened = connection(server=Endpoint("never.resolved", 0), path=How.OPAQUE)
    writing.recorder.connection(ConnectionRecord(opened, None))
    writing.recorder.connection(closing(opened, connect_ns=-1))
    assert writing.recorder.pending == 1
    await writing.write()
    row = await database.fetchrow("SELECT * FROM traffic_logs")
    assert (row["dest_ip"], row["latency_ms"], row["end_reason"], row["path"]) == (None, None, "closed", "opaque")


async def test_the_end_of_a_connection_that_an_earlier_inspector_announced_completes_its_row(
    writing: Writing, dsn: str, tmp_path: Path, database: asyncpg.Connection
) -> None:
    opened = connection()
    writing.recorder.connection(ConnectionRecord(opened, None))
    await writing.write()
    await writing.recorder.close()
    later = Writing(Recorder(settings(dsn, tmp_path), "inspector-0"))
    await later.recorder.start()
    later.add(3)
    later.recorder.connection(closing(opened))
    await later.write()
    await later.recorder.close()
    assert await database.fetchval("SELECT end_reason FROM traffic_logs") == "closed"
    assert await database.fetchval("SELECT count(*) FROM traffic_records") == 3


async def test_equal_bodies_of_a_day_are_stored_once(writing: Writing, database: asyncpg.Connection) -> None:
    large = b"lorem ipsum " * 10_000
    for _ in range(3):
        writing.add(2, response=whole(large))
        await writing.write()
    row = await database.fetchrow("SELECT count(*), min(size_original), min(size_compressed) FROM bodies")
    assert (row[0], row[1]) == (1, len(large))
    assert row[2] < len(large) / 10
    assert writing.recorder.stats.bodies == 1


async def test_a_truncated_body_keeps_head_tail_true_length_and_full_hash(
    writing: Writing, database: asyncpg.Connection
) -> None:
    row = await record(writing, database, response=Body(1_000_000, b"first" * 10, b"last", b"\x11" * 32, 5))
    assert row["completeness"] == Missing.RESPONSE_TRUNCATED
    assert json.loads(row["metadata"])["response_body"] == {
        "length": 1_000_000,
        "head": 50,
        "tail": 4,
        "missing": 5,
        "sha256": "11" * 32,
    }
    assert await body(database, row["response_data"]) == b"first" * 10 + b"last"


async def test_no_secret_reaches_any_table(writing: Writing, database: asyncpg.Connection) -> None:
    secret = "S3cr3tV4lue"
    shown = writing.recorder.exchange(
        exchange(
            target=f"/login?token={secret}",
            request_head=f"GET /login?token={secret} HTTP/1.1\r\nAuthorization: Bearer {secret}\r\n"
            f"Cookie: sid={secret}\r\nReferer: http://a/?password={secret}\r\n\r\n".encode(),
            response_head=f"HTTP/1.1 200 OK\r\nSet-Cookie: sid={secret}; Path=/\r\n"
            "Content-Type: application/json\r\n\r\n".encode(),
            response=whole(f'{{"access_token": "{secret}"}}'.encode()),
            domain=f"user:{secret}@host",
            error=f"cannot reach http://user:{secret}@host/",
            metadata={"password": secret, "url": f"/x?api_key={secret}", "list": [f"http://u:{secret}@h/"]},
        ),
        connection(),
        new_id(),
    )
    talk = connection(detail=f"?token={secret}", domain=f"u:{secret}@h")
    ended = writing.recorder.connection(closing(talk, error=f"http://u:{secret}@h/"))
    await writing.write()
    assert secret not in repr((shown, ended))
    assert shown.missing & Missing.REDACTED
    for table in ("traffic_records", "traffic_logs", "bodies"):
        (row,) = await database.fetch(f"TABLE {table}")
        values = [unpack_heads(value) if name == "headers" else value for name, value in row.items()]
        assert secret not in repr(values)
        assert "[redacted:" in repr(values)


async def test_ids_of_any_day_find_a_partition(writing: Writing, database: asyncpg.Connection) -> None:
    for at in (0, NOON - 400 * partitions.DAY_NS, NOON + 4000 * partitions.DAY_NS):
        writing.recorder.exchange(exchange(started_ns=at), connection(id=new_id(at)), new_id(at))
    writing.recorder.connection(closing(connection(id=new_id(NOON - 30 * partitions.DAY_NS))))
    await writing.write()
    assert await database.fetchval("SELECT count(*) FROM traffic_records") == 3
    assert await database.fetchval("SELECT count(*) FROM traffic_logs") == 1


async def test_a_partition_that_somebody_dropped_is_made_again(writing: Writing, database: asyncpg.Connection) -> None:
    writing.add()
    await writing.write()
    await database.execute(f"DROP TABLE traffic_records_{partitions.as_date(partitions.day_of(NOON)):%Y%m%d}")
    writing.add()
    await writing.write()
    assert await database.fetchval("SELECT count(*) FROM traffic_records") == 1
    assert writing.recorder.state is State.DATABASE


async def test_one_row_that_the_database_refuses_does_not_cost_the_others(
    writing: Writing, database: asyncpg.Connection
) -> None:
    await database.execute("ALTER TABLE traffic_records ADD CONSTRAINT picky CHECK (request_path <> '/bad')")
    writing.add(5)
    writing.add(target="/bad")
    writing.add(5)
    await writing.write()
    assert await database.fetchval("SELECT count(*) FROM traffic_records") == 10
    assert writing.recorder.stats.rejected_rows == 1
    assert writing.recorder.state is State.DATABASE


async def test_what_sampling_leaves_out_still_counts(dsn: str, tmp_path: Path, database: asyncpg.Connection) -> None:
    sampling = SamplingSettings(rules=(("/metrics", 0.0), ("/half", 0.5)))
    writing = Writing(Recorder(settings(dsn, tmp_path, sampling=sampling), "inspector-0"))
    await writing.recorder.start()
    writing.add(target="/metrics")
    writing.add(target="/metrics", status_code=500)
    writing.add(400, target="/half")
    await writing.write()
    await writing.recorder.close()
    row, error, *half = await database.fetch("SELECT * FROM traffic_records ORDER BY id")
    assert (row["headers"], row["response_data"], row["completeness"]) == (None, None, Missing.SAMPLED_OUT)
    assert error["headers"] is not None
    assert 120 < sum(row["headers"] is not None for row in half) < 280


async def test_heads_and_bodies_can_be_left_out(dsn: str, tmp_path: Path, database: asyncpg.Connection) -> None:
    off = settings(dsn, tmp_path, record_headers=False, record_body=False)
    writing = Writing(Recorder(off, "inspector-0"))
    await writing.recorder.start()
    row = await record(writing, database)
    await writing.recorder.close()
    assert (row["headers"], row["response_data"], row["completeness"]) == (None, None, Missing.NOT_RECORDED)


async def test_a_new_recorder_knows_how_far_the_last_one_came(writing: Writing, dsn: str, tmp_path: Path) -> None:
    assert await writing.recorder.position(RING) is None
    writing.add()
    await writing.write()
    await writing.recorder.close()
    later = Recorder(settings(dsn, tmp_path), "inspector-0")
    await later.start()
    assert await later.position(RING) == Position(1, b"resume 1")
    await later.close()


async def test_two_writers_that_store_the_same_bodies_do_not_stop_each_other(
    writing: Writing, dsn: str, tmp_path: Path, database: asyncpg.Connection
) -> None:
    other = Writing(Recorder(settings(dsn, tmp_path), "inspector-1"), "relay-1.1.ring")
    await other.recorder.start()
    for number in range(200):
        for one, index in ((writing, number), (other, 199 - number)):
            one.add(response=whole(b"body %d" % index))
    await asyncio.gather(writing.write(), other.write())
    await other.recorder.close()
    assert await database.fetchval("SELECT count(*) FROM bodies") == 200
    assert await database.fetchval("SELECT count(*) FROM traffic_records") == 400
    assert writing.recorder.state is State.DATABASE


async def test_large_bodies_make_a_batch_due_before_its_rows_do(writing: Writing) -> None:
    writing.add(response=whole(os.urandom(200_000)))
    assert writing.recorder.pending > 20
