"""Keep-alive HTTP load from the client's namespace, at a steady pace, every request with an id of its own.

What a client was told (status, latency, or how it failed) is one book; the origin's access log is another; the stored
rows are the third. A test holds them against each other.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg

from appliance.tools.lab.namespaces import ORIGIN_V4, Namespace
from appliance.tools.lab.origins import HTTP_PORT, HttpOrigin
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.product import Weir
from tests.netns import roads


class Told(NamedTuple):
    """One request as the client saw it; ``status`` 0 is a failure, ``began`` is monotonic, both times in seconds."""

    id: str
    began: float
    seconds: float
    status: int
    error: str


class Load:
    """A running load. ``told`` grows while it runs."""

    def __init__(
        self, client: Namespace, marker: str, connections: int, rate: float, body_bytes: int, road: roads.Road
    ) -> None:
        self.marker = marker
        self.told: list[Told] = []
        self._client = client
        self._connections = connections
        self._pause = connections / rate
        self._body_bytes = body_bytes
        self._road = road
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name=f"load {marker}")

    @property
    def failed(self) -> list[Told]:
        """Requests without a good answer."""
        return [one for one in self.told if one.status != 200]

    def p99(self, since: float, until: float | None = None) -> float:
        """The 99th percentile of latencies, in seconds, of requests that began in the window (monotonic seconds)."""
        found = sorted(
            one.seconds for one in list(self.told) if since <= one.began and (not until or one.began < until)
        )
        assert len(found) >= 50, f"only {len(found)} requests in the window"
        return found[int(len(found) * 0.99)]

    def more(self, count: int, timeout: float = 20.0) -> None:
        """Return once so many more requests were told of."""
        before = len(self.told)
        assert eventually(lambda: len(self.told) >= before + count, timeout), f"{len(self.told) - before} of {count}"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No request begins any more; return when the last is answered."""
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a request was neither answered nor failed"

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._client_of(number))

    async def _client_of(self, number: int) -> None:
        count = 0
        due = time.monotonic() + self._pause * number / self._connections
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._over.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + self._pause, time.monotonic() - 1.0)
            count += 1
            id = f"{self.marker}-{number}-{count}"
            began, status, error = time.monotonic(), 0, ""
            try:
                async with asyncio.timeout(30):
                    if streams is None:
                        streams = await self._open()
                    status = await self._ask(id, *streams)
            except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as problem:
                error = repr(problem)
                if streams is not None:
                    streams[1].close()
                    streams = None
            self.told.append(Told(id, began, time.monotonic() - began, status, error))
        if streams is not None:
            streams[1].close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        def dial() -> "roads.socket.socket":
            return self._road.open(self._client, self._road.host, HTTP_PORT)

        return await asyncio.open_connection(sock=await asyncio.to_thread(dial))

    async def _ask(self, id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        body = os.urandom(self._body_bytes)
        target = f"{self._road.prefix(HTTP_PORT)}/api/item?id={id}"
        head = f"POST {target} HTTP/1.1\r\nHost: {ORIGIN_V4}\r\nX-Lab-Id: {id}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return int(answer.split(b" ", 2)[1])


@contextlib.contextmanager
def load(
    client: Namespace,
    marker: str,
    *,
    connections: int = 8,
    rate: float = 200.0,
    body_bytes: int = 0,
    road: roads.Road = roads.ROADS[0],
) -> Iterator[Load]:
    """``rate`` requests a second over ``connections`` connections until left (or stopped)."""
    running = Load(client, marker, connections, rate, body_bytes, road)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def seen(http: HttpOrigin, marker: str) -> Counter[str]:
    """Ids of this load in the origin's own log, and how often."""
    return Counter(one.id for one in http.seen() if one.id.startswith(f"{marker}-"))


def stored(weir: Weir, marker: str) -> Counter[str]:
    """Ids of this load in the database, and how often."""
    rows = weir.sql("SELECT request_path FROM traffic_records WHERE request_path LIKE $1", f"%id={marker}-%")
    return Counter(parse_qs(urlsplit(row["request_path"]).query)["id"][0] for row in rows)


def assert_each_is_stored_once(weir: Weir, http: HttpOrigin, marker: str, timeout: float = 30.0) -> int:
    """The origin's log and the rows name the same requests, each once; returns how many."""
    expected = seen(http, marker)
    assert expected and set(expected.values()) == {1}
    found: Counter[str] = Counter()

    def all_there() -> bool:
        nonlocal found
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it may just be starting
            found = stored(weir, marker)
        return len(found) >= len(expected)

    eventually(all_there, timeout, every=0.1)
    missing, extra = expected - found, found - expected
    assert not missing, f"{missing.total()} of {expected.total()} are not stored, as {sorted(missing)[:5]}"
    assert not extra, f"{extra.total()} are stored twice or were never seen, as {sorted(extra)[:5]}"
    return expected.total()


def until(claim: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Return once the claim holds; fail and name it when it does not."""
    assert eventually(claim, timeout), what
