"""What the API's tests look at: a database that was filled by the recorder itself, and an engine that answers."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from appliance.api.app import application
from appliance.api.live import Hub
from appliance.api.problems import EngineAway, Refused
from appliance.api.settings import ApiSettings
from appliance.model.connection import Closed, Connection, ConnectionRecord, End
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import EMPTY, Body, Exchange, Missing
from appliance.model.identity import uuid7
from appliance.record.migrate import migrate
from appliance.record.queries.reader import Reader
from appliance.record.recorder import Recorder
from appliance.record.settings import RecordSettings

NOW = datetime.now(UTC).replace(microsecond=0)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DOMAINS = ["a.example.com", "b.example.com", "c.example.org"]
CLIENTS = ["10.0.0.1", "10.0.0.2", "2001:db8::1"]

LOOPBACK = ApiSettings(bind=(Endpoint("127.0.0.1", 8088),), dsn="", live_socket=Path("/nonexistent"))

HTML = b"<script>alert(1)</script>" * 100
LONG = b"0123456789" * 100_000


def ns(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1) * 1000


def body(data: bytes, head: int | None = None, tail: int = 0) -> Body:
    kept = data if head is None else data[:head]
    return Body(len(data), kept, data[len(data) - tail :] if tail else b"", sha256(data).digest())


def http(
    at: datetime,
    domain: str,
    target: str,
    status: int = 200,
    *,
    ms: float = 20.0,
    request: Body = EMPTY,
    response: Body = EMPTY,
    headers: bytes = b"",
    error: str | None = None,
    missing: int = 0,
) -> Exchange:
    start = ns(at)
    end = start + int(ms * 1_000_000)
    head = f"GET {target} HTTP/1.1\r\nHost: {domain}\r\naccept: */*\r\nAccept: text/html\r\n\r\n".encode()
    return Exchange(
        protocol="http/1.1",
        method="GET",
        target=target,
        status=str(status),
        status_code=status,
        domain=domain,
        started_ns=start,
        request_ended_ns=start,
        first_byte_ns=start + (end - start) // 2,
        ended_ns=end,
        request_bytes=len(head) + request.length,
        response_bytes=100 + response.length,
        request_head=head,
        response_head=b"HTTP/1.1 %d Whatever\r\nContent-Type: text/html\r\n%s\r\n" % (status, headers),
        request=request,
        response=response,
        missing=missing,
        error=error,
    )


class Scene:
    """A filled database. ``ids`` finds the exchanges that tests name."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.ids: dict[str, UUID] = {}
        self.connections: list[UUID] = []
        self.exchanges: list[UUID] = []

    async def fill(self, directory: Path) -> None:
        connection = await asyncpg.connect(self.dsn)
        await migrate(connection)
        await connection.close()
        recorder = Recorder(RecordSettings.under(directory, self.dsn), "test")
        await recorder.start()
        for number in range(60):
            self._one(recorder, number)
        at = NOW - timedelta(minutes=90)
        zipped = gzip.compress(HTML)
        special = {
            "html": http(at, "x.test", "/page", response=body(HTML)),
            "gzip": http(at, "x.test", "/zip", response=body(zipped), headers=b"Content-Encoding: gzip\r\n"),
            "binary": http(at, "x.test", "/bin", response=body(bytes(range(256))), request=body(b'{"a":1}')),
            "cut": http(
                at,
                "x.test",
                "/long",
                response=body(LONG, 1000, 500),
                missing=int(Missing.RESPONSE_TRUNCATED),
            ),
            "empty": http(at, "x.test", "/none", 204),
            "odd": http(at, "x.test", "/\r\n<b>", 502, error="reset", headers=b"X-Folded: one\r\n two\r\nno colon\r\n"),
        }
        parent = self._connection(1000, at)
        recorder.connection(ConnectionRecord(parent, None))
        for number, (name, exchange) in enumerate(special.items()):
            id = uuid7(exchange.started_ns, 1_000_000 + number)
            recorder.exchange(exchange, parent, id)
            self.ids[name] = UUID(bytes=id)
        await recorder.write(recorder.take(), "ring", 1, b"")
        assert recorder.stats.rows == 127, recorder.stats
        await recorder.close()

    def _one(self, recorder: Recorder, number: int) -> None:
        at = NOW - timedelta(minutes=number, seconds=1)
        connection = self._connection(number, at)
        self.connections.append(UUID(bytes=connection.id))
        domain = DOMAINS[min(number % 6, 2)]
        status = 502 if number % 10 == 0 else 200
        exchange = http(at, domain, f"/items/{number}", status, ms=float(number + 1))
        id = uuid7(exchange.started_ns, number)
        self.exchanges.append(UUID(bytes=id))
        recorder.exchange(exchange, connection, id)
        closed = Closed(connection.opened_ns + 10**9, End.CLOSED, 100 * (number + 1), 1000, 2_000_000)
        recorder.connection(ConnectionRecord(connection, closed, "http/1.1", 1))

    def _connection(self, number: int, at: datetime) -> Connection:
        return Connection(
            id=uuid7(ns(at), number),
            opened_ns=ns(at),
            listener="transparent",
            client=Endpoint(CLIENTS[number % 3], 40000 + number),
            server=Endpoint("192.0.2.80", 80),
            domain=DOMAINS[min(number % 6, 2)],
            domain_source="host",
        )


class FakeEngine:
    """A supervisor that says what a test wants it to say."""

    def __init__(self) -> None:
        self.away = False
        self.refusal: str | None = None
        self.told: dict[str, Any] = {
            "ready": True,
            "state": "serving",
            "checks": {"listeners": {"ok": True, "detail": "2 of 2"}, "ruleset": {"ok": True, "detail": "in place"}},
        }

    async def status(self) -> dict[str, Any]:
        self._check()
        return self.told

    async def metrics(self) -> dict[str, dict[str, float]]:
        self._check()
        return {"relay-0": {"weir_connections_opened_total|listener=socks5": 3}}

    async def reload(self) -> dict[str, Any]:
        self._check()
        if self.refusal is not None:
            raise Refused(self.refusal)
        return {"changed": ["logging.level"], "needs_restart": ["proxy.mode"], "warnings": []}

    def _check(self) -> None:
        if self.away:
            raise EngineAway("the supervisor did not answer")


class Api:
    """The application, asked in process."""

    def __init__(self, dsn: str, settings: ApiSettings = LOOPBACK, client: str = "127.0.0.1") -> None:
        self.reader = Reader(dsn)
        self.engine = FakeEngine()
        self.hub = Hub()
        self.app = application(settings, self.reader, self.engine, self.hub)
        transport = httpx.ASGITransport(self.app, client=(client, 50000), raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8088")

    async def get(self, path: str, **parameters: Any) -> Any:
        """The document; the status must be 200."""
        answer = await self.http.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, status: int, path: str, method: str = "GET", **parameters: Any) -> Any:
        """The problem; the status must be that one."""
        answer = await self.http.request(method, path, params=parameters)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["title"]
        return problem


@asynccontextmanager
async def api(dsn: str, settings: ApiSettings = LOOPBACK, client: str = "127.0.0.1") -> AsyncIterator[Api]:
    made = Api(dsn, settings, client)
    try:
        yield made
    finally:
        await made.http.aclose()
        await made.reader.close()


def filled(dsn: str, directory: Path) -> Scene:
    scene = Scene(dsn)
    asyncio.run(scene.fill(directory))
    return scene
