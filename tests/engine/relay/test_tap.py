"""The tap: exact totals, heads and tails of every turn, holes of exactly the size that was not copied."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.relay.tap import Tap
from appliance.engine.ring.layout import BY_FULL_RING, BY_TURN_CAP, CLOSE, DATA, END, HOLE, HOLE_PAYLOAD, OPEN, ROUTE
from appliance.engine.ring.reader import RingReader
from appliance.engine.settings import TapSettings
from appliance.model.connection import Closed, Connection, End
from appliance.model.connection import Path as Depth
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.endpoint import Endpoint

HEAD, TAIL = 1000, 300
CLOSED = Closed(5, End.CLOSED, 0, 0)


def tap(directory: Path, **changes: object) -> Tap:
    defaults = {"ring_bytes": 1 << 20, "slots": 64, "turn_head": HEAD, "turn_tail": TAIL}
    return Tap(TapSettings(directory=directory, **(defaults | changes)), 0)  # type: ignore[arg-type]


def connection(depth: Depth = Depth.RELAY) -> Connection:
    return Connection(os.urandom(16), 1, "mixed", Endpoint("192.0.2.2", 1), Endpoint("192.0.2.1", 80), depth)


def records(reader: RingReader) -> list[tuple[int, int, bytes]]:
    return [(entry.kind, entry.stream & 1, entry.data) for entry in reader.read(1 << 60)]


turns = st.lists(
    st.tuples(st.sampled_from(Direction), st.lists(st.integers(1, 3000), min_size=1, max_size=4)), max_size=12
)


@settings(max_examples=100, deadline=None)
@given(turns)
def test_each_turn_shows_its_head_its_tail_and_the_exact_hole_between(
    tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[Direction, list[int]]]
) -> None:
    mine = tap(tmp_path_factory.mktemp("ring"))
    line = mine.open(connection())
    sent: list[tuple[Direction, bytes]] = []
    last: dict[int, int] = {}
    for direction, chunks in turns:
        whole = b"".join(os.urandom(size) for size in chunks)
        if sent and sent[-1][0] is direction:
            sent[-1] = (direction, sent[-1][1] + whole)
        else:
            sent.append((direction, whole))
        last[len(sent) - 1] = chunks[-1]
        for size in chunks:
            line.copy(direction, whole[:size])
            whole = whole[size:]
    line.close(CLOSED)
    got = records(RingReader(mine.ring.path))
    assert got[0][0] == OPEN
    assert got[-1][0] == CLOSE
    pieces = [entry for entry in got if entry[0] in (DATA, HOLE)]
    for number, (direction, whole) in enumerate(sent):
        offset = 0
        while offset < len(whole):
            kind, where, data = pieces.pop(0)
            assert where == direction
            if kind == DATA:
                assert whole[offset : offset + len(data)] == data
                offset += len(data)
            else:
                count, why = HOLE_PAYLOAD.unpack(data)
                assert why == BY_TURN_CAP
                assert offset >= HEAD
                offset += count
                assert len(whole) - offset == min(TAIL, last[number], len(whole) - HEAD)
        assert offset == len(whole)
    assert not pieces
    up, down = line.directions
    assert (up.total, down.total) == tuple(
        sum(len(data) for direction, data in sent if direction is which) for which in (TO_SERVER, TO_CLIENT)
    )


def test_the_tail_of_a_long_turn_is_shown_even_if_nobody_answers(tmp_path: Path) -> None:
    mine = tap(tmp_path)
    reader = RingReader(mine.ring.path)
    line = mine.open(connection())
    line.copy(TO_CLIENT, b"h" * HEAD)
    line.copy(TO_CLIENT, b"t" * 500)
    assert [kind for kind, _, _ in records(reader)] == [OPEN, DATA]
    mine.sweep()
    assert records(reader) == [(HOLE, 1, HOLE_PAYLOAD.pack(500 - TAIL, BY_TURN_CAP)), (DATA, 1, b"t" * TAIL)]
    line.copy(TO_CLIENT, b"u" * 10)
    assert records(reader) == []
    line.directions[TO_CLIENT].end()
    assert records(reader) == [(DATA, 1, b"u" * 10), (END, 1, b"")]


def test_an_opaque_connection_is_counted_and_not_copied(tmp_path: Path) -> None:
    mine = tap(tmp_path)
    reader = RingReader(mine.ring.path)
    line = mine.open(connection(Depth.OPAQUE))
    line.copy(TO_SERVER, b"secret")
    line.close(CLOSED)
    assert [kind for kind, _, _ in records(reader)] == [OPEN, CLOSE]
    assert line.directions[TO_SERVER].total == 6


def test_a_new_server_is_told_between_the_bytes_of_the_old_and_the_new(tmp_path: Path) -> None:
    mine = tap(tmp_path)
    line = mine.open(connection())
    line.copy(TO_SERVER, b"one")
    line.reroute(Endpoint("198.51.100.1", 81), "shop.example")
    line.copy(TO_SERVER, b"two")
    kinds = records(RingReader(mine.ring.path))
    assert [kind for kind, _, _ in kinds] == [OPEN, DATA, ROUTE, DATA]
    assert msgspec.msgpack.decode(kinds[2][2]) == ["198.51.100.1", 81, "shop.example"]


async def test_overload_with_gaps_loses_bytes_but_never_the_end_of_a_connection(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=256 * 1024, turn_head=1 << 30)
    reader = RingReader(mine.ring.path)
    lines = [mine.open(connection()) for _ in range(20)]
    for _ in range(400):
        for line in lines:
            line.copy(TO_SERVER, b"x" * 1000)
    for line in lines:
        line.directions[TO_SERVER].end()
        line.close(CLOSED)
    got = []
    while sum(kind == CLOSE for kind, _, _ in got) < len(lines):
        got += records(reader)
        reader.release(reader.position)
        await asyncio.sleep(0.002)
    seen = sum(len(data) for kind, _, data in got if kind == DATA)
    holes = [HOLE_PAYLOAD.unpack(data) for kind, _, data in got if kind == HOLE]
    assert seen + sum(count for count, _ in holes) == 20 * 400 * 1000
    assert {why for _, why in holes} == {BY_FULL_RING}
    told = sum(msgspec.msgpack.decode(data, type=Closed).missing for kind, _, data in got if kind == CLOSE)
    assert told == sum(count for count, _ in holes)


async def test_overload_with_pause_stops_reading_and_loses_nothing(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=256 * 1024, turn_head=1 << 30, on_overload="pause")
    reader = RingReader(mine.ring.path)
    line = mine.open(connection())
    paused: list[bool] = []
    line.on_pause = paused.append
    sent = 0
    while not paused:
        line.copy(TO_SERVER, sent.to_bytes(4, "big") * 250)
        sent += 1
    line.copy(TO_CLIENT, b"already read when the pause came")
    assert paused == [True]
    got = []
    while paused[-1]:
        got += records(reader)
        reader.release(reader.position)
        await asyncio.sleep(0.002)
    line.close(CLOSED)
    got += records(reader)
    assert paused == [True, False]
    assert [data for kind, where, data in got if kind == DATA and where == TO_SERVER] == [
        number.to_bytes(4, "big") * 250 for number in range(sent)
    ]
    assert [kind for kind, _, _ in got if kind != DATA] == [OPEN, CLOSE]


async def test_bytes_that_wait_behind_a_control_record_are_counted_too(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=128 * 1024, turn_head=1 << 30)
    reader = RingReader(mine.ring.path)
    line = mine.open(connection())
    while mine.put(0, b"", ROUTE):  # until not even the room for control records is left
        pass
    line.reroute(Endpoint("198.51.100.1", 81), None)
    line.copy(TO_SERVER, b"x" * 1000)
    line.copy(TO_CLIENT, b"y" * 500)
    assert mine.ring.dropped == (2, 1500)
    line.close(CLOSED)
    got = []
    while not got or got[-1][0] != CLOSE:
        got += records(reader)
        reader.release(reader.position)
        await asyncio.sleep(0.002)
    holes = [(where, HOLE_PAYLOAD.unpack(data)[0]) for kind, where, data in got if kind == HOLE]
    assert holes == [(TO_SERVER, 1000), (TO_CLIENT, 500)]
    assert msgspec.msgpack.decode(got[-1][2], type=Closed).missing == 1500


async def test_what_waits_does_not_grow_with_the_traffic_that_is_missed(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=128 * 1024, turn_head=1 << 30)
    while mine.put(0, b"", ROUTE):
        pass
    line = mine.open(connection())
    for _ in range(1000):  # requests and their responses, while nobody reads the ring
        line.copy(TO_SERVER, b"x" * 10)
        line.copy(TO_CLIENT, b"y" * 20)
    waiting = [(stream & 1, HOLE_PAYLOAD.unpack(data)[0]) for stream, data, kind in line._backlog if kind == HOLE]
    assert waiting == [(TO_SERVER, 10_000), (TO_CLIENT, 20_000)]
    assert mine.ring.dropped[1] == 30_000


def test_what_one_connection_lost_is_not_declared_on_the_next_in_its_slot(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=256 * 1024, slots=1, turn_head=1 << 30)
    reader = RingReader(mine.ring.path)
    first = mine.open(connection())
    while not first.directions[TO_CLIENT].missing:
        first.copy(TO_CLIENT, b"x" * 1000)
    first.close(CLOSED)  # a reset: neither direction said that it ended
    kinds = [(kind, where) for kind, where, _ in records(reader)]
    assert kinds[-3:] == [(HOLE, TO_CLIENT), (END, TO_CLIENT), (CLOSE, TO_SERVER)]
    reader.release(reader.position)
    second = mine.open(connection())
    second.copy(TO_SERVER, b"a request")
    second.copy(TO_CLIENT, b"its response")
    assert [kind for kind, _, _ in records(reader)] == [OPEN, DATA, DATA]


async def test_a_connection_that_opens_while_the_ring_is_full_pauses_from_its_first_byte(tmp_path: Path) -> None:
    mine = tap(tmp_path, ring_bytes=128 * 1024, turn_head=1 << 30, on_overload="pause")
    reader = RingReader(mine.ring.path)
    while mine.put(0, b"", ROUTE):
        pass
    line = mine.open(connection())
    paused: list[bool] = []
    line.on_pause = paused.append
    assert paused == [True]
    while paused[-1]:
        records(reader)
        reader.release(reader.position)
        await asyncio.sleep(0.002)
    assert paused == [True, False]
