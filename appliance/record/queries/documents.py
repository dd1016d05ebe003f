"""What the API shows of a row: the contract's field names (§5, §6), typed. The live feed speaks the same documents."""

from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import msgspec

from appliance.model.exchange import completeness

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUMMARY_TARGET = 200
_HTTP = frozenset({"http/1.1", "h2", "websocket", "grpc"})


class Row(Protocol):
    """A row of the database, or anything that is asked by column name."""

    def __getitem__(self, name: str, /) -> Any:
        """The column's value."""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the connection's TLS. ``reason`` says why it was not intercepted."""

    intercepted: bool = False
    reason: str | None = None
    version: str | None = None
    sni: str | None = None
    alpn: str | None = None
    ja4: str | None = None


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request/response, command/reply or query/result. Times in milliseconds, sizes on the wire in bytes.

    ``latency_ms`` is from the start of the request to the end of the response, ``first_byte_ms`` to the response's
    first byte. ``completeness`` is ``complete`` or the reasons why not.
    """

    id: UUID
    connection_id: UUID
    started_at: datetime
    protocol: str
    client_address: str
    client_port: int
    server_address: str | None
    server_port: int
    domain: str | None
    listener: str
    method: str | None
    target: str | None
    status: str | None
    summary: str
    latency_ms: float | None
    first_byte_ms: float | None
    request_bytes: int
    response_bytes: int
    error: str | None
    completeness: str
    tls: Tls | None
    tags: list[str]


class ExchangeDetail(Exchange, frozen=True, kw_only=True):
    """An exchange and what only its own page shows: what the protocol adds, violations among it."""

    metadata: dict[str, Any]


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """One connection through us. ``bytes_in`` went to the server, ``bytes_out`` to the client.

    ``latency_ms`` is the time to reach the server; ``duration_ms`` and ``end_reason`` are null while it is open.
    """

    id: UUID
    timestamp: datetime
    source_ip: str
    source_port: int
    dest_ip: str | None
    dest_port: int
    domain: str | None
    domain_source: str | None
    protocol: str
    listener: str
    path: str
    latency_ms: float | None
    bytes_in: int
    bytes_out: int
    duration_ms: float | None
    exchanges: int
    end_reason: str | None
    completeness: str
    missing_bytes: int
    detail: str | None
    error: str | None
    user_name: str | None
    tls: Tls | None
    tags: list[str]


def exchange(row: Row) -> Exchange:
    """A row of ``traffic_records`` as the API shows it."""
    return Exchange(**_exchange(row))


def exchange_detail(row: Row) -> ExchangeDetail:
    """The same, with everything the protocol added."""
    return ExchangeDetail(**_exchange(row), metadata=row["metadata"] or {})


def _exchange(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "connection_id": row["connection_id"],
        "started_at": row["timestamp"],
        "protocol": row["protocol"],
        "client_address": str(row["source_addr"]),
        "client_port": row["source_port"],
        "server_address": _text(row["destination_addr"]),
        "server_port": row["destination_port"],
        "domain": row["domain"],
        "listener": row["listener"],
        "method": row["method"],
        "target": row["request_path"],
        "status": row["status"],
        "summary": summary(row["protocol"], row["method"], row["domain"], row["request_path"], row["status"]),
        "latency_ms": row["response_time_ms"],
        "first_byte_ms": row["first_byte_ms"],
        "request_bytes": row["request_bytes"],
        "response_bytes": row["response_bytes"],
        "error": row["error"],
        "completeness": completeness(row["completeness"]),
        "tls": _tls((row["metadata"] or {}).get("tls")),
        "tags": row["tags"] or [],
    }


def connection(row: Row) -> Connection:
    """A row of ``traffic_logs`` as the API shows it."""
    known = {name: row[name] for name in _AS_STORED}
    return Connection(
        **known,
        source_ip=str(row["source_ip"]),
        dest_ip=_text(row["dest_ip"]),
        completeness=completeness(row["completeness"]),
        tls=_tls(row["tls"]),
        tags=row["tags"] or [],
    )


_CONVERTED = {"source_ip", "dest_ip", "completeness", "tls", "tags"}
_AS_STORED = [field for field in Connection.__struct_fields__ if field not in _CONVERTED]


def summary(protocol: str, method: str | None, domain: str | None, target: str | None, status: str | None) -> str:
    """One line for people: ``GET example.com/path → 200``, ``SET user:1 → ok``, ``SELECT … → 42P01``."""
    place = f"{domain or ''}{target or ''}" if protocol in _HTTP else target or ""
    # A target may be anything a client sent; one line stays one line.
    place = "".join(c if c.isprintable() else "·" for c in place[: _SUMMARY_TARGET + 1])
    if len(place) > _SUMMARY_TARGET:
        place = place[:_SUMMARY_TARGET] + "…"
    asked = " ".join(part for part in (method, place) if part) or protocol
    return f"{asked} → {status}" if status else asked


def at(ns: int) -> datetime:
    """Nanoseconds since the epoch as the tables keep them: to the microsecond, UTC."""
    return _EPOCH + timedelta(microseconds=ns // 1000)


def _text(address: object) -> str | None:
    return None if address is None else str(address)


def _tls(found: object) -> Tls | None:
    return msgspec.convert(found, Tls, strict=False) if isinstance(found, dict) else None
