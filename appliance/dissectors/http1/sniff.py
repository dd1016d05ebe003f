"""Does a direction's first line look like HTTP/1?"""

import re
from typing import Final

from appliance.dissectors.http1.frames import METHODS
from appliance.dissectors.kit.spec import Sniff
from appliance.model.direction import TO_SERVER, Direction

_REQUEST: Final = re.compile(rb"[\r\n]*+([!#$%&'*+\-.^_`|~0-9A-Za-z]++) ++([!-~\x80-\xff]++)(?: ++HTTP/[0-9])")
_BEGINNING: Final = re.compile(rb"[\r\n]*+([A-Za-z-]{1,32})?(?: ++[!-~\x80-\xff]*+(?: ++H?T?T?P?/?)?)?")
_LONG_TARGET: Final = 1024  # bytes of method and target after which the version is not waited for
_STATUS: Final = b"HTTP/1."
_PREFACE: Final = b"PRI * HTTP/2.0"


def sniff(direction: Direction, data: bytes) -> Sniff:
    """``YES`` for a request line with its version, or a status line; a method we know is enough to go on asking."""
    if direction is not TO_SERVER:
        data = data.lstrip(b"\r\n")
        if data.startswith(_STATUS):
            return Sniff.YES
        return Sniff.MORE if _STATUS.startswith(data) else Sniff.NO
    if data.startswith(_PREFACE):
        return Sniff.NO  # HTTP/2 with prior knowledge (RFC 9113 §3.4)
    match = _REQUEST.match(data)
    if match:
        return Sniff.YES
    beginning = _BEGINNING.fullmatch(data)
    if beginning is None:
        return Sniff.NO
    method = beginning[1] or b""
    # Many text protocols begin with a word; only a method we know may still become a request.
    known = method in METHODS if beginning.end(1) < len(data) else any(name.startswith(method) for name in METHODS)
    if known and len(data) >= _LONG_TARGET:
        return Sniff.YES
    return Sniff.MORE if known else Sniff.NO


def begins_message(direction: Direction, data: bytes) -> bool:
    """Whether a piece that follows a hole plausibly begins a message: stricter than a sniff, nothing is certain."""
    if direction is not TO_SERVER:
        return _STATUS_AFTER_HOLE.match(data) is not None
    match = _REQUEST_AFTER_HOLE.match(data)
    return match is not None and match[1] in METHODS


_STATUS_AFTER_HOLE: Final = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9][ \r]")
_REQUEST_AFTER_HOLE: Final = re.compile(rb"([A-Z-]{3,20}) [!-~]++(?: HTTP/1\.[01]\r\n|\Z)")
