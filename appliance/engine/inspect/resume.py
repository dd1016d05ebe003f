"""What an inspector leaves with its rows for the next one: how far it was, and where unfinished messages begin.

The rows' transaction holds it. A copy lies in a file beside the ring, for an inspector that is started while the
database cannot be asked: both may be killed at once, by a machine that runs out of memory, say.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from appliance.engine.inspect.inspection import Pin

_POSITION = struct.Struct("<q")
_ENTRY = struct.Struct("<IqIqI")  # slot, then per direction: ring position (-1: none) and bytes to skip
_NUMBER = struct.Struct("<q")  # of the commit
_GONE = -2  # the beginning of the message is not in the ring any more

Pins = tuple[Pin | None, Pin | None]


class Resume(NamedTuple):
    """``position``: everything before it is in the rows, except what ``pins`` name (slot -> where to take it up).

    Pins of None say that the message's beginning is gone.
    """

    position: int
    pins: dict[int, Pins | None]


START = Resume(0, {})


def encode(position: int, pins: Mapping[int, Pins | None]) -> bytes:
    """Pack a ``Resume``."""
    return _POSITION.pack(position) + b"".join(_pack(slot, pair) for slot, pair in pins.items())


def decode(blob: bytes) -> Resume:
    """Unpack what ``encode`` packed. Raises ``struct.error`` for anything else."""
    return Resume(_POSITION.unpack_from(blob)[0], dict(_unpack(memoryview(blob)[_POSITION.size :])))


def write_note(ring: Path, number: int, blob: bytes) -> None:
    """Put commit ``number`` and its packed ``Resume`` beside the ring. A full disk leaves the note before it there."""
    unfinished = ring.with_suffix(".resume.new")
    with suppress(OSError):
        unfinished.write_bytes(_NUMBER.pack(number) + blob)
        unfinished.rename(_note(ring))


def read_note(ring: Path) -> tuple[int, Resume] | None:
    """The number of the newest commit that was noted beside the ring, and what it left; None when none was."""
    try:
        raw = _note(ring).read_bytes()
    except FileNotFoundError:
        return None
    return _NUMBER.unpack_from(raw)[0], decode(raw[_NUMBER.size :])


def drop_note(ring: Path) -> None:
    """The ring is read to its end."""
    _note(ring).unlink(missing_ok=True)


def _note(ring: Path) -> Path:
    return ring.with_suffix(".resume")


def _pack(slot: int, pair: Pins | None) -> bytes:
    if pair is None:
        return _ENTRY.pack(slot, _GONE, 0, _GONE, 0)
    up, down = pair
    return _ENTRY.pack(slot, *(up or (-1, 0)), *(down or (-1, 0)))


def _unpack(blob: memoryview) -> Iterator[tuple[int, Pins | None]]:
    for slot, up, up_skip, down, down_skip in _ENTRY.iter_unpack(blob):
        if up == _GONE:
            yield slot, None
        else:
            yield slot, (Pin(up, up_skip) if up >= 0 else None, Pin(down, down_skip) if down >= 0 else None)
