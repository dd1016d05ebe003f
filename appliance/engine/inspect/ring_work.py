"""Everything one inspector does with one ring: dispatch its records, keep its connections, say what may be released.

``checkpoint`` is the contract with a crash: the rows taken before it, its position and its resume blob become durable
together; only then is the ring released up to its tail.
"""

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from appliance.dissectors.kit.spec import Capture
from appliance.engine.inspect import resume
from appliance.engine.inspect.inspection import Inspection
from appliance.engine.inspect.knowledge import Knowledge
from appliance.engine.ring.layout import BY_FULL_RING, CLOSE, DATA, END, HOLE, HOLE_PAYLOAD, OPEN, ROUTE
from appliance.engine.ring.reader import Entry, RingReader
from appliance.model.connection import Closed, Connection, ConnectionRecord, End, Path
from appliance.model.direction import TO_CLIENT, TO_SERVER
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Exchange
from appliance.model.identity import uuid7
from appliance.observe.logging import get_logger

log = get_logger("inspector")

ANNOUNCE_AFTER = 1_000_000_000  # ns a connection lives before it has a row although it is open

_DIRECTIONS = (TO_SERVER, TO_CLIENT)


class Sink(Protocol):
    """Where what was understood goes; ``record.Recorder`` behind a counter."""

    def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> None:
        """One finished exchange."""

    def connection(self, record: ConnectionRecord) -> None:
        """A connection that ended, or that has been open for a while."""


class Checkpoint(NamedTuple):
    """``resume``: how far the rows go and what is unfinished; ``tail``: what may be released once they are durable."""

    resume: bytes
    tail: int


