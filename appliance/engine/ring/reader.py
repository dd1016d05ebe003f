"""The inspector's side of the ring: read what was published, release what is stored.

Reading and releasing are apart. ``read`` moves a position of the reader's own; only ``release`` lets the writer
overwrite, and it is called after the rows that came of those bytes are durable. A reader that dies in between
leaves everything where the next one finds it.
"""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.engine.ring import layout
from appliance.engine.ring.layout import (
    HEADER,
    HEADER_BYTES,
    KIND_SHIFT,
    LENGTH_MASK,
    NOTE_BYTES,
    PAD,
    PAGE,
    SLOT_BYTES,
    W_FINISHED,
    W_HEAD,
    W_TAIL,
)
from appliance.model.connection import Connection

# x86 keeps stores in order, so a published head means published bytes. Elsewhere the head that was seen one poll
# ago (milliseconds) is used: by then its bytes have long left the writer's store buffer.
_STORES_IN_ORDER = platform.machine() in {"x86_64", "AMD64", "i686"}


class Entry(NamedTuple):
    """One record: ``stream`` is slot << 1 | direction, ``at`` ns since the epoch, ``position`` where it starts."""

    kind: int
    stream: int
    at: int
    position: int
    data: bytes


_new = tuple.__new__  # a named tuple's own constructor costs a Python frame, and there is one entry per chunk


class RingReader:
    """One ring file and its consumer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = layout.attach(path)
        self._decode = msgspec.msgpack.Decoder(Connection).decode
        self.position: int = self._map.words[W_TAIL]
        self._seen_head = self.position

    @property
    def size(self) -> int:
        """Bytes of records the ring holds."""
        return self._map.size

    @property
    def lag(self) -> int:
        """Bytes published and not yet read."""
        return self._map.words[W_HEAD] - self.position

    @property
    def tail(self) -> int:
        """Everything before this position is released."""
        return self._map.words[W_TAIL]

    @property
    def finished(self) -> bool:
        """Whether the writer said that nothing follows, and all of it was read."""
        words = self._map.words
        return bool(words[W_FINISHED]) and self.position == words[W_HEAD]

    def read(self, budget: int) -> Iterator[Entry]:
        """What was published, oldest first, about ``budget`` bytes of it. ``position`` moves with every entry."""
        words = self._map.words
        if _STORES_IN_ORDER:
            head = words[W_HEAD]
        else:
            head, self._seen_head = self._seen_head, words[W_HEAD]
        stop = min(head, self.position + budget)
        memory = self._map.memory
        size = self._map.size
        mask = size - 1
        base = self._map.records
        unpack_from = HEADER.unpack_from
        position = self.position
        while position < stop:
            offset = base + (position & mask)
            word, stream, at = unpack_from(memory, offset)
            kind = word >> KIND_SHIFT
            if kind == PAD:
                position += size - (position & mask)
                continue
            length = word & LENGTH_MASK
            data = memory[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
            start = position
            position += (length + 31) & ~15
            self.position = position
            yield _new(Entry, (kind, stream, at, start, data))
        self.position = position

    def connection(self, slot: int) -> Connection:
        """What the writer said of the connection in this slot. Raises ``msgspec.DecodeError`` for an unused slot."""
        start = PAGE + slot * SLOT_BYTES
        memory = self._map.memory
        length = int.from_bytes(memory[start : start + 4], "little")
        return self._decode(memory[start + 4 : start + 4 + min(length, layout.CONNECTION_BYTES)])

    def note(self, slot: int, text: bytes) -> None:
        """Leave up to 31 bytes with the slot for whoever reads after us."""
        start = PAGE + (slot + 1) * SLOT_BYTES - NOTE_BYTES
        self._map.memory[start : start + NOTE_BYTES] = text[: NOTE_BYTES - 1].ljust(NOTE_BYTES, b"\0")

    def noted(self, slot: int) -> bytes:
        """What a reader before us left with the slot; empty when nothing."""
        end = PAGE + (slot + 1) * SLOT_BYTES
        return self._map.memory[end - NOTE_BYTES : end].rstrip(b"\0")

    def release(self, position: int) -> None:
        """Let the writer overwrite everything before ``position``."""
        if position > self._map.words[W_TAIL]:
            self._map.words[W_TAIL] = position

    def close(self) -> None:
        """Unmap."""
        self._map.close()
