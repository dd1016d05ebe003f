"""The pump between real sockets: bytes untouched, ends and resets passed on, a stalled reader bounds memory."""

import asyncio
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.engine.relay.pump import Half, Pump
from appliance.engine.relay.tap import Tap
from appliance.engine.settings import TapSettings
from appliance.model.connection import Closed, Connection, End
from appliance.model.endpoint import Endpoint

HIGH = 64 * 1024
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Relay:
    """A listener that pumps to one origin, as the worker does, without handshakes."""

    def __init__(self, tap: Tap, origin: int) -> None:
        self.tap = tap
        self.origin = origin
        self.pumps: list[Pump] = []
        self.closed: asyncio.Queue[Closed] = asyncio.Queue()
        self.tasks: list[asyncio.Task[None]] = []

    def accept(self) -> Half:
        relay = self
        early: list[bytes] = []

        class Client(Half):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.write = early.append
                relay.tasks.append(asyncio.get_running_loop().create_task(relay.reach(self, early)))

            def eof_received(self) -> bool:
                if hasattr(self, "pump"):
                    return super().eof_received()
                self.eof = True
                return True

        return Client()

    async def reach(self, client: Half, early: list[bytes]) -> None:
        server = Half()
        await asyncio.get_running_loop().create_connection(lambda: server, "127.0.0.1", self.origin)
        here = Endpoint("127.0.0.1", 1)
        line = self.tap.open(Connection(os.urandom(16), 1, "mixed", here, here))
        pump = Pump(client, server, line, 0, self.closed.put_nowait)
        self.pumps.append(pump)
        pump.start(b"".join(early), HIGH)


@asynccontextmanager
async def relayed(directory: Path, serve: Serve) -> AsyncIterator[tuple[int, Relay]]:
    loop = asyncio.get_running_loop()
    origin = await asyncio.start_server(serve, "127.0.0.1", 0)
    tap = Tap(TapSettings(directory=directory, ring_bytes=1 << 20, slots=64), 0)
    relay = Relay(tap, origin.sockets[0].getsockname()[1])
    server = await loop.create_server(relay.accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], relay
    finally:
        server.close()
        origin.close()
        for pump in relay.pumps:
            pump.end(End.DRAINED)
        await asyncio.sleep(0)


async def test_half_close_is_kept_in_both_orders(tmp_path: Path) -> None:
    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(b"you said " + asked)
        writer.close()

    async with relayed(tmp_path, answer_after_the_end) as (port, relay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"you said hello"
        writer.close()
        closed = await relay.closed.get()
    assert (closed.end, closed.to_server, closed.to_client) == (End.CLOSED, 5, 14)


async def test_a_server_that_ends_first_still_hears_the_client(tmp_path: Path) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def end_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    async with relayed(tmp_path, end_then_listen) as (port, relay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b"bye"
        writer.write(b"one more thing")
        writer.write_eof()
        assert await heard == b"one more thing"
        writer.close()
        assert (await relay.closed.get()).end is End.CLOSED


async def test_a_reset_by_the_server_is_a_reset_for_the_client(tmp_path: Path) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with relayed(tmp_path, reset) as (port, relay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            while await reader.read(100):
                pass
        assert (await relay.closed.get()).end is End.SERVER_RESET
        writer.close()


async def test_a_reset_by_the_client_is_a_reset_for_the_server(tmp_path: Path) -> None:
    seen: asyncio.Future[BaseException | bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            seen.set_result(await reader.read())
        except ConnectionResetError as error:
            seen.set_result(error)
        writer.close()

    async with relayed(tmp_path, listen) as (port, relay):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        while not relay.pumps or not relay.pumps[0].bytes_relayed:
            await asyncio.sleep(0.001)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert isinstance(await seen, ConnectionResetError)
        assert (await relay.closed.get()).end is End.CLIENT_RESET


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_a_stalled_reader_costs_a_bounded_buffer_and_no_byte(tmp_path: Path, direction: str) -> None:
    total = 24 * 1024 * 1024
    block = os.urandom(1 << 16)
    sent = hashlib.sha256(block * (total >> 16)).hexdigest()
    stall = asyncio.Event()
    digest: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def produce(writer: asyncio.StreamWriter) -> None:
        for _ in range(total >> 16):
            writer.write(block)
            await writer.drain()
        writer.write_eof()

    async def consume(reader: asyncio.StreamReader) -> None:
        await stall.wait()
        running = hashlib.sha256()
        while data := await reader.read(1 << 16):
            running.update(data)
        digest.set_result(running.hexdigest())

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (produce(writer) if direction == "download" else consume(reader))
        if direction == "upload":
            writer.close()

    async with relayed(tmp_path, origin) as (port, relay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        work = asyncio.create_task(consume(reader) if direction == "download" else produce(writer))
        while not relay.pumps:
            await asyncio.sleep(0.001)
        seen = -1
        while relay.pumps[0].bytes_relayed != seen:  # until everything between the ends is full
            seen = relay.pumps[0].bytes_relayed
            await asyncio.sleep(0.2)
        half = relay.pumps[0].client if direction == "download" else relay.pumps[0].server
        assert seen < total
        assert half.transport.get_write_buffer_size() <= HIGH + 256 * 1024  # one more read than the mark
        stall.set()
        assert await digest == sent
        await work
        writer.close()
        closed = await relay.closed.get()
    assert (closed.to_client if direction == "download" else closed.to_server) == total


async def test_a_quiet_connection_is_overdue_and_a_busy_one_is_not(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with relayed(tmp_path, echo) as (port, relay):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await reader.read(1)
        pump = relay.pumps[0]
        assert pump.overdue(100.0, 10) is None
        assert pump.overdue(109.0, 10) is None
        writer.write(b"y")
        await reader.read(1)
        assert pump.overdue(111.0, 10) is None
        assert pump.overdue(122.0, 10) is End.IDLE_TIMEOUT
        writer.close()
