"""A whole relay process's worth of data plane, in this process: every listener, real sockets, a real ring."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from python_socks import ProxyConnectionError, ProxyError
from python_socks.async_.asyncio import Proxy

from appliance.engine import arrival
from appliance.engine.ring.layout import CLOSE, DATA
from appliance.engine.ring.reader import RingReader
from appliance.engine.settings import (
    BypassRule,
    DialSettings,
    DirectHttpSettings,
    LimitSettings,
    RelaySettings,
    Route,
    SocksSettings,
    TapSettings,
)
from appliance.engine.sockets import ListenFailed
from appliance.engine.worker import Worker
from appliance.model.connection import Closed, End
from appliance.model.connection import Path as Depth
from appliance.model.endpoint import Endpoint

HERE = Endpoint("127.0.0.1", 0)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin that answers every request with its own request line."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            line = head.split(b"\r\n")[0]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(line), line))
    except asyncio.IncompleteReadError:
        pass
    writer.close()


@pytest.fixture
async def origin() -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield Endpoint(*server.sockets[0].getsockname()[:2])
    server.close()


class House:
    """A worker and what its ring says."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._reader = RingReader(worker.gate.tap.ring.path)

    def proxy(self, kind: str, user: str = "") -> Proxy:
        return Proxy.from_url(f"{kind}://{user}127.0.0.1:{self.worker.bound['mixed'][0].port}")

    async def closed(self) -> tuple[Depth, str, Endpoint, Closed, int]:
        """The next connection that ended: path, listener, server, how, and how many bytes were copied."""
        copied = 0
        while True:
            for entry in self._reader.read(1):
                if entry.kind == DATA:
                    copied += len(entry.data)
                if entry.kind == CLOSE:
                    connection = self._reader.connection(entry.stream >> 1)
                    closed = msgspec.msgpack.decode(entry.data, type=Closed)
                    return connection.path, connection.listener, connection.server, closed, copied
            await asyncio.sleep(0.005)


@pytest.fixture
async def house(tmp_path: Path, origin: Endpoint) -> AsyncIterator[House]:
    worker = Worker(settings(tmp_path, origin), 0)
    await worker.listen()
    yield House(worker)
    await worker.drain(0)


def settings(directory: Path, origin: Endpoint) -> RelaySettings:
    return RelaySettings(
        socks=SocksSettings(bind=(HERE,)),
        direct_http=DirectHttpSettings(bind=(HERE,), routes=(), default=Route(upstream=origin)),
        dial=DialSettings(connect_timeout=2),
        tap=TapSettings(directory=directory, ring_bytes=1 << 20, slots=64),
    )


async def ask(sock: object, path: str, host: str = "x") -> bytes:
    reader, writer = await asyncio.open_connection(sock=sock)  # type: ignore[arg-type]
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    return body


@pytest.mark.parametrize(("scheme", "listener"), [("socks4", "socks4"), ("socks5", "socks5"), ("http", "connect")])
async def test_a_client_of_the_mixed_port_is_relayed_and_recorded(
    house: House, origin: Endpoint, scheme: str, listener: str
) -> None:
    sock = await house.proxy(scheme).connect(*origin)
    assert await ask(sock, "/hello") == b"GET /hello HTTP/1.1"
    depth, recorded, server, closed, copied = await house.closed()
    assert (depth, recorded, server) == (Depth.RELAY, listener, origin)
    assert closed.end is End.CLOSED
    assert closed.to_server + closed.to_client == copied
    assert closed.connect_ns > 0


