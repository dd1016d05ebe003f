"""Copy relayed bytes to the inspector without ever making the relay wait.

A ``TapLine`` is one connection's part of the ring. Each direction speaks in turns; of a long turn only the head and
the tail are copied and the hole between them is declared with its exact size, so that bulk traffic costs next to
nothing and the inspector knows what it has not seen. Totals are exact, whatever was copied.
"""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable

import msgspec

from appliance.engine.ring.layout import BY_FULL_RING, BY_TURN_CAP, CLOSE, DATA, END, HOLE, HOLE_PAYLOAD, OPEN, ROUTE
from appliance.engine.ring.writer import Put, RingWriter
from appliance.engine.settings import TapSettings
from appliance.model.connection import Closed, Connection, Path
from appliance.model.direction import Direction
from appliance.model.endpoint import Endpoint

SWEEP = 0.5  # seconds until the tail of an unfinished long turn is shown all the same
RETRY = 0.005  # seconds between attempts while the ring is full


class TurnTap:
    """One direction of a line. ``copy`` is the hot path: it runs for every chunk after it was forwarded."""

    __slots__ = ("_head", "_last", "_line", "_skipped", "_stream", "_turn", "missing", "other", "put", "total")

    other: "TurnTap"

    def __init__(self, line: "TapLine", stream: int, head: int) -> None:
        self._line = line
        self._stream = stream
        self._head = head
        self._turn = 0  # bytes of the current turn
        self._skipped = 0  # of them, not copied and not yet declared
        self._last: bytes = b""
        self.put: Put = line.tap.put
        self.total = 0
        self.missing = 0

    def copy(self, data: bytes) -> None:
        """Count and copy a chunk that was just forwarded."""
        length = len(data)
        self.total += length
        if self.other._turn:
            self.other.end_turn()
        turn = self._turn + length
        self._turn = turn
        if turn > self._head:
            self._copy_bulk(data, turn - length)
        elif not self.put(self._stream, data, DATA):
            self._line.refused(self, self._stream, data)

    def end_turn(self) -> None:
        """The other direction speaks, or the connection ends: declare the hole and copy the tail."""
        self._turn = 0
        if self._skipped:
            self.show_tail()
            self._line.tap.long_turns.discard(self)

    def show_tail(self) -> None:
        """Declare what was skipped so far, then copy the last bytes of it."""
        tail = self._last[-self._line.tap.settings.turn_tail :]
        hole = self._skipped - len(tail)
        self._skipped = 0
        self._last = b""
        if hole:
            self._line.control(self._stream, HOLE_PAYLOAD.pack(hole, BY_TURN_CAP), HOLE)
        if not self.put(self._stream, tail, DATA):
            self._line.refused(self, self._stream, tail)

    def end(self) -> None:
        """This direction reached its end of file."""
        self.end_turn()
        self._line.control(self._stream, b"", END)

    def _copy_bulk(self, data: bytes, before: int) -> None:
        if before < self._head:
            kept = self._head - before
            if not self.put(self._stream, data[:kept], DATA):
                self._line.refused(self, self._stream, data[:kept])
            data = data[kept:]
        if not self._skipped:
            self._line.tap.long_turns.add(self)
        self._skipped += len(data)
        self._last = data


class CountingTap:
    """One direction of a connection that is not copied: opaque paths, and taps without a ring."""

    __slots__ = ("missing", "total")

    def __init__(self) -> None:
        self.total = 0
        self.missing = 0

    def copy(self, data: bytes) -> None:
        """Count only."""
        self.total += len(data)

    def end(self) -> None:
        """Nothing to say."""

    def end_turn(self) -> None:
        """Nothing to say."""


