"""The ring: what was put is read, in order, or declared missing; never anything else."""

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.ring import layout
from appliance.engine.ring.layout import BY_FULL_RING, DATA, HOLE, HOLE_PAYLOAD
from appliance.engine.ring.reader import RingReader
from appliance.engine.ring.writer import RingWriter
from appliance.model.connection import Connection
from appliance.model.endpoint import Endpoint

SIZE = 256 * 1024
EVERYTHING = 1 << 60


def connection(name: str = "client", user: str | None = None, detail: str = "") -> Connection:
    return Connection(
        os.urandom(16),
        1,
        "mixed",
        Endpoint(name, 1),
        Endpoint("192.0.2.1", 80),
        domain="d" * 255,
        user=user,
        detail=detail,
    )


@pytest.fixture
def writer(tmp_path: Path) -> RingWriter:
    return RingWriter(tmp_path, 0, SIZE, slots=4)


def consumed(reader: RingReader) -> list[tuple[int, int, bytes]]:
    return [(entry.kind, entry.stream, entry.data) for entry in reader.read(EVERYTHING)]


def test_what_is_put_is_read_in_order_with_its_stream_and_kind(writer: RingWriter) -> None:
    reader = RingReader(writer.path)
    writer.put(6, b"hello", DATA)
    writer.put(7, b"", layout.END)
    assert consumed(reader) == [(DATA, 6, b"hello"), (layout.END, 7, b"")]
    assert consumed(reader) == []


def test_a_reader_that_starts_again_finds_everything_that_was_not_released(writer: RingWriter) -> None:
    first = RingReader(writer.path)
    for number in range(10):
        writer.put(2, bytes([number]) * 100, DATA)
    entries = list(first.read(EVERYTHING))
    first.release(entries[4].position)
    first.close()
    second = RingReader(writer.path)
    assert [entry.data[0] for entry in second.read(EVERYTHING)] == list(range(4, 10))


def test_a_full_ring_refuses_data_and_declares_exactly_what_is_missing(writer: RingWriter) -> None:
    reader = RingReader(writer.path)
    accepted = 0
    while writer.put(2, b"x" * 1000, DATA):
        accepted += 1000
    refused = 1000
    for _ in range(3):
        assert not writer.put(2, b"x" * 1000, DATA)
        refused += 1000
    assert writer.dropped == (4, refused)
    assert sum(len(data) for _, _, data in consumed(reader)) == accepted
    reader.release(reader.position)
    assert writer.put(2, b"after", DATA)
    assert consumed(reader) == [(HOLE, 2, HOLE_PAYLOAD.pack(refused, BY_FULL_RING)), (DATA, 2, b"after")]


def test_control_records_still_find_room_when_data_does_not(writer: RingWriter) -> None:
    while writer.put(2, b"x" * 1000, DATA):
        pass
    assert writer.put(2, b"", layout.CLOSE)


def test_without_gaps_a_refused_chunk_leaves_no_trace(tmp_path: Path) -> None:
    writer = RingWriter(tmp_path, 0, SIZE, slots=4, gaps=False)
    reader = RingReader(writer.path)
    while writer.put(2, b"x" * 1000, DATA):
        pass
    consumed(reader)
    reader.release(reader.position)
    writer.put(2, b"again", DATA)
    assert consumed(reader) == [(DATA, 2, b"again")]
    assert writer.dropped == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000), st.booleans()), max_size=200))
