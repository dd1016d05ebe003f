"""One connection being understood: find out what it speaks, dissect it, fold it into exchanges.

Also keeps, per direction, where in the ring the bytes lie that an unfinished message still needs. An inspector that
dies leaves those positions with the rows it committed; the next one feeds a fresh dissector from exactly there.
"""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from appliance.dissectors.kit.detect import UNDECIDED, Detection
from appliance.dissectors.kit.spec import NEVER, Capture, Dissector, Event, Fold, ProtocolSpec, Switched
from appliance.model.connection import Closed, Connection, ConnectionRecord
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Exchange, Missing

RAW = "tcp"


class Pin(NamedTuple):
    """Where a direction resumes: the ring position of a chunk, and how many of its bytes are not needed."""

    position: int
    skip: int


class Inspection:
    """The understanding of one connection.

    ``pins`` from an earlier inspector say which bytes of each direction to take up; everything before ``after`` was
    accounted for. ``mid_stream`` says that a message was under way whose beginning is gone.
    """

    __slots__ = (
        "_after",
        "_capture",
        "_detection",
        "_dissector",
        "_ended",
        "_fold",
        "_held",
        "_joined_late",
        "_marks",
        "_pins",
        "_received",
        "connection",
        "exchanges",
        "let_go",
        "noted",
        "protocol",
        "slot",
    )

    def __init__(
        self,
        slot: int,
        connection: Connection,
        detection: Detection | None,
        capture: Capture,
        *,
        after: int = 0,
        pins: tuple[Pin | None, Pin | None] = (None, None),
    ) -> None:
        self.slot = slot
        self.connection = connection
        self.protocol = RAW
        self.exchanges = 0
        self.let_go = False
        self._joined_late = False
        self.noted = ""  # what the ring's table says that this connection speaks
        self._capture = capture
        self._detection = detection
        self._held: list[tuple[Direction, bytes, int]] = []
        self._dissector: Dissector | None = None
        self._fold: Fold | None = None
        self._received = [0, 0]
        self._marks: tuple[deque[tuple[int, int]], deque[tuple[int, int]]] = (deque(), deque())
        self._ended = [False, False]
        self._after = after
        self._pins = pins

    @property
    def speaks(self) -> str:
        """What a later inspector should take this connection for; empty while that is open.

        A connection that left its protocol (Upgrade, CONNECT), or whose framing was lost for good, is opaque then.
        """
        if self._detection is not None:
            return ""
        dissector = self._dissector
        if dissector is not None:
            for direction in (TO_SERVER, TO_CLIENT):
                if not self._ended[direction] and dissector.unfinished(direction) == NEVER:
                    return RAW
        return self.protocol

    def speak(self, spec: ProtocolSpec) -> None:
        """It is known what this connection speaks."""
        self.protocol = spec.name
        self._detection = None
        self._dissector = spec.new(self._capture)
        self._fold = spec.fold()

    def receive(self, direction: Direction, data: bytes, at: int, position: int) -> Sequence[Exchange]:
        """A chunk at a ring position; the exchanges it completes."""
        if position < self._after:
            pin = self._pins[direction]
            if pin is None or position < pin.position:
                return ()
            if position == pin.position:
                data = data[pin.skip :]
        if self._dissector is None and self._detection is None:
            self._received[direction] += len(data)
            return ()
        self._marks[direction].append((self._received[direction], position))
        self._received[direction] += len(data)
        if self._dissector is None:
            return self._detect(direction, data, at)
        events = self._dissector.receive(direction, data, at)
        if len(events) == 1 and self._fold is not None and type(events[0]) is not Switched:
            return self._fold.add(events[0])  # nearly always
        return self._add(events)

    def lose(self, direction: Direction, count: int, at: int, position: int) -> Sequence[Exchange]:
        """Bytes that were relayed and not copied."""
        if position < self._after:
            pin = self._pins[direction]
            if pin is None or position < pin.position:
                return ()
            if position == pin.position:
                count -= pin.skip
        self._marks[direction].append((self._received[direction], position))
        self._received[direction] += count
        if self._dissector is not None:
            return self._add(self._dissector.lose(direction, count, at))
        if self._detection is not None:
            self._opaque()  # the first bytes are gone: what it speaks cannot be told any more
        return ()

    def end(self, direction: Direction, at: int, position: int) -> Sequence[Exchange]:
        """A direction reached its end of file."""
        if self._ended[direction] or (position < self._after and self._pins == (None, None)):
            return ()
        self._ended[direction] = True
        if self._dissector is None:
            return ()
        return self._add(self._dissector.close(direction, at))

    def route(self, server: Endpoint, domain: str | None) -> None:
        """What follows goes to this server."""
        source = self.connection.domain_source
        if domain is not None and source is None:
            source = "host"
        self.connection = dataclasses.replace(
            self.connection, server=server, domain=domain or self.connection.domain, domain_source=source
        )

    def close(self, at: int) -> Sequence[Exchange]:
        """The connection is over: what was left unfinished."""
        done = [*self.end(TO_SERVER, at, self._after), *self.end(TO_CLIENT, at, self._after)]
        if self._fold is not None:
            done += self._fold.close(at)
        return done

    def begin_mid_stream(self, at: int) -> None:
        """The beginning of a message is gone: let the dissector find the next one."""
        self._joined_late = True
        if self._dissector is not None:
            for direction in (TO_SERVER, TO_CLIENT):
                self._received[direction] += 1
                self._add(self._dissector.lose(direction, 1, at))

    def give_up(self) -> None:
        """Understand nothing of this connection any more; it is still counted and its end recorded."""
        self._dissector = None
        self._fold = None
        self.protocol = RAW
        self._opaque()

    def complete(self, exchange: Exchange) -> Exchange:
        """Count an exchange and add what only the connection knows."""
        self.exchanges += 1
        connection = self.connection
        if exchange.domain is None:
            if connection.domain is not None:
                exchange = exchange._replace(domain=connection.domain)
        elif self.exchanges == 1 and connection.domain is None and not _is_address(exchange.domain):
            self.connection = dataclasses.replace(connection, domain=exchange.domain, domain_source="host")
        if self._joined_late:
            self._joined_late = False
            exchange = exchange._replace(missing=exchange.missing | Missing.MID_STREAM)
        if connection.headers_only:
            exchange = exchange._replace(missing=exchange.missing | Missing.NOT_RECORDED)
        return exchange

    def record(self, closed: Closed | None) -> ConnectionRecord:
        """The connection's row."""
        return ConnectionRecord(self.connection, closed, self.protocol, self.exchanges)

    def pins(self) -> tuple[Pin | None, Pin | None]:
        """What an unfinished message needs, per direction; None where nothing does. Forgets what is not needed."""
        return self._pin(TO_SERVER), self._pin(TO_CLIENT)

    def _pin(self, direction: Direction) -> Pin | None:
        marks = self._marks[direction]
        if not marks:
            return None
        needed = self._needed(direction)
        while len(marks) > 1 and marks[1][0] <= needed:
            marks.popleft()
        if needed >= self._received[direction]:
            marks.clear()
            return None
        start, position = marks[0]
        skip = max(0, needed - start)
        pin = self._pins[direction]
        if pin is not None and position == pin.position:
            skip += pin.skip  # the chunk was entered in its middle
        return Pin(position, skip)

    def _needed(self, direction: Direction) -> int:
        if self._dissector is None or self._fold is None:
            return self._received[direction] if self._detection is None else 0
        needed = self._dissector.unfinished(direction)
        unpaired = self._fold.unfinished(direction)
        return needed if unpaired is None else min(needed, unpaired)

    def _detect(self, direction: Direction, data: bytes, at: int) -> Sequence[Exchange]:
        assert self._detection is not None
        verdict = self._detection.feed(direction, data)
        if verdict is UNDECIDED:
            self._held.append((direction, data, at))
            return ()
        if verdict is None:
            self._opaque()
            return ()
        self.speak(verdict)
        assert self._dissector is not None
        done: list[Exchange] = []
        for held in [*self._held, (direction, data, at)]:
            done += self._add(self._dissector.receive(*held))
        self._held.clear()
        return done

    def _opaque(self) -> None:
        self._detection = None
        self._held.clear()
        for marks in self._marks:
            marks.clear()

    def _add(self, events: Sequence[Event]) -> Sequence[Exchange]:
        fold = self._fold
        if fold is None or not events:
            return ()
        done: list[Exchange] = []
        for event in events:
            if type(event) is Switched:
                self.protocol = event.protocol or self.protocol
            done += fold.add(event)
        return done


def _is_address(domain: str) -> bool:
    return Endpoint(domain.strip("[]"), 0).is_literal