class RingWork:
    """The reading end of one ring, taking up where ``left`` says that the last commit stood."""

    def __init__(
        self, reader: RingReader, sink: Sink, knowledge: Knowledge, capture: Capture, left: resume.Resume
    ) -> None:
        self.reader = reader
        self.gap_bytes = 0
        self.failures = 0
        self.last_at = 0
        self._sink = sink
        self._knowledge = knowledge
        self._capture = capture
        self._after = left.position  # everything before was accounted for by an earlier inspector
        self._resume = left.pins
        self._inspections: dict[int, Inspection] = {}
        self._touched: dict[int, Inspection] = {}
        self._young: dict[int, Inspection] = {}
        self._decode_closed = msgspec.msgpack.Decoder(Closed).decode
        self._decode_route = msgspec.msgpack.Decoder(tuple[str, int, str | None]).decode

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._inspections)

    def step(self, budget: int) -> bool:
        """Work through about ``budget`` bytes of the ring; whether there was anything."""
        before = self.reader.position
        inspections = self._inspections
        touched = self._touched
        for entry in self.reader.read(budget):
            kind, stream, at, position, data = entry
            if kind != DATA:
                try:
                    self._control(entry)
                except Exception as error:
                    self._give_up(inspections.get(stream >> 1), error)
                    if kind == CLOSE and stream >> 1 in inspections:
                        closed = Closed(at, End.LOST, 0, 0, -1, "how it ended could not be read")
                        self._closed(inspections[stream >> 1], closed, at)
                continue
            slot = stream >> 1
            inspection = inspections.get(slot)
            if inspection is None:
                inspection = self._adopt(slot, at)
                if inspection is None:
                    continue
            touched[slot] = inspection
            try:
                done = inspection.receive(_DIRECTIONS[stream & 1], data, at, position)
                if done:
                    self._finished(inspection, done)
            except Exception as error:
                self._give_up(inspection, error)
            self.last_at = at
        return self.reader.position != before

    def announce(self, now_ns: int) -> None:
        """Give connections that have been open for a while a row of their own."""
        for slot, inspection in list(self._young.items()):
            if now_ns - inspection.connection.opened_ns < ANNOUNCE_AFTER:
                break  # they are in the order in which they opened
            del self._young[slot]
            self._sink.connection(inspection.record(None))

    def obey(self, knowledge: Knowledge, capture: Capture) -> None:
        """Take new settings for connections that open from now on."""
        self._knowledge = knowledge
        self._capture = capture

    @property
    def replaying(self) -> bool:
        """Whether what an earlier inspector had read is still being read again: no checkpoint until that is over."""
        return self.reader.position < self._after

    def checkpoint(self) -> Checkpoint:
        """Where a commit now would stand."""
        position = self.reader.position
        oldest_kept = position - self.reader.size // 2
        tail = position
        pins: dict[int, resume.Pins | None] = {}
        for slot, inspection in list(self._touched.items()):
            speaks = inspection.speaks
            if speaks != inspection.noted:
                inspection.noted = speaks
                self.reader.note(slot, speaks.encode("ascii", "replace"))
            pair = inspection.pins()
            starts = [pin.position for pin in pair if pin is not None]
            if not starts:
                inspection.let_go = False
                del self._touched[slot]
                continue
            if inspection.let_go or min(starts) < oldest_kept:
                # A message that has been under way for half a ring must not fill it: should we die now, its
                # beginning is gone and the record says so.
                inspection.let_go = True
                pins[slot] = None
                continue
            pins[slot] = pair
            tail = min(tail, *starts)
        return Checkpoint(resume.encode(position, pins), tail)

    def abandon(self, at: int) -> None:
        """The writer is gone without a word: end what it left open."""
        for inspection in list(self._inspections.values()):
            closed = Closed(at, End.LOST, 0, 0, -1, "the relay process died")
            self._closed(inspection, closed, at)

    def _control(self, entry: Entry) -> None:
        kind, stream, at, position, data = entry
        slot, direction = stream >> 1, _DIRECTIONS[stream & 1]
        if kind == OPEN:
            self._adopt(slot, at)
            return
        inspection = self._inspections.get(slot) or self._adopt(slot, at)
        if inspection is None:
            return
        if kind == HOLE:
            count, why = HOLE_PAYLOAD.unpack(data)
            if why == BY_FULL_RING and position >= self._after:
                self.gap_bytes += count
            self._touched[slot] = inspection
            self._finished(inspection, inspection.lose(direction, count, at, position))
        elif kind == END:
            self._finished(inspection, inspection.end(direction, at, position))
        elif kind == ROUTE:
            host, port, domain = self._decode_route(data)
            inspection.route(Endpoint(host, port), domain)
        elif kind == CLOSE:
            if position < self._after:
                self._forget(slot)  # its row is written
            else:
                self._closed(inspection, self._decode_closed(data), at)

    def _adopt(self, slot: int, at: int) -> Inspection | None:
        """Begin to understand the connection in this slot; None when the slot says nothing sensible."""
        try:
            connection = self.reader.connection(slot)
        except (msgspec.DecodeError, ValueError):
            return None
        known = self.reader.noted(slot).decode("ascii", "replace")
        gone = slot in self._resume and self._resume[slot] is None
        pins = self._resume.get(slot) or (None, None)
        spec = self._knowledge.spec(known)
        detection = None
        if connection.path is Path.RELAY and spec is None and not known:
            detection = self._knowledge.detection(connection)
        capture = self._capture
        if connection.headers_only:
            capture = dataclasses.replace(capture, headers_only=True)
        inspection = Inspection(slot, connection, detection, capture, after=self._after, pins=pins)
        if spec is not None:
            inspection.speak(spec)
            if gone:
                inspection.begin_mid_stream(at)
        inspection.noted = known
        self._inspections[slot] = inspection
        if self.reader.position > self._after:
            self._young[slot] = inspection
        return inspection

    def _finished(self, inspection: Inspection, done: Sequence[Exchange]) -> None:
        for exchange in done:
            if not inspection.exchanges:
                self._knowledge.learn(inspection.connection.server, inspection.protocol)
            exchange = inspection.complete(exchange)
            self._sink.exchange(exchange, inspection.connection, uuid7(exchange.started_ns, random.getrandbits(62)))

    def _closed(self, inspection: Inspection, closed: Closed, at: int) -> None:
        self._finished(inspection, inspection.close(at))
        self._forget(inspection.slot)
        if not closed.closed_ns:
            closed = dataclasses.replace(closed, closed_ns=at)
        self._sink.connection(inspection.record(closed))

    def _give_up(self, inspection: Inspection | None, error: Exception) -> None:
        """A fault of ours in understanding one connection: it is opaque from here on, the others go on.

        Without this the next inspector would read the same bytes and die of them again.
        """
        self.failures += 1
        connection = inspection.connection.id.hex() if inspection else None
        log.error("a connection could not be understood", connection=connection, error=repr(error), exc_info=error)
        if inspection is not None:
            inspection.give_up()

    def _forget(self, slot: int) -> None:
        self._inspections.pop(slot, None)
        self._touched.pop(slot, None)
        self._young.pop(slot, None)
        self._resume.pop(slot, None)
