"""What is exchanged on a connection: a request and its response, a command and its reply, a query and its result.

``Exchange``, ``Body`` and the events of dissectors are named tuples, not frozen dataclasses: they are made for every
message, and a frozen dataclass of this size costs 1.4 µs to build against 0.5 µs (docs/adr/0002).
"""

from enum import IntFlag
from typing import Any, NamedTuple


class Missing(IntFlag):
    """What a record does not contain. Zero is a complete record; the names are what the API shows."""

    NONE = 0
    REQUEST_GAP = 1  # bytes of the request were not copied
    RESPONSE_GAP = 2
    REQUEST_TRUNCATED = 4  # the body was seen but only its head and tail are stored
    RESPONSE_TRUNCATED = 8
    REQUEST_UNFINISHED = 16  # the connection ended first
    RESPONSE_UNFINISHED = 32
    REDACTED = 64  # values were replaced by tokens
    NOT_RECORDED = 128  # bodies or headers left out by configuration
    SAMPLED_OUT = 256  # counted, content not stored
    MID_STREAM = 512  # the first one after the inspector joined in the middle: what came before is not recorded


def completeness(missing: int) -> str:
    """``complete``, or the reasons why not: ``response-truncated,redacted``."""
    words = [flag.name.lower().replace("_", "-") for flag in Missing if flag and missing & flag and flag.name]
    return ",".join(words) or "complete"


class Body(NamedTuple):
    """The content of one message, after transfer decoding and before content decoding.

    ``length`` counts every byte that was sent (``missing`` of them were not seen); ``head`` and ``tail`` are what was
    kept: the whole body is ``head`` when ``len(head) == length``. ``digest`` is the SHA-256 of all bytes, None unless
    every one was seen.
    """

    length: int
    head: bytes
    tail: bytes
    digest: bytes | None
    missing: int = 0

    @property
    def whole(self) -> bool:
        """Whether every byte of the body is here."""
        return len(self.head) == self.length


EMPTY = Body(0, b"", b"", None)


class Exchange(NamedTuple):
    """One exchange of any protocol, as dissectors' folds return it.

    Times are nanoseconds since the epoch (``first_byte_ns`` and ``ended_ns`` are 0 when that never happened);
    ``request_bytes`` / ``response_bytes`` are sizes on the wire, heads included. ``request_head`` / ``response_head``
    are the bytes as sent, start line included (HTTP: up to the blank line), unredacted: only ``record.redact`` may
    see them on their way to storage. ``missing`` is a ``Missing`` value, ``violations`` are short names
    (``http.content-length-and-chunked``), ``metadata`` holds what the protocol adds (small, JSON-able).
    """

    protocol: str
    method: str
    target: str
    status: str
    status_code: int
    domain: str | None
    started_ns: int
    request_ended_ns: int
    first_byte_ns: int
    ended_ns: int
    request_bytes: int
    response_bytes: int
    request_head: bytes
    response_head: bytes
    request: Body
    response: Body
    missing: int = 0
    error: str | None = None
    violations: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = None
