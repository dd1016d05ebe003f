"""Exchanges and connections as an inspector hands them over."""

import asyncio
import itertools
from hashlib import sha256
from pathlib import Path
from typing import Any

from appliance.model import identity
from appliance.model.connection import Closed, Connection, ConnectionRecord, End
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import EMPTY, Body, Exchange
from appliance.record.recorder import Recorder
from appliance.record.settings import RecordSettings

NOON = 1_795_348_800 * 10**9  # 2026-11-22 12:00 UTC
RING = "relay-0.1.ring"
REQUEST_HEAD = b"GET /items/1 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"

_numbers = itertools.count(1)


def new_id(at: int = NOON) -> bytes:
    return identity.uuid7(at, next(_numbers))


def whole(data: bytes) -> Body:
    return Body(len(data), data, b"", sha256(data).digest()) if data else EMPTY


def connection(**changes: Any) -> Connection:
    values: dict[str, Any] = {
        "id": new_id(),
        "opened_ns": NOON,
        "listener": "socks",
        "client": Endpoint("192.0.2.7", 40_000),
        "server": Endpoint("2001:db8::1", 80),
        "domain": "shop.example",
        "domain_source": "socks",
    }
    return Connection(**{**values, **changes})


def closing(opened: Connection, **changes: Any) -> ConnectionRecord:
    values: dict[str, Any] = {
        "closed_ns": opened.opened_ns + 250_000_000,
        "end": End.CLOSED,
        "to_server": 111,
        "to_client": 222,
        "connect_ns": 1_500_000,
    }
    return ConnectionRecord(opened, Closed(**{**values, **changes}), "http/1.1", 3)


def exchange(**changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "protocol": "http/1.1",
        "method": "GET",
        "target": "/items/1",
        "status": "200",
        "status_code": 200,
        "domain": "shop.example",
        "started_ns": NOON,
        "request_ended_ns": NOON + 1_000_000,
        "first_byte_ns": NOON + 2_000_000,
        "ended_ns": NOON + 3_500_000,
        "request_bytes": len(REQUEST_HEAD),
        "response_bytes": len(RESPONSE_HEAD) + 5,
        "request_head": REQUEST_HEAD,
        "response_head": RESPONSE_HEAD,
        "request": EMPTY,
        "response": whole(b"hello"),
    }
    return Exchange(**{**values, **changes})


def settings(dsn: str, directory: Path, **changes: Any) -> RecordSettings:
    base = RecordSettings.under(directory, dsn)
    values = {name: getattr(base, name) for name in ("spool", "redaction", "compression", "sampling")}
    return RecordSettings(**{"dsn": dsn, **values, "retry_last": 0.2, **changes})


class Writing:
    """A recorder and the commit numbers of one ring."""

    def __init__(self, recorder: Recorder, ring: str = RING) -> None:
        self.recorder = recorder
        self.ring = ring
        self.number = 0
        self.ids: list[bytes] = []

    def add(self, count: int = 1, **changes: Any) -> None:
        on = connection()
        for _ in range(count):
            id = new_id()
            self.recorder.exchange(exchange(**changes), on, id)
            self.ids.append(id)

    async def write(self) -> None:
        self.number += 1
        batch = self.recorder.take()
        await self.recorder.write(batch, self.ring, self.number, b"resume %d" % self.number)

    async def stream(self, batches: int, rows: int, pause: float = 0.0) -> None:
        for _ in range(batches):
            self.add(rows)
            await self.write()
            await asyncio.sleep(pause)