class TapLine:
    """One connection's part of the ring.

    ``on_pause(True)`` is called when reading must stop until there is room (``on_overload: pause``), at once when that
    is so already, then ``on_pause(False)``. Control records are never lost: while the ring has no room they wait here,
    and what must come after them waits too, or is counted as missing.
    """

    __slots__ = ("_backlog", "_closed", "_on_pause", "_slot", "connection", "directions", "tap")

    def __init__(self, tap: "Tap", connection: Connection) -> None:
        self.tap = tap
        self.connection = connection
        self._on_pause: Callable[[bool], None] | None = None
        self._backlog: deque[tuple[int, bytes, int]] = deque()
        self._closed = False
        self._slot = tap.enter(connection)
        self.directions: tuple[TurnTap, TurnTap] | tuple[CountingTap, CountingTap]
        if self._slot is None or connection.path is not Path.RELAY:
            self.directions = (CountingTap(), CountingTap())
        else:
            up = TurnTap(self, self._slot << 1, tap.settings.turn_head)
            down = TurnTap(self, self._slot << 1 | 1, tap.settings.turn_head)
            up.other, down.other = down, up
            self.directions = (up, down)
        if self._slot is not None:
            self.control(self._slot << 1, b"", OPEN)

    @property
    def on_pause(self) -> Callable[[bool], None] | None:
        """Who stops reading while the ring has no room."""
        return self._on_pause

    @on_pause.setter
    def on_pause(self, on_pause: Callable[[bool], None] | None) -> None:
        self._on_pause = on_pause
        if on_pause is not None and self._backlog and self.tap.settings.on_overload == "pause":
            on_pause(True)  # the ring was full when the connection was opened

    def copy(self, direction: Direction, data: bytes) -> None:
        """Copy a chunk that was forwarded. The pump calls the direction's own ``copy`` instead."""
        self.directions[direction].copy(data)

    def reroute(self, server: Endpoint, domain: str | None) -> None:
        """What follows goes to another server (forward proxy, reverse listener)."""
        for direction in self.directions:
            direction.end_turn()
        if self._slot is not None:
            self.control(self._slot << 1, self.tap.encode([server.host, server.port, domain]), ROUTE)

    def close(self, closed: Closed) -> None:
        """The connection is over. ``closed.missing`` is filled in here, the rest is taken as given."""
        for direction in self.directions:
            direction.end_turn()
            if direction.missing:
                direction.end()  # declares the hole while the slot is still ours
        if self._slot is None:
            return
        missing = self.directions[0].missing + self.directions[1].missing
        self._closed = True
        self.control(self._slot << 1, self.tap.encode(dataclasses.replace(closed, missing=missing)), CLOSE)
        if not self._backlog:
            self._leave()

    def control(self, stream: int, payload: bytes, kind: int) -> None:
        """Publish a control record, now or when there is room."""
        if self._backlog or not self.tap.put(stream, payload, kind):
            self._wait(stream, payload, kind)

    def refused(self, direction: TurnTap, stream: int, data: bytes) -> None:
        """A chunk found the ring full: it is missing, or it waits."""
        if self.tap.settings.on_overload == "gap":
            direction.missing += len(data)
        else:
            self._wait(stream, data, DATA)

    def retry(self) -> bool:
        """Publish what waits; whether all of it found room."""
        while self._backlog:
            if not self.tap.put(*self._backlog[0]):
                return False
            self._backlog.popleft()
        for direction in self.directions:
            if isinstance(direction, TurnTap):
                direction.put = self.tap.put
        if self._closed:
            self._leave()
        elif self._on_pause:
            self._on_pause(False)
        return True

    def _wait(self, stream: int, data: bytes, kind: int) -> None:
        self._backlog.append((stream, data, kind))
        if len(self._backlog) > 1:
            return
        for direction in self.directions:
            if isinstance(direction, TurnTap):
                direction.put = self._put_behind
        self.tap.wait(self)
        if self._on_pause and self.tap.settings.on_overload == "pause":
            self._on_pause(True)

    def _put_behind(self, stream: int, data: "bytes | memoryview", kind: int) -> bool:
        """Stand in for the ring's ``put`` while records of this line wait."""
        if self.tap.settings.on_overload == "pause":
            self._backlog.append((stream, bytes(data), kind))
            return True
        backlog, missing = self._backlog, len(data)
        self.tap.ring.count_dropped(missing)
        # One hole per direction at the end, however often the two take turns: the backlog must not grow with traffic.
        for back in range(-1, -min(2, len(backlog)) - 1, -1):
            earlier, payload, what = backlog[back]
            if what != HOLE:
                break
            if earlier == stream:
                missing += HOLE_PAYLOAD.unpack(payload)[0]
                backlog[back] = (stream, HOLE_PAYLOAD.pack(missing, BY_FULL_RING), HOLE)
                return False
        backlog.append((stream, HOLE_PAYLOAD.pack(missing, BY_FULL_RING), HOLE))
        return False

    def _leave(self) -> None:
        if self._slot is not None:
            self.tap.leave(self._slot)
            self._slot = None


class Tap:
    """All lines of one relay, and its ring. ``untracked`` counts connections that found no slot."""

    def __init__(self, settings: TapSettings, index: int) -> None:
        self.settings = settings
        self.ring = RingWriter(
            settings.directory, index, settings.ring_bytes, settings.slots, gaps=settings.on_overload == "gap"
        )
        self.put = self.ring.put
        self.encode = msgspec.msgpack.Encoder().encode
        self.long_turns: set[TurnTap] = set()
        self.untracked = 0
        self._waiting: dict[TapLine, None] = {}  # in the order in which they began to wait

    def open(self, connection: Connection) -> TapLine:
        """A line for a connection that was just accepted."""
        return TapLine(self, connection)

    def enter(self, connection: Connection) -> int | None:
        """A slot for a connection, None when the table is full."""
        slot = self.ring.take_slot(connection)
        if slot is None:
            self.untracked += 1
        return slot

    def leave(self, slot: int) -> None:
        """The connection's CLOSE is published."""
        self.ring.rest_slot(slot)

    def wait(self, line: TapLine) -> None:
        """Try this line again soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(RETRY, self._retry)
        self._waiting[line] = None

    def sweep(self) -> None:
        """Show the tails of long turns that nobody has answered yet. Called every ``SWEEP`` seconds."""
        for turn in self.long_turns:
            turn.show_tail()
        self.long_turns.clear()

    def close(self) -> None:
        """Nothing follows. Lines that are still open are the reader's to end."""
        self.ring.finish()

    def _retry(self) -> None:
        for line in list(self._waiting):
            if not line.retry():
                break  # still full: thousands that wait must not each ask again every few milliseconds
            del self._waiting[line]
        if self._waiting:
            asyncio.get_running_loop().call_later(RETRY, self._retry)
