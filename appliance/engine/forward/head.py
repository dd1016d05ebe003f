"""HTTP/1.1 heads, read as strictly as a proxy must: what two implementations could read differently is refused.

The dissector of HTTP/1.1 describes what was said, however odd; a forwarder decides what it is willing to say on. So
the two read heads differently on purpose: a smuggling suspect is a violation there and a 400 here (RFC 9112 §11.2).
"""

import re
from typing import NamedTuple

MAX_HEAD = 64 * 1024

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\x00\r\n]*))?")
# obs-text is let through, control characters but HTAB are not (RFC 9110 §5.5).
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_FOLD = re.compile(rb"\r\n[ \t]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")


class Field(NamedTuple):
    """One header line: ``name`` in lower case, ``value`` without surrounding white space, ``line`` as it was sent."""

    name: bytes
    value: bytes
    line: bytes


class Request(NamedTuple):
    """A request head. ``length`` is Content-Length (None without one); ``minor`` is 0 or 1."""

    method: bytes
    target: bytes
    minor: int
    fields: tuple[Field, ...]
    length: int | None
    chunked: bool

    @property
    def has_body(self) -> bool:
        """Whether content follows (RFC 9112 §6: requests have it only when their framing says so)."""
        return self.chunked or bool(self.length)


class Response(NamedTuple):
    """A response head. ``reason`` may be empty."""

    status: int
    reason: bytes
    minor: int
    fields: tuple[Field, ...]
    length: int | None
    chunked: bool


class Malformed(NamedTuple):
    """A head that will not be acted on: the status to answer it with, and why in words."""

    status: int
    text: str


def parse_request(head: bytes) -> Request | Malformed:
    """Read a request head, given without the empty line that ends it."""
    first, *lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        return Malformed(400, f"malformed request line {first[:60]!r}")
    method, target, major, minor = match.groups()
    if major != b"1":
        return Malformed(505, f"HTTP/{major.decode()}.{minor.decode()} is not spoken here, HTTP/1.1 is")
    fields = _fields(lines)
    if isinstance(fields, Malformed):
        return fields
    framing = _framing(fields)
    if isinstance(framing, Malformed):
        return framing
    length, chunked = framing
    if chunked and length is not None:
        return Malformed(400, "both Content-Length and Transfer-Encoding")
    if chunked and minor == b"0":
        return Malformed(400, "Transfer-Encoding in HTTP/1.0")
    hosts = sum(field.name == b"host" for field in fields)
    if hosts > 1 or (hosts == 0 and minor != b"0"):
        return Malformed(400, f"{hosts} Host headers")
    return Request(method, target, min(int(minor), 1), fields, length, chunked)


def parse_response(head: bytes) -> Response | Malformed:
    """Read a response head, given without the empty line that ends it. Folded lines are joined (RFC 9112 §5.2)."""
    first, *lines = _FOLD.sub(b" ", head).split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        return Malformed(502, f"malformed status line {first[:60]!r}")
    minor, status, reason = match.groups()
    fields = _fields(lines)
    if isinstance(fields, Malformed):
        return fields
    framing = _framing(fields)
    if isinstance(framing, Malformed):
        return framing
    length, chunked = framing
    if chunked and length is not None:
        # Transfer-Encoding overrides, and Content-Length is not forwarded (RFC 9112 §6.3).
        fields = tuple(field for field in fields if field.name != b"content-length")
        length = None
    return Response(int(status), reason or b"", int(minor), fields, length, chunked)


def tokens(fields: tuple[Field, ...], name: bytes) -> set[bytes]:
    """The lower-case members of a comma-separated header, over all its lines."""
    found: set[bytes] = set()
    for field in fields:
        if field.name == name:
            found.update(word.strip() for word in field.value.lower().split(b","))
    found.discard(b"")
    return found


def first(fields: tuple[Field, ...], name: bytes) -> bytes | None:
    """The value of the first header of this name."""
    return next((field.value for field in fields if field.name == name), None)


def _fields(lines: list[bytes]) -> tuple[Field, ...] | Malformed:
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            return Malformed(400, f"malformed header line {line[:60]!r}")
        fields.append(Field(match[1].lower(), match[2].rstrip(b" \t"), line))
    return tuple(fields)


def _framing(fields: tuple[Field, ...]) -> tuple[int | None, bool] | Malformed:
    """Content-Length and whether the body is chunked (RFC 9112 §6)."""
    length: int | None = None
    codings: list[bytes] = []
    for field in fields:
        if field.name == b"content-length":
            if length is not None or not _DIGITS.fullmatch(field.value):
                return Malformed(400, "Content-Length is not one number")
            length = int(field.value)
        elif field.name == b"transfer-encoding":
            codings += [coding.strip().lower() for coding in field.value.split(b",")]
    if codings and codings != [b"chunked"]:
        return Malformed(501, f"Transfer-Encoding {b', '.join(codings)[:60]!r} is not spoken here, chunked is")
    return length, bool(codings)
