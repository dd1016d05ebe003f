"""Where a body ends, without keeping any of it: bodies are streamed, only their framing is read."""

import re
from enum import Enum, auto
from typing import Protocol

MAX_LINE = 4096  # a chunk's size line with its extensions
MAX_TRAILERS = 16 * 1024

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")


class Body(Protocol):
    """A body's framing. ``done``: its last byte was seen; ``broken``: says why it can never be."""

    done: bool
    broken: str | None

    def feed(self, data: bytes) -> int:
        """How many of these bytes, from the first on, belong to the body."""


class Length:
    """Content-Length: so many bytes. 0 is a body that is done before it begins."""

    __slots__ = ("_left", "broken", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.broken: str | None = None

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body."""
        taken = min(self._left, len(data))
        self._left -= taken
        self.done = self._left == 0
        return taken


class UntilClose:
    """A response that ends with its connection (RFC 9112 §6.3, rule 8)."""

    __slots__ = ("broken", "done")

    def __init__(self) -> None:
        self.done = False
        self.broken: str | None = None

    def feed(self, data: bytes) -> int:
        """All of them."""
        return len(data)


class Part(Enum):
    """What a chunked body's next line is."""

    SIZE = auto()
    AFTER_DATA = auto()
    TRAILER = auto()


class Chunked:
    """Transfer-Encoding: chunked (RFC 9112 §7.1), read strictly: CRLF only, hexadecimal sizes only."""

    __slots__ = ("_left", "_line", "_part", "_trailers", "broken", "done")

    def __init__(self) -> None:
        self._left = 0  # of the current chunk's data
        self._line = b""
        self._part = Part.SIZE
        self._trailers = 0
        self.done = False
        self.broken: str | None = None

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the body, trailers included."""
        at, end = 0, len(data)
        while at < end and not self.done and self.broken is None:
            if self._left:
                taken = min(self._left, end - at)
                self._left -= taken
                at += taken
                continue
            newline = data.find(b"\n", at)
            stop = newline + 1 if newline >= 0 else end
            self._line += data[at:stop]
            at = stop
            if len(self._line) > MAX_LINE:
                self.broken = f"a line of the chunked body is longer than {MAX_LINE} bytes"
            elif newline >= 0:
                line, self._line = self._line, b""
                self._take(line)
        return at

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            self.broken = "a line of the chunked body ends in a bare LF"
            return
        line = line[:-2]
        if self._part is Part.SIZE:
            match = _SIZE.fullmatch(line)
            if match is None:
                self.broken = f"malformed chunk size {line[:30]!r}"
                return
            self._left = int(match[1], 16)
            self._part = Part.AFTER_DATA if self._left else Part.TRAILER
        elif self._part is Part.AFTER_DATA:
            if line:
                self.broken = "a chunk is longer than its size"
            self._part = Part.SIZE
        elif not line:
            self.done = True
        else:
            self._trailers += len(line) + 2
            if self._trailers > MAX_TRAILERS:
                self.broken = f"trailers longer than {MAX_TRAILERS} bytes"
            elif not _TRAILER.fullmatch(line):
                self.broken = f"malformed trailer {line[:30]!r}"
