"""HTTP/1 on the wire and as values (RFC 9112): start lines and chunk sizes. No state, no direction.

Each kind of line has one strict regular expression that accepts what the RFC allows, in linear time, and one lenient
reader for the rest, which says what is wrong under a stable name and still reads what most implementations would.
(Character classes repeat possessively and never back-track; groups do not: CPython 3.11 accepts ``2;`` for
``2(;[a-z]++)*+``.)
"""

import re
from typing import Final, NamedTuple

MAX_LENGTH: Final = 2**62  # no body is longer; offsets stay within a signed 64-bit integer

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"

REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb"++) ([!-~]++) HTTP/1\.([01])\r\n")
STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*+))?\r\n")
CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"((?:;" + TOKEN + rb"++(?:=(?:" + TOKEN + rb'++|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*)\r\n'
)
BLANK: Final = re.compile(rb"\n\r?\n")  # where a head ends, for the most lenient of readers
_BLANK_LINES: Final = re.compile(rb"[\r\n]*+")

FIELD_NAME: Final = re.compile(TOKEN + rb"++")
FIELD_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*+")
_VERSION: Final = re.compile(rb"[A-Z]++/[0-9]++\.[0-9]++")
_LENIENT_STATUS: Final = re.compile(rb"([A-Za-z]++/[0-9]++\.[0-9]++)[\t ]++([0-9]{3})(?![0-9])[\t ]*+(.*)", re.DOTALL)
_LENIENT_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")

# IANA's registry of methods, and PURGE, which caches understand. Others are legal, but readers differ about them.
_METHODS: Final = (
    "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY "
    "MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT QUERY "
    "REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL "
    "PURGE SUBSCRIBE UNSUBSCRIBE NOTIFY M-SEARCH SOURCE"
)
METHODS: Final[dict[bytes, str]] = {name.encode(): name for name in _METHODS.split()}


class Flaw(NamedTuple):
    """Something wrong with a piece of a message, ``at`` bytes into that piece."""

    kind: str
    at: int
    detail: str = ""


class StartLine(NamedTuple):
    """A start line: method, target and version, or version, status and reason. ``fatal``: it is none."""

    first: str
    second: str
    third: str
    flaws: tuple[Flaw, ...]
    fatal: bool = False


def text(raw: bytes) -> str:
    """Bytes of a head as a string that any store accepts: UTF-8 where they are, Latin-1 otherwise, no NUL."""
    try:
        decoded = raw.decode()
    except UnicodeDecodeError:
        decoded = raw.decode("latin-1")
    return decoded.replace("\0", "\\x00") if "\0" in decoded else decoded


def skip_blank_lines(data: bytes, position: int) -> int:
    """Where the next byte is that is neither CR nor LF."""
    match = _BLANK_LINES.match(data, position)
    return match.end() if match else position


def read_request_line(line: bytes) -> StartLine:
    """Read a request line (with its line end) that the strict expression refused, or any other."""
    content, flaws = _strip_line_end(line)
    words = [word for word in content.replace(b"\t", b" ").split(b" ") if word]
    if len(words) < 3 or not _VERSION.fullmatch(words[-1]) or not FIELD_NAME.fullmatch(words[0]):
        return StartLine("", "", "", (*flaws, Flaw("http.start-line", 0, excerpt(content))), fatal=True)
    method, target, version = words[0], b" ".join(words[1:-1]), words[-1]
    if b" ".join((method, target, version)) != content or b" " in target:
        flaws.append(Flaw("http.start-line-space", 0, excerpt(content)))
    if not target.isascii() or not FIELD_VALUE.fullmatch(target):
        flaws.append(Flaw("http.target", len(method) + 1, excerpt(target)))
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        flaws.append(Flaw("http.version", len(content) - len(version), excerpt(version)))
    return StartLine(text(method), text(target), _version(version), tuple(flaws))


def read_status_line(line: bytes) -> StartLine:
    """Read a status line (with its line end) that the strict expression refused, or any other."""
    content, flaws = _strip_line_end(line)
    match = _LENIENT_STATUS.fullmatch(content)
    if match is None:
        return StartLine("", "", "", (*flaws, Flaw("http.start-line", 0, excerpt(content))), fatal=True)
    version, status, reason = match.groups()
    if content[len(version) : match.start(2)] != b" " or content[match.end(2) : match.start(3)] not in (b"", b" "):
        flaws.append(Flaw("http.start-line-space", len(version), excerpt(content)))
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        flaws.append(Flaw("http.version", 0, excerpt(version)))
    if status[:1] == b"0":
        flaws.append(Flaw("http.status", match.start(2), excerpt(status)))
    if not FIELD_VALUE.fullmatch(reason):
        flaws.append(Flaw("http.reason", match.start(3), excerpt(reason)))
    return StartLine(_version(version), text(status), text(reason), tuple(flaws))


def read_chunk_line(line: bytes) -> tuple[int, list[Flaw], bool]:
    """Read a chunk-size line (with its line end): the size, what is wrong with it, and whether it is no size at all."""
    content, flaws = _strip_line_end(line)
    digits, _, extension = content.partition(b";")
    size = digits.strip(b" \t")
    if not _LENIENT_SIZE.fullmatch(size) or (length := int(size, 16)) > MAX_LENGTH:
        return 0, [*flaws, Flaw("http.chunk-size", 0, excerpt(content))], True
    if size != digits:
        flaws.append(Flaw("http.chunk-size", 0, excerpt(content)))
    strict = CHUNK_LINE.fullmatch(size + b";" + extension + b"\r\n") if b";" in content else True
    if not strict:
        flaws.append(Flaw("http.chunk-extension", len(digits), excerpt(extension)))
    return length, flaws, False


def _strip_line_end(line: bytes) -> tuple[bytes, list[Flaw]]:
    flaws: list[Flaw] = []
    content = line.removesuffix(b"\n")
    if content.endswith(b"\r"):
        content = content[:-1]
    elif content != line:
        flaws.append(Flaw("http.bare-lf", len(content)))
    if b"\r" in content:
        flaws.append(Flaw("http.bare-cr", content.index(b"\r")))
    if b"\0" in content:
        flaws.append(Flaw("http.nul", content.index(b"\0")))
    return content, flaws


def _version(raw: bytes) -> str:
    return raw[5:].decode() if raw.startswith(b"HTTP/") else text(raw)


def excerpt(raw: bytes) -> str:
    """The first bytes of what was wrong, printable."""
    return ascii(raw[:60].decode("latin-1"))[1:-1]