async def test_the_reverse_listener_reaches_its_upstream(house: House, origin: Endpoint) -> None:
    reader, writer = await asyncio.open_connection(*house.worker.bound["direct_http"][0])
    writer.write(b"GET /through HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    assert (await reader.readuntil(b"HTTP/1.1 200 OK\r\n")).endswith(b"200 OK\r\n")
    writer.close()
    _, listener, server, closed, copied = await house.closed()
    assert (listener, server) == ("direct_http", origin)
    assert closed.to_server + closed.to_client == copied


async def test_a_server_that_refuses_is_a_reply_code_and_a_record(house: House) -> None:
    free = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    with pytest.raises(ProxyError, match="refused"):
        await house.proxy("socks5").connect("127.0.0.1", port)
    closed = (await house.closed())[3]
    assert closed.end is End.REFUSED


async def test_a_server_that_resets_before_we_look_at_it_is_a_reply_code_and_a_record(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    async def dial(server: Endpoint, settings: DialSettings) -> socket.socket:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        ours.setblocking(False)
        return ours

    monkeypatch.setattr(arrival, "dial", dial)
    with pytest.raises(ProxyError):
        await asyncio.wait_for(house.proxy("socks5").connect("shop.example", 80), 5)
    assert (await house.closed())[3].end is End.SERVER_RESET
    assert not house.worker.gate.live and not house.worker.gate.limits.open
    listener.close()


async def test_connections_are_counted_with_how_long_they_lasted(house: House, origin: Endpoint) -> None:
    assert await ask(await house.proxy("socks5").connect(*origin), "/x") == b"GET /x HTTP/1.1"
    await house.closed()
    numbers = house.worker.snapshot()
    assert numbers["weir_connection_seconds_count"] == 1 and 0 < numbers["weir_connection_seconds_sum"] < 10


async def test_our_own_listeners_cannot_be_dialed(tmp_path: Path, origin: Endpoint) -> None:
    worker = Worker(settings(tmp_path, origin), 0)
    await worker.listen()
    mixed = worker.bound["mixed"][0]
    changed = replace(worker.gate.settings, dial=DialSettings(own_addresses=frozenset({mixed})))
    worker.gate.obey(changed)
    with pytest.raises(ProxyError):
        await House(worker).proxy("socks5").connect(*mixed)
    await worker.drain(0)


async def test_a_bypassed_server_is_relayed_opaque(tmp_path: Path, origin: Endpoint) -> None:
    rule = BypassRule(mode="direct_proxy", port=origin.port)
    worker = Worker(replace(settings(tmp_path, origin), bypass=(rule,)), 0)
    await worker.listen()
    house = House(worker)
    assert await ask(await house.proxy("socks5").connect(*origin), "/x") == b"GET /x HTTP/1.1"
    depth, _, _, closed, copied = await house.closed()
    assert depth is Depth.OPAQUE
    assert copied == 0
    assert closed.to_client > 0
    await worker.drain(0)


async def test_more_connections_than_allowed_are_refused_and_the_others_go_on(tmp_path: Path, origin: Endpoint) -> None:
    worker = Worker(replace(settings(tmp_path, origin), limits=LimitSettings(max_connections=1)), 0)
    await worker.listen()
    house = House(worker)
    first = await house.proxy("socks5").connect(*origin)
    with pytest.raises((ProxyError, ProxyConnectionError, ConnectionError, asyncio.IncompleteReadError)):
        await house.proxy("socks5").connect(*origin)
    assert await ask(first, "/still") == b"GET /still HTTP/1.1"
    await house.closed()
    while worker.gate.live:
        await asyncio.sleep(0.005)
    assert await ask(await house.proxy("socks5").connect(*origin), "/again") == b"GET /again HTTP/1.1"
    await worker.drain(0)


async def test_a_client_that_says_nothing_is_ended_by_the_sweep(tmp_path: Path, origin: Endpoint) -> None:
    worker = Worker(replace(settings(tmp_path, origin), handshake_timeout=5.0), 0)
    await worker.listen()
    reader, writer = await asyncio.open_connection(*worker.bound["mixed"][0])
    while not worker.gate.live:
        await asyncio.sleep(0.001)
    born = asyncio.get_running_loop().time()
    worker.gate.sweep(born + 4)
    assert worker.gate.live
    worker.gate.sweep(born + 6)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert (await House(worker).closed())[3].end is End.HANDSHAKE_TIMEOUT
    writer.close()
    await worker.drain(0)


async def test_draining_lets_what_is_open_finish_and_refuses_what_comes(house: House, origin: Endpoint) -> None:
    sock = await house.proxy("socks5").connect(*origin)
    draining = asyncio.create_task(house.worker.drain(5))
    while house.worker._servers:
        await asyncio.sleep(0.001)
    with pytest.raises(ProxyConnectionError):
        await house.proxy("socks5").connect(*origin)
    assert await ask(sock, "/last") == b"GET /last HTTP/1.1"
    await draining
    assert (await house.closed())[3].end is End.CLOSED


async def test_a_port_that_is_taken_is_a_clear_error(tmp_path: Path, origin: Endpoint) -> None:
    taken = settings(tmp_path, origin)
    assert taken.socks is not None
    worker = Worker(replace(taken, socks=replace(taken.socks, bind=(origin,))), 0)
    with pytest.raises(ListenFailed, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
        await worker.listen()
    worker.gate.tap.close()


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"\x05\x01", b"\x04\x01\x00", b"GET /\r\n\r\n", b"\xff" * 5000, b"\r\n"]
)
async def test_garbage_on_every_port_is_answered_or_closed_and_never_an_exception(
    house: House, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("mixed", "direct_http"):
        reader, writer = await asyncio.open_connection(*house.worker.bound[name][0])
        writer.write(garbage)
        writer.write_eof()
        with suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
    while house.worker.gate.live:
        await asyncio.sleep(0.005)
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
