"""Batches on disk while the database is away: bounded, checksummed, replayed in order.

A segment is a file of entries, each a length, a CRC-32 and the payload. ``append`` returns once the entry is on the
disk. Power may fail in the middle of an append: the torn entry is cut off when the spool is opened next, and reported.
A full disk or a reached bound refuses the newest entry and leaves the others whole; the caller counts what it lost.
"""

import fcntl
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from appliance.record.settings import SpoolSettings

MAGIC = b"WEIRSPL1"
LARGEST = 1 << 30  # no entry is larger; a longer one is damage
_FRAME = struct.Struct("<II")  # payload length, CRC-32 of that length and the payload
_SUFFIX = ".spool"


class SpoolBusy(RuntimeError):
    """Another process has this spool open."""


class Found(NamedTuple):
    """What opening found: whole entries, their bytes, and bytes that had to be given up (torn or damaged)."""

    entries: int
    size: int
    lost: int


class Segment:
    """One file of entries; ``end`` is where its last whole entry ends."""

    __slots__ = ("end", "entries", "path")

    def __init__(self, path: Path, end: int, entries: int) -> None:
        self.path = path
        self.end = end
        self.entries = entries


class Spool:
    """A queue of byte strings in a directory of its own."""

    def __init__(self, settings: SpoolSettings) -> None:
        self._settings = settings
        self._segments: deque[Segment] = deque()
        self._write: int | None = None  # file descriptor of the newest segment
        self._read: int | None = None  # of the oldest
        self._read_at = len(MAGIC)
        self._number = 0
        self._lock: int | None = None
        self.size = 0  # bytes in files
        self.entries = 0  # not yet dropped
        self.damaged = 0  # bytes that could not be read back

    def open(self, visit: Callable[[bytes], None] = lambda payload: None) -> Found:
        """Take the directory for ourselves and show every entry that an earlier process left, oldest first.

        Raises ``SpoolBusy``, ``OSError``.
        """
        directory = self._settings.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise SpoolBusy(f"the spool {directory} is in use by another process") from error
        lost = 0
        for path in sorted(directory.glob(f"[0-9]*{_SUFFIX}")):
            self._number = max(self._number, int(path.stem))
            segment, torn = _scan(path, visit)
            lost += torn
            if segment is None:
                path.unlink()
                continue
            if torn:
                os.truncate(path, segment.end)
            self._segments.append(segment)
            self.size += segment.end
            self.entries += segment.entries
        return Found(self.entries, self.size, lost)

    def append(self, payload: bytes) -> bool:
        """Put an entry behind the others; True once it is on the disk, False when there was no room for it."""
        frame = _FRAME.pack(len(payload), _checksum(payload)) + payload
        if self.size + len(frame) > self._settings.limit:
            return False
        segment = self._room_for(len(frame))
        if segment is None or self._write is None:
            return False
        try:
            written = os.pwrite(self._write, frame, segment.end)
            # A full disk takes a part before it says ENOSPC: look at the length, not only at the error.
            if written == len(frame):
                os.fdatasync(self._write)
                segment.end += len(frame)
                segment.entries += 1
                self.size += len(frame)
                self.entries += 1
                return True
        except OSError:
            pass  # whatever it was, this entry is not on the disk: cut it off and say so
        with suppress(OSError):
            os.ftruncate(self._write, segment.end)
        return False

    def first(self, most: int = 0) -> list[bytes]:
        """The oldest entries: one, and further ones of its segment up to ``most`` bytes. They stay until ``drop``.

        Empty when there are none.
        """
        while self._segments:
            segment = self._segments[0]
            payloads: list[bytes] = []
            at = self._read_at
            while at < segment.end and (not payloads or at - self._read_at < most):
                payload = self._payload(segment, at)
                if payload is None:
                    break
                payloads.append(payload)
                at += _FRAME.size + len(payload)
            if payloads:
                return payloads
            if at < segment.end:
                # Damaged since it was scanned: what follows in this segment cannot be found any more.
                self.entries -= segment.entries
                self.damaged += segment.end - self._read_at
            self._forget_oldest()
        return []

    def drop(self, payloads: list[bytes]) -> None:
        """Entries that ``first`` returned are safe elsewhere. A segment goes when its last entry has."""
        segment = self._segments[0]
        self._read_at += sum(_FRAME.size + len(payload) for payload in payloads)
        segment.entries -= len(payloads)
        self.entries -= len(payloads)
        if self._read_at >= segment.end:
            self._forget_oldest()

    def close(self) -> None:
        """Let go of the files; entries stay for the next process."""
        for handle in (self._write, self._read, self._lock):
            if handle is not None:
                os.close(handle)
        self._write = self._read = self._lock = None

    def _payload(self, segment: Segment, at: int) -> bytes | None:
        """The entry at an offset; None when the disk does not give back what was written."""
        try:
            if self._read is None:
                self._read = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            length, checksum = _FRAME.unpack(os.pread(self._read, _FRAME.size, at))
            payload = os.pread(self._read, length, at + _FRAME.size)
        except (OSError, struct.error):
            return None
        return payload if len(payload) == length and _checksum(payload) == checksum else None

    def _room_for(self, length: int) -> Segment | None:
        """The segment to append to, a new one where needed; None when the disk has no room for one."""
        if self._write is not None and self._segments[-1].end + length <= max(
            self._settings.segment, len(MAGIC) + length
        ):
            return self._segments[-1]
        path = self._settings.directory / f"{self._number + 1:010}{_SUFFIX}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            if os.write(handle, MAGIC) != len(MAGIC):
                raise OSError("short write")
            _sync_directory(self._settings.directory)
        except OSError:
            os.close(handle)
            with suppress(OSError):
                path.unlink()
            return None
        if self._write is not None:
            os.close(self._write)
        self._write = handle
        self._number += 1
        self._segments.append(Segment(path, len(MAGIC), 0))
        self.size += len(MAGIC)
        return self._segments[-1]

    def _forget_oldest(self) -> None:
        segment = self._segments.popleft()
        if self._read is not None:
            os.close(self._read)
            self._read = None
        self._read_at = len(MAGIC)
        if not self._segments and self._write is not None:
            os.close(self._write)
            self._write = None
        self.size -= segment.end
        with suppress(FileNotFoundError):
            segment.path.unlink()


def _scan(path: Path, visit: Callable[[bytes], None]) -> tuple[Segment | None, int]:
    """The whole entries at the beginning of a file, and how many bytes behind them are of no use."""
    size = path.stat().st_size
    entries, at = 0, len(MAGIC)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None, size
        while at + _FRAME.size <= size:
            length, checksum = _FRAME.unpack(file.read(_FRAME.size))
            if length > LARGEST or at + _FRAME.size + length > size:
                break
            payload = file.read(length)
            if _checksum(payload) != checksum:
                break
            visit(payload)
            at += _FRAME.size + length
            entries += 1
    return (Segment(path, at, entries), size - at) if entries else (None, size - len(MAGIC))


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(4, "little")))


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
