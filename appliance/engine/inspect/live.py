"""Show what was just understood to the API process, if it wants to know. Never waits, never queues.

The API listens on a Unix stream socket and writes one byte whenever it changes its mind: ``1`` while somebody watches
the live feed, ``0`` otherwise. Frames are a u32 length (little-endian) and a JSON array of objects with the contract's
field names. What a slow API has no room for is dropped and counted; the next frame carries the count.
"""

import asyncio
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec

ROOM = 1 << 20  # bytes that may wait for a slow API
RETRY = 1.0  # seconds between attempts to connect

_LENGTH = struct.Struct("<I")


class LiveFeed(asyncio.Protocol):
    """One inspector's line to the API. ``wanted`` says whether building rows is worth it."""

    def __init__(self, socket: Path | None) -> None:
        self.wanted = False
        self.dropped = 0  # since the last frame that said so
        self.lost = 0  # ever
        self._socket = socket
        self._transport: asyncio.WriteTransport | None = None
        self._rows: list[Any] = []
        self._encode = msgspec.json.Encoder().encode

    async def stay_connected(self) -> None:
        """For ever: connect again whenever the API was restarted."""
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        while True:
            if self._transport is None:
                with suppress(OSError):
                    await loop.create_unix_connection(lambda: self, str(self._socket))
            await asyncio.sleep(RETRY)

    def show(self, row: Any) -> None:
        """One exchange or connection; sent by the next ``flush``."""
        self._rows.append(row)

    def flush(self) -> None:
        """Send what was shown, or drop and count it."""
        rows, self._rows = self._rows, []
        transport = self._transport
        if not rows or transport is None:
            return
        if transport.get_write_buffer_size() > ROOM:
            self.dropped += len(rows)
            self.lost += len(rows)
            return
        if self.dropped:
            rows.append({"type": "dropped", "count": self.dropped})
            self.dropped = 0
        frame = self._encode(rows)
        transport.write(_LENGTH.pack(len(frame)) + frame)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.wanted = data[-1:] == b"1"

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.wanted = False
        self._rows.clear()
