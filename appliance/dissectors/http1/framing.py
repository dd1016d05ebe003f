"""Where a body ends: by its length, by its last chunk, or with the connection (RFC 9112 §6, §7).

A reader takes bytes from a position and says how far the body reached. ``done`` is set at its end, ``fatal`` when the
framing is broken for good. ``lose`` tells it that bytes were not seen; it answers how many of them are past its end.
"""

from typing import Final

from appliance.dissectors.http1 import frames
from appliance.dissectors.http1.fields import trailer_flaws
from appliance.dissectors.http1.frames import Flaw
from appliance.dissectors.kit.body import Accumulator
from appliance.dissectors.kit.spec import Capture
from appliance.model.exchange import Body

MAX_CHUNK_LINE: Final = 16 * 1024  # a chunk size with its extensions, or one trailer line
MAX_TRAILERS: Final = 64 * 1024
MAX_LOST_TAIL: Final = 128 * 1024  # bytes after a hole that are kept until the framing is found again
_TRIES: Final = 64  # places in such a tail where a chunk may begin
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"


class FixedBody:
    """A body of a known length."""

    __slots__ = ("_remaining", "body", "done", "fatal", "flaws", "lost", "trailers")

    def __init__(self, capture: Capture, length: int) -> None:
        self.body = Accumulator(capture, length)
        self.done = not length
        self.fatal = self.lost = False
        self.flaws: list[Flaw] = []
        self.trailers = b""
        self._remaining = length

    def take(self, data: bytes, position: int) -> int:
        """Consume from ``position``; return where the body, or the data, ends."""
        end = position + self._remaining
        if end > len(data):
            end = len(data)
        self.body.add(data if position == 0 and end == len(data) else data[position:end])
        self._remaining -= end - position
        self.done = not self._remaining
        return end

    def lose(self, count: int) -> int:
        """Skip what was not seen; return how much of it is past the end."""
        mine = min(count, self._remaining)
        self.body.skip(mine)
        self._remaining -= mine
        self.done = not self._remaining
        return count - mine

    def finish(self) -> Body:
        """The body so far."""
        return self.body.finish()


class OpenBody:
    """A body that ends with the connection: ``done`` is for the machine to set."""

    __slots__ = ("body", "done", "fatal", "flaws", "lost", "trailers")

    def __init__(self, capture: Capture) -> None:
        self.body = Accumulator(capture)
        self.done = self.fatal = self.lost = False
        self.flaws: list[Flaw] = []
        self.trailers = b""

    def take(self, data: bytes, position: int) -> int:
        """Consume everything."""
        self.body.add(data[position:] if position else data)
        return len(data)

    def lose(self, count: int) -> int:
        """Skip what was not seen: all of it is body."""
        self.body.skip(count)
        return 0

    def finish(self) -> Body:
        """The body so far."""
        return self.body.finish()


