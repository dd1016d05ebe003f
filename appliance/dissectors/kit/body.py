"""Keep the beginning and the end of a body, and know its true length and digest.

A body may be larger than memory. What is kept is bounded by ``Capture``; the length always counts every byte, and the
SHA-256 runs over all of them, unless some were not seen: then there is no digest, and the body says how many.
"""

import hashlib
from functools import lru_cache
from typing import Final

from appliance.dissectors.kit.spec import Capture
from appliance.model.exchange import EMPTY, Body

# Servers repeat small bodies to the byte (errors, health checks, acknowledgements); hashing one takes longer than
# looking it up. At most 2 MiB are kept for that.
SMALL: Final = 2048
REMEMBERED: Final = 1024


def whole(content: bytes, capture: Capture) -> Body:
    """The body whose bytes all arrived together: the common case, without a copy."""
    length = len(content)
    if not length:
        return EMPTY
    if capture.headers_only:
        return Body(length, b"", b"", None)
    if length <= SMALL and length <= capture.body_head:
        return _small(content)
    digest = hashlib.sha256(content).digest()
    if length <= capture.body_head + capture.body_tail:
        return Body(length, content, b"", digest)
    return Body(length, content[: capture.body_head], content[length - capture.body_tail :], digest)


@lru_cache(REMEMBERED)
def _small(content: bytes) -> Body:
    return Body(len(content), content, b"", hashlib.sha256(content).digest())


class Accumulator:
    """Collects a body piece by piece. Memory: ``body_head`` + 2 × ``body_tail`` bytes of the capture."""

    __slots__ = ("_digest", "_first", "_head", "_head_limit", "_keep", "_tail", "_tail_limit", "length", "missing")

    def __init__(self, capture: Capture, expected: int = 0) -> None:
        """``expected`` is the length if it is known beforehand."""
        self.length = 0
        self.missing = 0
        self._keep = not capture.headers_only
        self._head_limit = capture.body_head if self._keep else 0
        self._tail_limit = capture.body_tail if self._keep else 0
        self._digest = hashlib.sha256() if self._keep and expected <= capture.digest_limit else None
        self._first = b""  # the only piece so far, not yet copied
        self._head: bytearray | None = None
        self._tail = bytearray()

    def add(self, piece: bytes) -> None:
        """Append bytes that were seen."""
        size = len(piece)
        self.length += size
        if not self._keep or not size:
            return
        if self._digest is not None:
            self._digest.update(piece)
        if self._head is None:
            if not self._first and size <= self._head_limit and not self.missing:
                self._first = piece
                return
            self._head = bytearray(self._first)
            self._first = b""
        room = 0 if self.missing else self._head_limit - len(self._head)
        if room >= size:
            self._head += piece
            return
        if room > 0:
            self._head += piece[:room]
            piece = piece[room:]
        self._keep_tail(piece)

    def skip(self, count: int) -> None:
        """Append ``count`` bytes that were not seen. What follows can only belong to the tail."""
        if count <= 0:
            return
        self.length += count
        self.missing += count
        self._digest = None
        # Bytes kept before a hole are not the end of the body.
        self._tail.clear()

    def finish(self) -> Body:
        """The body as far as it was received."""
        if not self.length:
            return EMPTY
        if not self._keep:
            return Body(self.length, b"", b"", None, self.missing)
        head = self._first if self._head is None else bytes(self._head)
        tail = bytes(self._tail[-self._tail_limit :]) if self._tail_limit else b""
        if len(head) + len(tail) == self.length:
            head, tail = head + tail, b""
        digest = None if self._digest is None else self._digest.digest()
        return Body(self.length, head, tail, digest, self.missing)

    def _keep_tail(self, piece: bytes) -> None:
        limit = self._tail_limit
        self._tail += piece[-limit:] if limit else b""
        if len(self._tail) > 2 * limit:  # trimmed rarely, so that the work stays linear
            del self._tail[:-limit]
