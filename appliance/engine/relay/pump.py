"""Two sockets and what flows between them: forward first, copy second.

A ``Half`` is one side. Its ``data_received`` is the whole hot path: write to the other side, then hand the same bytes
to the tap. Flow control is the other side's: when its buffer is full we stop reading here, so a reader that stalls
costs one write buffer and no more. Half-close is kept, and a reset on one side becomes a reset on the other.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol, cast

from appliance.engine.relay.tap import TapLine
from appliance.model.connection import Closed, End

# Closing with linger 0 sends RST instead of FIN (socket(7)).
_RESET = struct.pack("ii", 1, 0)

_BY_PEER = 1
_BY_TAP = 2


def _discard(_data: bytes) -> None:
    """Stand in for ``write`` and ``copy`` once there is nowhere to go."""


class Owner(Protocol):
    """Who a half reports to."""

    def ended(self, half: "Half") -> None:
        """It will send no more."""

    def lost(self, half: "Half", exc: Exception | None) -> None:
        """It is gone."""


class Half(asyncio.Protocol):
    """One side of a pump: ``write`` sends to the other side, ``copy`` shows the inspector what was sent."""

    __slots__ = ("_paused", "copy", "eof", "lost", "other", "pump", "transport", "write")

    other: "Half"
    transport: asyncio.Transport
    pump: Owner

    def __init__(self) -> None:
        self.write: Callable[[bytes], Any] = _discard
        self.copy: Callable[[bytes], Any] = _discard
        self.eof = False
        self.lost = False
        self._paused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.write(data)
        self.copy(data)

    def eof_received(self) -> bool:
        self.eof = True
        self.pump.ended(self)
        return True

    def pause_writing(self) -> None:
        self.other.pause(_BY_PEER)

    def resume_writing(self) -> None:
        self.other.resume(_BY_PEER)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.write = self.copy = _discard
        self.pump.lost(self, exc)

    def pause(self, why: int) -> None:
        """Stop reading for one more reason."""
        if not self._paused and not self.lost and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= why

    def resume(self, why: int) -> None:
        """One reason less; read again when none is left."""
        self._paused &= ~why
        if not self._paused and not self.lost and not self.transport.is_closing():
            self.transport.resume_reading()

    def reset(self) -> None:
        """Close with RST after what is buffered was handed to the kernel."""
        if not self.lost and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.close()

    def abort(self) -> None:
        """Close with RST now; what is buffered is dropped."""
        if not self.lost:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def finish(self) -> None:
        """Close; what is buffered is still sent."""
        if not self.lost:
            self.transport.close()


class Pump:
    """A relayed connection from the moment both sides are there. ``on_end`` is called once with how it ended."""

    __slots__ = ("_connect_ns", "_end", "_error", "_line", "_on_end", "_open", "client", "quiet", "server")

    def __init__(
        self, client: Half, server: Half, line: TapLine, connect_ns: int, on_end: Callable[[Closed], None]
    ) -> None:
        self.client = client
        self.server = server
        self._line = line
        self._connect_ns = connect_ns
        self._on_end = on_end
        self._end: End | None = None
        self._error: str | None = None
        self._open = 2
        self.quiet = (-1, 0.0)  # total bytes at a sweep, and when they were first seen

    def start(self, early: bytes, write_high: int) -> None:
        """Connect the two sides. ``early`` is what the client said before the server was there."""
        client, server = self.client, self.server
        client.pump = server.pump = self
        client.other, server.other = server, client
        up, down = self._line.directions
        for half, direction in ((client, up), (server, down)):
            half.transport.set_write_buffer_limits(high=write_high)
            half.copy = direction.copy
        client.write = server.transport.write
        server.write = client.transport.write
        self._line.on_pause = self._tap_pause
        if early:
            client.data_received(early)
        if client.eof:
            self.ended(client)

    @property
    def bytes_relayed(self) -> int:
        """Both directions together."""
        up, down = self._line.directions
        return up.total + down.total

    def ended(self, half: Half) -> None:
        """One side will send no more: the other side is told, and both are closed once both said so."""
        self._direction(half).end()
        other = half.other
        if other.eof:
            # uvloop crashes when a transport is half-closed and then only collected: close both explicitly.
            self._end = self._end or End.CLOSED
            half.finish()
            other.finish()
        elif not other.lost and other.transport.can_write_eof():
            try:
                other.transport.write_eof()
            except (OSError, RuntimeError):
                other.finish()  # it is just going away; connection_lost tells the rest

    def lost(self, half: Half, exc: Exception | None) -> None:
        """One side is gone."""
        self._open -= 1
        if self._open:
            if exc is not None and self._end is None:
                self._end = End.CLIENT_RESET if half is self.client else End.SERVER_RESET
                self._error = str(exc)
            if self._end in {End.CLIENT_RESET, End.SERVER_RESET}:
                half.other.reset()
            else:
                half.other.finish()
            return
        up, down = self._line.directions
        on_end, line = self._on_end, self._line
        line.on_pause = None
        # The halves and the pump refer to each other: untie them, so that they are freed without the collector.
        del self.client.other, self.server.other, self.client.pump, self.server.pump
        closed = Closed(
            closed_ns=0,
            end=self._end or End.CLOSED,
            to_server=up.total,
            to_client=down.total,
            connect_ns=self._connect_ns,
            error=self._error,
        )
        on_end(closed)

    def end(self, end: End) -> None:
        """Close both sides now."""
        self._end = self._end or end
        for half in (self.client, self.server):
            half.abort()

    def overdue(self, now: float, idle_timeout: float) -> End | None:
        """Whether nothing has flowed for too long, as far as sweeps noticed."""
        total = self.bytes_relayed
        if total != self.quiet[0]:
            self.quiet = (total, now)
            return None
        return End.IDLE_TIMEOUT if now - self.quiet[1] > idle_timeout else None

    def _direction(self, half: Half) -> Any:
        return self._line.directions[0 if half is self.client else 1]

    def _tap_pause(self, paused: bool) -> None:
        for half in (self.client, self.server):
            if paused:
                half.pause(_BY_TAP)
            else:
                half.resume(_BY_TAP)
