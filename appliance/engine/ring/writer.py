"""The relay's side of the ring: put bytes in without ever waiting.

``put`` is a closure over local names because it runs for every chunk of every connection: as a method it costs a
third more. It publishes with one aligned 64-bit store through ``memoryview.cast("Q")``; ``struct.pack_into`` would
zero the word first, and the reader would see the head go backwards.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.engine.ring import layout
from appliance.engine.ring.layout import (
    BY_FULL_RING,
    CONNECTION_BYTES,
    DATA,
    HEADER,
    HEADER_BYTES,
    HOLE,
    HOLE_PAYLOAD,
    KIND_SHIFT,
    PAD,
    PAGE,
    RESERVED,
    SLOT_BYTES,
    W_DROPPED,
    W_DROPPED_BYTES,
    W_FINISHED,
    W_HEAD,
    W_TAIL,
)
from appliance.model.connection import Connection

Put = Callable[[int, "bytes | memoryview", int], bool]

# Bytes of a slot's texts when they are too long together. Names come from clients: what is cut here would be written
# over the next connection's slot.
_DETAIL_LIMIT = 96
_USER_LIMIT = 64
_NAME_LIMIT = 255  # a host name's own limit (RFC 1035 §2.3.4)


class RingWriter:
    """One ring file and its producer. ``put(slot << 1 | direction, data, kind)`` is False when the ring is full.

    With ``gaps`` a refused chunk is counted and declared as a hole before the stream's next chunk; without, it is the
    caller's to put again.
    """

    def __init__(self, directory: Path, index: int, size: int, slots: int, *, gaps: bool = True) -> None:
        for unfinished in directory.glob(f"relay-{index}.*.new"):
            unfinished.unlink()  # a relay died, or the disk was full, while it made its ring
        epoch = time.time_ns()
        self.path = directory / layout.file_name(index, epoch)
        self._map = layout.create(self.path, size, slots, epoch)
        self.put: Put = _producer(self._map, gaps)
        self._encode = msgspec.msgpack.Encoder().encode
        self._resting: deque[tuple[int, int]] = deque()  # (position of its CLOSE, slot), oldest first
        self._next_slot = 0

    @property
    def head(self) -> int:
        """Bytes published since the ring was made."""
        return self._map.words[W_HEAD]

    @property
    def fill(self) -> float:
        """How full the ring is, 0 to 1."""
        words = self._map.words
        return (words[W_HEAD] - words[W_TAIL]) / self._map.size

    @property
    def dropped(self) -> tuple[int, int]:
        """Chunks and bytes that found the ring full."""
        return self._map.words[W_DROPPED], self._map.words[W_DROPPED_BYTES]

    def count_dropped(self, length: int) -> None:
        """Count a chunk that was not even offered, because records before it still wait for room."""
        self._map.words[W_DROPPED] += 1
        self._map.words[W_DROPPED_BYTES] += length

    def take_slot(self, connection: Connection) -> int | None:
        """Enter a connection into the table; its slot, or None when every slot is in use."""
        if self._resting and self._resting[0][0] <= self._map.words[W_TAIL]:
            slot = self._resting.popleft()[1]
        elif self._next_slot < self._map.slots:
            slot = self._next_slot
            self._next_slot += 1
        else:
            return None
        self.describe(slot, connection)
        return slot

    def describe(self, slot: int, connection: Connection) -> None:
        """Write what is known of a connection into its slot. Long texts are shortened to fit."""
        raw = self._encode(connection)
        if len(raw) > CONNECTION_BYTES:
            raw = self._encode(_shortened(connection))
        start = PAGE + slot * SLOT_BYTES
        memory = self._map.memory
        memory[start + 4 : start + 4 + len(raw)] = raw
        memory[start : start + 4] = len(raw).to_bytes(4, "little")
        memory[start + SLOT_BYTES - layout.NOTE_BYTES : start + SLOT_BYTES] = bytes(layout.NOTE_BYTES)

    def rest_slot(self, slot: int) -> None:
        """The connection's CLOSE is published: reuse the slot once the reader has released it."""
        self._resting.append((self._map.words[W_HEAD], slot))

    def finish(self) -> None:
        """Say that nothing follows. The reader deletes the file when it has read it all."""
        self._map.words[W_FINISHED] = 1


def _shortened(connection: Connection) -> Connection:
    domain, user = connection.domain, connection.user
    return dataclasses.replace(
        connection,
        server=connection.server._replace(host=_cut(connection.server.host, _NAME_LIMIT)),
        detail=_cut(connection.detail, _DETAIL_LIMIT),
        domain=domain and _cut(domain, _NAME_LIMIT),
        user=user and _cut(user, _USER_LIMIT),
    )


def _cut(text: str, limit: int) -> str:
    """The beginning of a text that is at most so many bytes of UTF-8."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _producer(mapping: layout.Mapping, gaps: bool) -> Put:
    words = mapping.words
    size = mapping.size
    mask = size - 1
    area = memoryview(mapping.memory)[mapping.records :]
    pack_into = HEADER.pack_into
    now = time.time_ns
    lost: dict[int, int] = {}
    head = words[W_HEAD]
    limit = words[W_TAIL] + size

    def put(stream: int, data: "bytes | memoryview", kind: int = DATA) -> bool:
        nonlocal head, limit
        length = len(data)
        if lost and stream in lost and kind != HOLE:
            # First say what is missing, so that the reader never joins the two sides of a gap; but only once
            # what follows fits too (twice its length: it may have to skip to the wrap).
            if kind == DATA and head + 2 * length + 64 + RESERVED > limit:
                limit = words[W_TAIL] + size
                if head + 2 * length + 64 + RESERVED > limit:
                    return refuse(stream, length)
            if not put(stream, HOLE_PAYLOAD.pack(lost[stream], BY_FULL_RING), HOLE):
                return kind == DATA and refuse(stream, length)
            del lost[stream]
        offset = head & mask
        end = offset + HEADER_BYTES + length
        start = head
        if end > size:
            start = head + size - offset
            end = HEADER_BYTES + length
        room = HEADER_BYTES + length + (RESERVED if kind == DATA else HEADER_BYTES)
        if start + room > limit:
            limit = words[W_TAIL] + size
            if start + room > limit:
                return kind == DATA and refuse(stream, length)
        if start != head:
            pack_into(area, offset, PAD << KIND_SHIFT, 0, 0)
            head = start
            offset = 0
        if length:
            area[offset + HEADER_BYTES : end] = data
        pack_into(area, offset, kind << KIND_SHIFT | length, stream, now())
        head += (length + 31) & ~15
        words[W_HEAD] = head
        return True

    def refuse(stream: int, length: int) -> bool:
        if not gaps:  # the caller keeps the chunk and comes again
            return False
        lost[stream] = lost.get(stream, 0) + length
        words[W_DROPPED] += 1
        words[W_DROPPED_BYTES] += length
        return False

    return put