class ChunkedBody:
    """A chunked body, de-chunked, and its trailers.

    A hole inside one chunk is skipped. A larger one loses the framing (``lost``): from then on the body ends at what
    looks like a last chunk at the end of a piece, or when the machine says so, and its length is approximate.
    """

    __slots__ = ("_partial", "_reading", "_remaining", "_trailers", "body", "done", "fatal", "flaws", "lost", "used")

    def __init__(self, capture: Capture) -> None:
        self.body = Accumulator(capture)
        self.done = self.fatal = self.lost = False
        self.flaws: list[Flaw] = []  # offsets are relative to the body's first byte
        self.used = 0
        self._remaining = 0
        self._reading = _SIZE
        self._partial = bytearray()  # a line that has not ended; after a hole, the raw tail
        self._trailers = bytearray()

    @property
    def trailers(self) -> bytes:
        """The trailer lines as sent, without the blank line that ends them."""
        return bytes(self._trailers)

    def take(self, data: bytes, position: int) -> int:
        """Consume from ``position``; return where the body, or the data, ends."""
        begun = position
        if self.lost:
            position = self._take_after_hole(data, position)
        size = len(data)
        while position < size and not self.done and not self.fatal:
            if self._reading is _DATA:
                end = min(position + self._remaining, size)
                self.body.add(data if position == 0 and end == size else data[position:end])
                self._remaining -= end - position
                position = end
                if not self._remaining:
                    self._reading = _DATA_END
                continue
            if self._reading is _SIZE and not self._partial and (match := frames.CHUNK_LINE.match(data, position)):
                self._begin_chunk(int(match[1], 16), self.used + position - begun, match.end() - position)
                position = match.end()
                continue
            position = self._take_line(data, position, self.used + position - begun)
        self.used += position - begun
        return position

    def lose(self, count: int) -> int:
        """Skip what was not seen: within a chunk exactly, beyond it by giving up the framing."""
        self.used += count
        if self._reading is _DATA and count <= self._remaining and not self.lost:
            self.body.skip(count)
            self._remaining -= count
            if not self._remaining:
                self._reading = _DATA_END
            return 0
        if self.lost:
            self._settle_tail()
        self.lost = True
        self._partial.clear()
        self.body.skip(count)
        return 0

    def finish(self) -> Body:
        """The body so far."""
        if self.lost:
            self._settle_tail()
        return self.body.finish()

    def _begin_chunk(self, size: int, at: int, line: int) -> None:
        if line > MAX_CHUNK_LINE or size > frames.MAX_LENGTH:
            self._fail("http.chunk-size", at, "too large")
        elif size:
            self._remaining, self._reading = size, _DATA
        else:
            self._reading = _TRAILER

    def _take_line(self, data: bytes, position: int, at: int) -> int:
        """Consume up to a line feed; act on the line when it is whole."""
        at -= len(self._partial)
        if self._reading is _DATA_END and not self._partial and data[position] not in b"\r\n":
            self._fail("http.chunk-end", at, "")
            return position
        end = data.find(b"\n", position) + 1 or len(data)
        line = data[position:end]
        if self._partial or not line.endswith(b"\n"):
            self._partial += line
            if self._reading is _DATA_END and len(self._partial) == 2 and self._partial != b"\r\n":
                self._fail("http.chunk-end", at, "")
            elif len(self._partial) > MAX_CHUNK_LINE:
                self._fail(_TOO_LONG[self._reading], at, "line too long")
            if self.fatal or not line.endswith(b"\n"):
                return end
            line = bytes(self._partial)
            self._partial.clear()
        self._take_whole_line(line, at)
        return end

    def _take_whole_line(self, line: bytes, at: int) -> None:
        if self._reading is _DATA_END:
            if line == b"\n":
                self.flaws.append(Flaw("http.bare-lf", at))
            elif line != b"\r\n":
                self._fail("http.chunk-end", at, "")
            self._reading = _SIZE
        elif self._reading is _SIZE:
            size, flaws, fatal = frames.read_chunk_line(line)
            self.flaws += [flaw._replace(at=at + flaw.at) for flaw in flaws]
            if fatal:
                self.fatal = True
            else:
                self._begin_chunk(size, at, len(line))
        elif line in (b"\r\n", b"\n"):
            if line == b"\n":
                self.flaws.append(Flaw("http.bare-lf", at))
            self.flaws += [flaw._replace(at=at - len(self._trailers) + flaw.at) for flaw in self._trailer_flaws()]
            self.done = True
        else:
            self._trailers += line
            if len(line) > MAX_CHUNK_LINE or len(self._trailers) > MAX_TRAILERS:
                self._fail("http.trailers-too-large", at, "")

    def _trailer_flaws(self) -> list[Flaw]:
        return trailer_flaws(bytes(self._trailers)) if self._trailers else []

    def _fail(self, kind: str, at: int, detail: str) -> None:
        self.flaws.append(Flaw(kind, at, detail))
        self.fatal = True

    def _take_after_hole(self, data: bytes, position: int) -> int:
        self._partial += data[position:] if position else data
        self.done = self._partial.endswith(_LAST_CHUNK) or self._partial == _LAST_CHUNK[2:]
        if len(self._partial) > 2 * MAX_LOST_TAIL:  # trimmed rarely, so that the work stays linear
            excess = len(self._partial) - MAX_LOST_TAIL
            self.body.skip(excess)
            del self._partial[:excess]
        return len(data)

    def _settle_tail(self) -> None:
        """Add what came after a hole to the body, de-chunked when the chunks can be found again."""
        tail = bytes(self._partial)
        self._partial.clear()
        for piece in _dechunk(tail):
            self.body.add(piece)


_SIZE, _DATA, _DATA_END, _TRAILER = "size", "data", "data end", "trailer"
_TOO_LONG: Final = {_SIZE: "http.chunk-size", _DATA_END: "http.chunk-end", _TRAILER: "http.trailers-too-large"}


def _dechunk(tail: bytes) -> list[bytes]:
    """The content of the end of a chunked body whose beginning is in the middle of a chunk.

    A place where a chunk seems to begin is right when every chunk from there on leads to the next. When none is, the
    bytes are content with the framing left in it.
    """
    place = -2
    for _ in range(_TRIES):
        place = tail.find(b"\r\n", place + 2)
        if place < 0:
            break
        pieces, position = [tail[:place]], place + 2
        while match := frames.CHUNK_LINE.match(tail, position):
            size = int(match[1], 16)
            if not size and tail.endswith(b"\r\n") and len(tail) - match.end() <= MAX_TRAILERS:
                return pieces
            position = match.end() + size
            pieces.append(tail[match.end() : position])
            if position == len(tail) and size:
                return pieces
            if tail[position : position + 2] != b"\r\n":
                break
            position += 2
    return [tail]
