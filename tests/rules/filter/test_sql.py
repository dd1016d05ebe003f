"""The predicate and the SQL of a filter agree, row by row, in a real PostgreSQL."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.model.exchange import completeness
from appliance.model.identity import uuid7
from appliance.rules.filter import CONNECTIONS, EXCHANGES, Fields, Kind, matcher, parse, to_sql
from appliance.rules.filter.parser import ALLOWED

pytestmark = pytest.mark.postgres

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCHEMA = Path(__file__).parents[3] / "appliance" / "record" / "migrations" / "0001_connections_and_exchanges.sql"

# Few values of each kind, so that conditions hit about as often as they miss; wildcards and quotes are among the data.
TEXTS = ["a", "ab", "b", "B", "é", "a%b", "a_b", "a\\b", "a*b", "/x?y=1", 'say "hi"', "it's", "ok", "\U0001f30a", ""]
ADDRESSES = ["10.0.0.1", "10.0.0.255", "10.1.0.1", "192.0.2.7", "::1", "2001:db8::7", "::ffff:10.0.0.1"]
NETWORKS = [*ADDRESSES, "10.0.0.0/8", "10.0.0.0/24", "0.0.0.0/0", "::/0", "2001:db8::/32", "10.0.0.1/24"]
STATUSES = ["200", "404", "502", "42601", "ok", "ERR", "000", "099", "1000"]
NUMBERS = ["-1", "0", "1", "80", "443", "1024", "1KiB", "9223372036854775807"]
DURATIONS = ["0", "1", "99.5", "100ms", "0.1s", "1m", "-5"]
WORDS = ["complete", "redacted", "request-gap", "redacted,request-gap", "mid-stream"]
TAGS = ["slow", "a", "it's"]
TIMES = ["now", "-1s", "-10ms", "-1h", "2026-11-22T11:59:59.990Z", "2026-11-22T11:59:59.990001+00:00", "1900-01-01"]
UUIDS = [str(UUID(bytes=uuid7(1_795_000_000_000_000_000 + i, i))) for i in range(3)]

LITERALS: dict[Kind, list[str]] = {
    Kind.TEXT: [*TEXTS, "a*", "*b", "?", "*", "\\*", "a\\*b", "*a*b*", "?%?"],
    Kind.STATUS: [*STATUSES, "4*", "???", "4??"],
    Kind.NUMBER: [n for n in NUMBERS if n != "1KiB"],
    Kind.SIZE: NUMBERS,
    Kind.DURATION: DURATIONS,
    Kind.TIME: TIMES,
    Kind.ADDRESS: NETWORKS,
    Kind.UUID: UUIDS,
    Kind.WORDS: WORDS,
    Kind.TAGS: TAGS,
    Kind.OBJECT: [],
}


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def conditions(draw: st.DrawFn, fields: Fields) -> str:
    field = fields.by_name[draw(st.sampled_from(sorted(fields.by_name)))]
    op = draw(st.sampled_from(["", *sorted(ALLOWED[field.kind])]))
    if not op:
        return field.name
    literals = LITERALS[field.kind]
    if op == "in":
        values = draw(st.lists(st.sampled_from(literals), min_size=1, max_size=3))
        negated = draw(st.sampled_from(["", "not "]))
        return f"{field.name} {negated}in ({', '.join(map(quoted, values))})"
    if field.kind is Kind.STATUS and op in ("<", "<=", ">", ">="):
        literals = ["0", "99", "200", "404", "500", "100000"]
    if field.kind is Kind.ADDRESS:
        literals = ADDRESSES
    if field.kind is Kind.WORDS and op == "contains":
        literals = literals[1:]
    return f"{field.name} {op} {quoted(draw(st.sampled_from(literals)))}"


def filters(fields: Fields) -> st.SearchStrategy[str]:
    return st.recursive(
        conditions(fields),
        lambda inner: (
            st.builds(lambda a, word, b: f"({a} {word} {b})", inner, st.sampled_from(["and", "or"]), inner)
            | inner.map(lambda text: f"not ({text})")
        ),
        max_leaves=5,
    )


maybe_text = st.none() | st.sampled_from(TEXTS)
sizes = st.sampled_from([0, 1, 1024, 2**63 - 1])
milliseconds = st.none() | st.sampled_from([0.0, 1.0, 99.5, 100.0, 60000.0])
tls = st.none() | st.fixed_dictionaries({"sni": maybe_text, "version": maybe_text, "alpn": st.none()})
shared = {
    "us": st.sampled_from([0, -1, -10_000, -9_999, -1_000_000, -3_600_000_000]),
    "client": st.sampled_from(ADDRESSES),
    "server": st.none() | st.sampled_from(ADDRESSES),
    "client_port": st.sampled_from([0, 80, 443]),
    "server_port": st.sampled_from([0, 80, 443]),
    "missing": st.sampled_from([0, 1, 64, 65, 512]),
    "tls": tls,
    "tags": st.none() | st.lists(st.sampled_from(TAGS), max_size=2),
    "in": sizes,
    "out": sizes,
    "ms": milliseconds,
    "ms2": milliseconds,
    **{name: maybe_text for name in ("domain", "method", "target", "error", "detail", "user_name", "end_reason")},
    "text": st.sampled_from(TEXTS),
    "status": st.none() | st.sampled_from(STATUSES),
}
rows = st.lists(st.fixed_dictionaries(shared), min_size=4, max_size=12)


def as_exchange(row: dict[str, Any], number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    started = NOW + timedelta(microseconds=row["us"])
    identity = UUID(bytes=uuid7((started - EPOCH) // timedelta(microseconds=1) * 1000, number))
    status = row["status"]
    code = int(status) if status and len(status) == 3 and status.isdigit() else 0
    columns = {
        "id": identity,
        "connection_id": UUID(UUIDS[number % 3]),
        "timestamp": started,
        "first_byte_ms": row["ms2"],
        "response_time_ms": row["ms"],
        "request_bytes": row["in"],
        "response_bytes": row["out"],
        "source_port": row["client_port"],
        "destination_port": row["server_port"],
        "completeness": row["missing"],
        "status_code": code,
        "payload_size_bucket": 0,
        "source_addr": row["client"],
        "destination_addr": row["server"],
        "protocol": row["text"],
        "listener": row["text"],
        "domain": row["domain"],
        "method": row["method"],
        "request_path": row["target"],
        "status": status,
        "error": row["error"],
        "metadata": {"tls": row["tls"]} if number % 2 else None,
        "tags": row["tags"],
    }
    record = {
        "id": str(identity),
        "connection_id": UUIDS[number % 3],
        "started_at": started.isoformat(),
        "protocol": row["text"],
        "client_address": row["client"],
        "client_port": row["client_port"],
        "server_address": row["server"],
        "server_port": row["server_port"],
        "domain": row["domain"],
        "listener": row["text"],
        "method": row["method"],
        "target": row["target"],
        "status": status,
        "latency_ms": row["ms"],
        "first_byte_ms": row["ms2"],
        "request_bytes": row["in"],
        "response_bytes": row["out"],
        "error": row["error"],
        "completeness": completeness(row["missing"]),
        "tls": row["tls"] if number % 2 else None,
        "tags": row["tags"] or [],
    }
    return columns, record


def as_connection(row: dict[str, Any], number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    started = NOW + timedelta(microseconds=row["us"])
    identity = UUID(bytes=uuid7((started - EPOCH) // timedelta(microseconds=1) * 1000, number))
    columns = {
        "id": identity,
        "timestamp": started,
        "latency_ms": row["ms"],
        "duration_ms": row["ms2"],
        "bytes_in": row["in"],
        "bytes_out": row["out"],
        "exchanges": number,
        "source_port": row["client_port"],
        "dest_port": row["server_port"],
        "completeness": row["missing"],
        "missing_bytes": row["in"],
        "source_ip": row["client"],
        "dest_ip": row["server"],
        "domain": row["domain"],
        "domain_source": row["method"],
        "protocol": row["text"],
        "listener": row["text"],
        "path": row["text"],
        "detail": row["detail"],
        "end_reason": row["end_reason"],
        "error": row["error"],
        "user_name": row["user_name"],
        "tls": row["tls"],
        "tags": row["tags"],
    }
    record = columns | {
        "id": str(identity),
        "timestamp": started.isoformat(),
        "completeness": completeness(row["missing"]),
        "tags": row["tags"] or [],
    }
    return columns, record


class Database:
    """A connection that synchronous properties can use."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(self._open(dsn))

    async def _open(self, dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
        import json

        connection = await asyncpg.connect(dsn)
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        await connection.execute("CREATE SCHEMA filter; SET search_path = filter")
        await connection.execute(SCHEMA.read_text())
        for table in ("traffic_logs", "traffic_records"):
            await connection.execute(f"CREATE TABLE {table}_all PARTITION OF {table} DEFAULT")
        return connection

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()

    def matching(self, table: str, rows: list[dict[str, Any]], filters: list[Any]) -> list[set[UUID]]:
        """Which rows each filter finds."""
        return self._runner.run(self._matching(table, rows, filters))

    async def _matching(self, table: str, rows: list[dict[str, Any]], filters: list[Any]) -> list[set[UUID]]:
        columns = list(rows[0])
        await self._connection.execute(f"TRUNCATE {table}")
        values = ", ".join(f"${i + 1}" for i in range(len(columns)))
        await self._connection.executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})", [tuple(row.values()) for row in rows]
        )
        arguments: list[Any] = []
        asked = []
        for expression in filters:
            text, more = to_sql(expression, len(arguments) + 1)
            arguments += more
            asked.append(f"({text}) IS TRUE")
        found = await self._connection.fetch(f"SELECT id, {', '.join(asked)} FROM {table}", *arguments)
        return [{row[0] for row in found if row[i + 1]} for i in range(len(filters))]


