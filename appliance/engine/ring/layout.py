"""How a ring file is laid out. Both sides map it; the writer owns ``HEAD``, the reader owns ``TAIL``.

::

    page 0      64-bit words, the shared ones on cache lines of their own
    table       one slot per open connection: u32 length + msgpack Connection, and a note of the reader's
    records     16-byte header (u32 kind << 28 | length, u32 slot << 1 | direction, u64 ns since the epoch) + payload,
                padded to 16 bytes, so that a header never straddles the wrap

Positions are bytes since the ring was made and only grow; ``position & (size - 1)`` is the place in the file.
A slot is given to another connection only after the reader has released the record that closed it, so a reader
that starts again at ``TAIL`` finds every connection it needs in the table.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x5745_4952_0000_0001  # "WEIR", format 1
PAGE = 4096
SLOT_BYTES = 1024
NOTE_BYTES = 32  # the reader's own corner of a slot
CONNECTION_BYTES = SLOT_BYTES - NOTE_BYTES - 4

HEADER = struct.Struct("<IIQ")
HEADER_BYTES = 16
KIND_SHIFT = 28
LENGTH_MASK = (1 << KIND_SHIFT) - 1

DATA = 0
OPEN = 1  # the connection is in its slot
CLOSE = 2  # payload: msgpack Closed
HOLE = 3  # payload: u64 bytes that follow in this direction and were not copied, u8 Why
ROUTE = 4  # payload: msgpack [host, port, domain]: the server changed
END = 5  # this direction reached its end of file
PAD = 15  # skip to the wrap

RESERVED = 64 * 1024  # the last bytes of room are for control records, so that a burst of data cannot lose a CLOSE

HOLE_PAYLOAD = struct.Struct("<QB")
BY_TURN_CAP = 0  # on purpose: bulk
BY_FULL_RING = 1  # the inspector was too slow

# Indexes of the 64-bit words of page 0.
W_MAGIC, W_SIZE, W_SLOTS, W_EPOCH = 0, 1, 2, 3
W_HEAD, W_TAIL, W_DROPPED, W_DROPPED_BYTES, W_FINISHED = 8, 16, 24, 25, 32


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapped ring file: the whole map, the words of page 0, and where the parts are."""

    memory: mmap.mmap
    words: memoryview
    size: int
    slots: int

    @property
    def records(self) -> int:
        """Offset of the record area in the file."""
        return PAGE + self.slots * SLOT_BYTES

    def close(self) -> None:
        """Unmap. Views handed out before must be gone."""
        self.words.release()
        self.memory.close()


def file_name(index: int, epoch: int) -> str:
    """The ring of relay ``index`` started at ``epoch`` (ns); names sort by age."""
    return f"relay-{index}.{epoch:016x}.ring"


def index_of(path: Path) -> int:
    """The relay that wrote this ring."""
    return int(path.name.removeprefix("relay-").split(".")[0])


def create(path: Path, size: int, slots: int, epoch: int) -> Mapping:
    """Make a ring file of ``size`` record bytes (a power of two) for ``slots`` connections, and map it.

    Made under another name and renamed when complete, so that a reader never maps half a ring; allocated at once,
    so that a full disk is an ``OSError`` here and not a SIGBUS later.
    """
    if size & (size - 1):
        raise ValueError(f"ring size {size} is not a power of two")
    total = PAGE + slots * SLOT_BYTES + size
    unfinished = path.with_suffix(".new")
    fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, total)
        memory = mmap.mmap(fd, total)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    words = memoryview(memory)[:PAGE].cast("Q")
    words[W_SIZE], words[W_SLOTS], words[W_EPOCH] = size, slots, epoch
    words[W_MAGIC] = MAGIC
    unfinished.rename(path)
    return Mapping(memory, words, size, slots)


def attach(path: Path) -> Mapping:
    """Map an existing ring. Raises ``ValueError`` when the file is no ring of this format."""
    with path.open("r+b") as file:
        total = os.fstat(file.fileno()).st_size
        if total < PAGE:
            raise ValueError(f"{path} is no ring: {total} bytes")
        memory = mmap.mmap(file.fileno(), total)
    words = memoryview(memory)[:PAGE].cast("Q")
    size, slots = words[W_SIZE], words[W_SLOTS]
    if words[W_MAGIC] != MAGIC or total != PAGE + slots * SLOT_BYTES + size:
        words.release()
        memory.close()
        raise ValueError(f"{path} is no ring of this format (another version of Weir wrote it?)")
    return Mapping(memory, words, size, slots)
