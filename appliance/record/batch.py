"""What is made durable together: rows as COPY bytes, and what the store must know about them."""

from typing import NamedTuple

import msgspec


class Batch(NamedTuple):
    """Concatenated rows (no COPY header), ready to be sent or spooled.

    ``connections`` are new rows of ``traffic_logs``, ``endings`` rows that replace one that was written while the
    connection was open. ``days`` are the days of all rows' ids; ``hashes`` what ``bodies`` holds.
    """

    records: bytes
    connections: bytes
    endings: bytes
    bodies: bytes
    rows: int  # exchanges and connections
    days: tuple[int, ...]
    hashes: tuple[tuple[int, bytes], ...]

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return len(self.records) + len(self.connections) + len(self.endings) + len(self.bodies)


class Entry(NamedTuple):
    """A batch with the position that becomes durable with it: the unit of a transaction and of the spool."""

    batch: Batch
    ring: str
    position: int
    resume: bytes


def joined(entries: list[Entry]) -> Entry:
    """Consecutive entries of one ring as one: rows are concatenated, the last position counts."""
    if len(entries) == 1:
        return entries[0]
    batches = [entry.batch for entry in entries]
    batch = Batch(
        b"".join(batch.records for batch in batches),
        b"".join(batch.connections for batch in batches),
        b"".join(batch.endings for batch in batches),
        b"".join(batch.bodies for batch in batches),
        sum(batch.rows for batch in batches),
        tuple({day for batch in batches for day in batch.days}),
        tuple(key for batch in batches for key in batch.hashes),
    )
    return entries[-1]._replace(batch=batch)


class Position(NamedTuple):
    """How far a ring's rows are durable. Only the inspector knows what the numbers and the blob mean."""

    position: int
    resume: bytes


encode_entry = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(Entry).decode