def test_every_byte_is_either_read_or_part_of_a_hole_in_its_place(
    tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, int, bool]]
) -> None:
    writer = RingWriter(tmp_path_factory.mktemp("ring"), 0, SIZE, slots=4)
    reader = RingReader(writer.path)
    sent: dict[int, bytes] = {}
    got: dict[int, list[bytes | int]] = {}

    def read() -> None:
        for kind, stream, data in consumed(reader):
            got.setdefault(stream, []).append(data if kind == DATA else HOLE_PAYLOAD.unpack(data)[0])
        reader.release(reader.position)

    for number, (stream, length, reads) in enumerate(puts):
        data = bytes([number % 251]) * length
        sent[stream] = sent.get(stream, b"") + data
        writer.put(stream, data, DATA)
        if reads:
            read()
    read()
    for stream in sent:  # flush the last hole of every stream
        writer.put(stream, b"", DATA)
    read()
    for stream, whole in sent.items():
        offset = 0
        for piece in got[stream]:
            if isinstance(piece, bytes):
                assert whole[offset : offset + len(piece)] == piece
                offset += len(piece)
            else:
                offset += piece
        assert offset == len(whole)


def test_a_slot_is_not_reused_before_its_close_is_released(writer: RingWriter) -> None:
    reader = RingReader(writer.path)
    slots = [writer.take_slot(connection()) for _ in range(4)]
    assert slots == [0, 1, 2, 3]
    assert writer.take_slot(connection()) is None
    writer.put(0, b"", layout.CLOSE)
    writer.rest_slot(0)
    assert writer.take_slot(connection()) is None
    consumed(reader)
    reader.release(reader.position)
    assert writer.take_slot(connection("next")) == 0
    assert reader.connection(0).client.host == "next"


def test_a_note_of_the_reader_survives_it_and_goes_with_the_connection(writer: RingWriter) -> None:
    slot = writer.take_slot(connection())
    assert slot is not None
    reader = RingReader(writer.path)
    reader.note(slot, b"http/1.1")
    assert RingReader(writer.path).noted(slot) == b"http/1.1"
    writer.describe(slot, connection())
    assert reader.noted(slot) == b""


def test_long_texts_are_shortened_to_fit_the_slot(writer: RingWriter) -> None:
    slot = writer.take_slot(connection("n" * 255, user="u" * 255, detail="d" * 5000))
    assert slot is not None
    read = RingReader(writer.path).connection(slot)
    assert read.client.host == "n" * 255
    assert read.detail.startswith("dddd")


@pytest.mark.parametrize("name", ["h" * 60_000, "\ufffd" * 255, "é" * 400])
def test_a_name_that_a_client_made_up_does_not_reach_into_the_next_slot(writer: RingWriter, name: str) -> None:
    first, second = writer.take_slot(connection()), writer.take_slot(connection("neighbour"))
    assert first is not None and second is not None
    long = dataclasses.replace(connection(detail="d" * 500), server=Endpoint(name, 80), domain=name)
    writer.describe(first, long)
    reader = RingReader(writer.path)
    assert reader.connection(second).client.host == "neighbour"
    read = reader.connection(first)
    assert read.id == long.id and read.domain is not None and name.startswith(read.domain)
    assert read.server.host == read.domain and len(read.domain.encode()) in range(250, 256)


def test_a_file_that_is_no_ring_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "relay-0.0.ring"
    file.write_bytes(b"\0" * 10_000)
    with pytest.raises(ValueError, match="no ring of this format"):
        RingReader(file)


def test_bytes_survive_a_writer_in_another_process(tmp_path: Path) -> None:
    """Both sides at full speed, the reader releasing late: nothing torn, nothing twice."""
    total = 60_000
    child = os.fork()
    if child == 0:
        try:
            ring = RingWriter(tmp_path, 0, 1 << 20, slots=4, gaps=False)
            number = 0
            while number < total:
                number += ring.put(2, number.to_bytes(4, "little") * (number % 50 + 1), DATA)
            ring.finish()
        finally:
            os._exit(0)
    while not (paths := list(tmp_path.glob("*.ring"))):
        pass
    reader = RingReader(paths[0])
    expected = 0
    while not reader.finished or expected < total:
        for entry in reader.read(1 << 18):
            assert entry.data == expected.to_bytes(4, "little") * (expected % 50 + 1)
            expected += 1
        reader.release(reader.position)
    assert os.waitpid(child, 0)[1] == 0
    assert expected == total