@pytest.fixture(scope="module")
def database(dsn: str) -> Iterator[Database]:
    database = Database(dsn)
    yield database
    database.close()


AGREE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@AGREE
@given(st.lists(filters(EXCHANGES), min_size=10, max_size=20), rows)
def test_both_forms_agree_about_exchanges(
    database: Database, texts: list[str], given_rows: list[dict[str, Any]]
) -> None:
    agree(database, "traffic_records", EXCHANGES, texts, [as_exchange(row, i) for i, row in enumerate(given_rows)])


@AGREE
@given(st.lists(filters(CONNECTIONS), min_size=10, max_size=20), rows)
def test_both_forms_agree_about_connections(
    database: Database, texts: list[str], given_rows: list[dict[str, Any]]
) -> None:
    agree(database, "traffic_logs", CONNECTIONS, texts, [as_connection(row, i) for i, row in enumerate(given_rows)])


def agree(
    database: Database, table: str, fields: Fields, texts: list[str], pairs: list[tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    expressions = [parse(text, fields, NOW) for text in texts]
    found = database.matching(table, [columns for columns, _ in pairs], expressions)
    for text, expression, ids in zip(texts, expressions, found, strict=True):
        matches = matcher(expression)
        assert ids == {columns["id"] for columns, record in pairs if matches(record)}, text


def test_every_field_is_a_column_and_every_operator_is_sql(database: Database) -> None:
    for table, fields in (("traffic_records", EXCHANGES), ("traffic_logs", CONNECTIONS)):
        make = as_exchange if table == "traffic_records" else as_connection
        row = dict.fromkeys(shared) | {"us": 0, "client": "::1", "client_port": 1, "server_port": 1, "missing": 0}
        columns, _ = make(row | {"in": 0, "out": 0, "text": "x"}, 0)
        texts = []
        for name, field in fields.by_name.items():
            texts.append(name)
            for op in ALLOWED[field.kind]:
                literal = "500" if field.kind is Kind.STATUS else LITERALS[field.kind][1]
                texts.append(f"{name} {op} {quoted(literal)}")
        assert len(database.matching(table, [columns], [parse(text, fields, NOW) for text in texts])) == len(texts)


@pytest.mark.parametrize("word", ["'; DROP TABLE traffic_records; --", "$1", "\\", "%", "a' OR 'a' = 'a"])
def test_nothing_a_user_typed_becomes_sql(word: str) -> None:
    text, arguments = to_sql(parse(f"domain == {quoted(word)}", EXCHANGES, NOW))
    assert text == "(domain = $1::text)"
    assert arguments == [word]


def test_a_rare_value_keeps_the_planner_away_from_the_status_index() -> None:
    assert "status_code + 0" in to_sql(parse("domain == x and status == 502", EXCHANGES, NOW)).text
    assert "status_code + 0" not in to_sql(parse("protocol == x and status == 502", EXCHANGES, NOW)).text
    assert "status_code + 0" not in to_sql(parse("domain == x or status == 502", EXCHANGES, NOW)).text
