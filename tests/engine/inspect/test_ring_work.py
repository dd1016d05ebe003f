"""Reading a ring: every exchange exactly once, whatever dies and whenever."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissectors.http1 import SPEC as HTTP1
from appliance.dissectors.kit.spec import Capture
from appliance.engine.inspect import resume
from appliance.engine.inspect.knowledge import Knowledge
from appliance.engine.inspect.ring_work import RingWork
from appliance.engine.relay.tap import Tap
from appliance.engine.ring.reader import RingReader
from appliance.engine.settings import TapSettings
from appliance.model.connection import Closed, Connection, ConnectionRecord, End
from appliance.model.connection import Path as Depth
from appliance.model.direction import TO_CLIENT, TO_SERVER
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Exchange, completeness
from tests.engine.inspect import toy

CLOSED = Closed(5, End.CLOSED, 0, 0)


class Rows:
    """A sink that knows what was committed: ``pending`` is lost with the inspector, ``stored`` is not."""

    def __init__(self) -> None:
        self.stored: list[Exchange] = []
        self.closed: list[ConnectionRecord] = []
        self.pending: list[Exchange | ConnectionRecord] = []
        self.note = b""

    def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> None:
        self.pending.append(exchange)

    def connection(self, record: ConnectionRecord) -> None:
        self.pending.append(record)

    def commit(self, work: RingWork) -> None:
        checkpoint = work.checkpoint()
        for row in self.pending:
            if isinstance(row, Exchange):
                self.stored.append(row)
            elif row.closed is not None:
                self.closed.append(row)
        self.pending.clear()
        self.note = checkpoint.resume
        work.reader.release(checkpoint.tail)

    def crash(self) -> None:
        self.pending.clear()


def inspector(tap: Tap, rows: Rows) -> RingWork:
    left = resume.decode(rows.note) if rows.note else resume.START
    return RingWork(RingReader(tap.ring.path), rows, Knowledge([toy.SPEC, HTTP1], {}, 100), Capture(), left)


def new_tap(directory: Path, **changes: object) -> Tap:
    defaults = {"ring_bytes": 1 << 20, "slots": 64}
    return Tap(TapSettings(directory=directory, **(defaults | changes)), 0)  # type: ignore[arg-type]


def connection(depth: Depth = Depth.RELAY) -> Connection:
    return Connection(os.urandom(16), 1, "mixed", Endpoint("192.0.2.2", 1), Endpoint("192.0.2.1", 7), depth)


# One step: which connection, what happens there, and how much of it. Few connections, and readers that mostly keep up,
# so that commits and crashes meet messages half-way.
WHAT = ["ask", "ask", "answer", "answer", "up", "down", "down", "read", "read", "commit", "commit", "crash", "close"]
steps = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(WHAT), st.integers(1, 40)), min_size=20, max_size=100)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_every_exchange_is_stored_exactly_once_across_any_crashes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    play(new_tap(tmp_path_factory.mktemp("ring")), Talk, steps)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_pipelined_http_is_stored_exactly_once_across_any_crashes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    play(new_tap(tmp_path_factory.mktemp("ring")), HttpTalk, steps)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_bulky_answers_are_stored_exactly_once_across_any_crashes_although_most_of_them_was_not_copied(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    play(new_tap(tmp_path_factory.mktemp("ring"), turn_head=150, turn_tail=20), BulkyTalk, steps)


def play(tap: Tap, kind: "type[Talk]", steps: list[tuple[int, str, int]]) -> None:
    """Let clients and servers talk, inspectors read, commit and die as the steps say; compare what is stored."""
    rows = Rows()
    work = inspector(tap, rows)
    expected: Counter[tuple[str, str]] = Counter()
    opened = 0
    talks: dict[int, Talk] = {}
    for which, what, amount in steps:
        if what == "crash":
            rows.crash()
            work.reader.close()
            work = inspector(tap, rows)
            continue
        if what == "read":
            work.step(amount * 20 if amount < 10 else 1 << 30)
            continue
        if what == "commit":
            while work.replaying:
                work.step(1 << 30)
            rows.commit(work)
            continue
        if which not in talks:
            opened += 1
            talks[which] = kind(tap, opened)
        talk = talks[which]
        if what == "close":
            talk.finish(expected)
            del talks[which]
        else:
            talk.do(what, amount)
    for talk in talks.values():
        talk.finish(expected)
    work.step(1 << 30)
    rows.commit(work)
    assert Counter(kind.seen(row) for row in rows.stored if row.response_head or row.protocol == "toy") == expected
    assert len(rows.closed) == len({record.connection.id for record in rows.closed}) == opened


class Talk:
    """A client and a server that pipeline lines; bytes reach the tap in arbitrary pieces."""

    def __init__(self, tap: Tap, number: int) -> None:
        self.line = tap.open(connection())
        self.number = number
        self.asked = 0
        self.answered = 0
        self.waiting = [b"", b""]
        self.shown = [0, 0]
        self.written = [b"", b""]

    pipelines = True

    @staticmethod
    def seen(row: Exchange) -> tuple[str, str]:
        return row.target, row.status

    def request(self) -> bytes:
        return b"q %d.%d\n" % (self.number, self.asked)

    def response(self) -> bytes:
        return b"a %d.%d\n" % (self.number, self.answered)

    def do(self, what: str, amount: int) -> None:
        if what == "ask":
            for _ in range(amount % 3 + 1 if self.pipelines else self.asked == self.answered):
                self._show(TO_CLIENT, 0 if self.pipelines else 1 << 20)
                self.asked += 1
                self.waiting[TO_SERVER] += self.request()
        elif what == "answer":
            self._show(TO_SERVER, 1 << 20)
            if self.answered < self.asked:
                self.answered += 1
                self.waiting[TO_CLIENT] += self.response()
        else:
            self._show(TO_SERVER if what == "up" else TO_CLIENT, amount)

    def finish(self, expected: Counter[tuple[str, str]]) -> None:
        self._show(TO_SERVER, 1 << 20)
        self._show(TO_CLIENT, 1 << 20)
        self.line.close(CLOSED)
        for number in range(1, self.answered + 1):
            expected[self.pair(f"{self.number}.{number}")] += 1

    def pair(self, label: str) -> tuple[str, str]:
        return f"q {label}", f"a {label}"

    def _show(self, direction: int, amount: int) -> None:
        piece, self.waiting[direction] = self.waiting[direction][:amount], self.waiting[direction][amount:]
        if piece:
            self.line.directions[direction].copy(piece)


class HttpTalk(Talk):
    """The same in HTTP/1.1, with bodies."""

    def request(self) -> bytes:
        body = b"x" * (self.asked % 7)
        head = b"POST /%d.%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (self.number, self.asked, len(body))
        return head + body

    def response(self) -> bytes:
        body = b"y" * (self.answered % 50)
        return b"HTTP/1.1 200 OK\r\nX-Label: %d.%d\r\nContent-Length: %d\r\n\r\n%s" % (
            self.number,
            self.answered,
            len(body),
            body,
        )

    @staticmethod
    def seen(row: Exchange) -> tuple[str, str]:
        return row.target, row.response_head.split(b"X-Label: ")[1].split(b"\r\n")[0].decode()

    def pair(self, label: str) -> tuple[str, str]:
        return f"/{label}", label


class BulkyTalk(HttpTalk):
    """One request at a time; answers of which the tap copies only the ends."""

    pipelines = False

    def response(self) -> bytes:
        body = b"y" * (300 + self.answered)
        return b"HTTP/1.1 200 OK\r\nX-Label: %d.%d\r\nContent-Length: %d\r\n\r\n%s" % (
            self.number,
            self.answered,
            len(body),
            body,
        )


def test_a_message_that_never_ends_does_not_hold_the_ring(tmp_path: Path) -> None:
    tap = new_tap(tmp_path, ring_bytes=256 * 1024, turn_head=1 << 30)
    rows = Rows()
    work = inspector(tap, rows)
    endless, busy = Talk(tap, 1), Talk(tap, 2)
    endless.line.copy(TO_SERVER, b"q never ends")
    for _ in range(2000):
        busy.line.copy(TO_SERVER, b"q" * 99 + b"\n")
        busy.line.copy(TO_CLIENT, b"a" * 99 + b"\n")
        work.step(1 << 30)
        rows.commit(work)
    assert tap.ring.dropped == (0, 0)
    assert len(rows.stored) == 2000
    rows.crash()
    work = inspector(tap, rows)
    endless.line.copy(TO_SERVER, b" really\nq next\n")
    endless.line.copy(TO_CLIENT, b"a next\n")
    work.step(1 << 30)
    rows.commit(work)
    assert rows.stored[-1].status == "a next"
    assert completeness(rows.stored[-1].missing) == "mid-stream"
    assert {row.missing for row in rows.stored[:-1]} == {0}


def test_an_opaque_connection_is_one_row_and_no_exchange(tmp_path: Path) -> None:
    tap = new_tap(tmp_path)
    rows = Rows()
    work = inspector(tap, rows)
    line = tap.open(connection(Depth.OPAQUE))
    line.copy(TO_SERVER, b"q 1\n")
    line.close(CLOSED)
    work.step(1 << 30)
    rows.commit(work)
    assert rows.stored == []
    assert [record.protocol for record in rows.closed] == ["tcp"]


def test_bytes_of_an_unknown_protocol_are_a_connection_without_exchanges(tmp_path: Path) -> None:
    tap = new_tap(tmp_path)
    rows = Rows()
    work = inspector(tap, rows)
    line = tap.open(connection())
    line.copy(TO_CLIENT, b"220 hello\r\n")
    line.copy(TO_SERVER, b"EHLO\r\n")
    line.close(CLOSED)
    work.step(1 << 30)
    rows.commit(work)
    assert rows.stored == []
    assert rows.closed[0].protocol == "tcp"


def test_a_connection_that_stays_open_gets_a_row_after_a_while(tmp_path: Path) -> None:
    tap = new_tap(tmp_path)
    rows = Rows()
    work = inspector(tap, rows)
    tap.open(connection())
    work.step(1 << 30)
    work.announce(500_000_000)
    assert rows.pending == []
    work.announce(2_000_000_000)
    work.announce(3_000_000_000)
    assert [row.closed for row in rows.pending if isinstance(row, ConnectionRecord)] == [None]


def test_what_a_dead_relay_left_open_is_ended_as_lost(tmp_path: Path) -> None:
    tap = new_tap(tmp_path)
    rows = Rows()
    work = inspector(tap, rows)
    talk = Talk(tap, 1)
    talk.do("ask", 0)
    talk.do("up", 100)
    work.step(1 << 30)
    work.abandon(9)
    rows.commit(work)
    assert [record.closed.end for record in rows.closed if record.closed] == [End.LOST]


def test_exchanges_after_a_change_of_server_carry_the_new_one(tmp_path: Path) -> None:
    tap = new_tap(tmp_path)
    rows = Rows()
    work = inspector(tap, rows)
    line = tap.open(connection())
    line.reroute(Endpoint("198.51.100.1", 81), "shop.example")
    line.copy(TO_SERVER, b"q 1\n")
    line.copy(TO_CLIENT, b"a 1\n")
    line.close(CLOSED)
    work.step(1 << 30)
    rows.commit(work)
    assert rows.stored[0].domain == "shop.example"
    assert rows.closed[0].connection.server == Endpoint("198.51.100.1", 81)


def test_a_fault_of_ours_costs_one_connection_its_understanding_and_no_other(tmp_path: Path) -> None:
    class Faulty(Rows):
        def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> None:
            if exchange.target == "q 1.1":
                raise ZeroDivisionError("a fault of ours")
            super().exchange(exchange, connection, id)

    tap = new_tap(tmp_path)
    rows = Faulty()
    work = inspector(tap, rows)
    first, second = Talk(tap, 1), Talk(tap, 2)
    for talk in (first, second):
        for _ in range(2):
            talk.do("ask", 0)
            talk.do("answer", 0)
            talk.do("down", 100)
    expected: Counter[tuple[str, str]] = Counter()
    first.finish(expected)
    second.finish(expected)
    work.step(1 << 30)
    rows.commit(work)
    assert work.failures == 1
    assert [row.target for row in rows.stored] == ["q 2.1", "q 2.2"]
    assert len(rows.closed) == 2
