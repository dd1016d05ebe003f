"""The real relay process's worker inside a test: listeners on free ports, what it recorded in a list."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Any

from appliance.engine.ring.layout import DATA
from appliance.engine.ring.reader import RingReader
from appliance.engine.settings import MIB, DialSettings, RelaySettings, SocksSettings, TapSettings
from appliance.engine.worker import Worker
from appliance.model.connection import Closed, Connection
from appliance.model.direction import Direction
from appliance.model.endpoint import Endpoint

LOOPBACK = Endpoint("127.0.0.1", 0)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Running:
    """A worker that listens."""

    worker: Worker
    closed: list[tuple[Connection, Closed]] = field(default_factory=list)

    @property
    def mixed(self) -> Endpoint:
        return self.worker.bound["mixed"][0]

    @property
    def direct_http(self) -> Endpoint:
        return self.worker.bound["direct_http"][0]

    async def records(self, count: int = 1) -> list[tuple[Connection, Closed]]:
        """What was recorded, once so many connections have ended."""
        await until(lambda: len(self.closed) >= count)
        return self.closed

    def shown(self, direction: Direction) -> bytes:
        """Everything that the inspector was shown of one direction, over all connections."""
        reader = RingReader(self.worker.gate.tap.ring.path)
        entries = [entry for entry in reader.read(1 << 60) if entry.kind == DATA and entry.stream & 1 == direction]
        return b"".join(bytes(entry.data) for entry in entries)


@asynccontextmanager
async def weir(directory: Path, **changes: Any) -> AsyncIterator[Running]:
    """A worker with these ``RelaySettings``; the mixed listener without users unless they say otherwise."""
    defaults: dict[str, Any] = {
        "socks": SocksSettings(bind=(LOOPBACK,)),
        "dial": DialSettings(connect_timeout=2.0),
        "tap": TapSettings(directory=directory, ring_bytes=16 * MIB, slots=256),
        "handshake_timeout": 5.0,
    }
    directory.mkdir(exist_ok=True)
    worker = Worker(RelaySettings(**(defaults | changes)), 0)
    running = Running(worker)
    account = worker.gate.closed

    def closed(connection: Connection, end: Closed) -> None:
        running.closed.append((connection, end))
        account(connection, end)

    worker.gate.closed = closed  # type: ignore[method-assign]
    await worker.listen()
    sweeps = asyncio.ensure_future(worker.sweep())
    try:
        yield running
        await until(lambda: not worker.gate.live)
        assert worker.gate.limits.open == 0
    finally:
        sweeps.cancel()
        with suppress(asyncio.CancelledError):
            await sweeps
        await worker.drain(0.1)


@asynccontextmanager
async def serving(handler: Handler, ssl: SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """An origin that runs ``handler`` for each connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ssl)
    try:
        yield Endpoint(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; fail when it does not come."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def talk(server: Endpoint, *said: bytes, eof: bool = False) -> bytes:
    """Say these pieces, each in its own segment as far as possible, and return everything heard until the end."""
    reader, writer = await asyncio.open_connection(*server)
    try:
        for piece in said:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if eof:
            writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
