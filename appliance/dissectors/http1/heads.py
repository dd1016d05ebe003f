"""Read a message's head into a ``Side``: at once when it is strict and in one piece, patiently otherwise."""

from enum import Enum
from typing import Final

from appliance.dissectors.http1 import frames
from appliance.dissectors.http1.fields import request_fields, response_fields
from appliance.dissectors.http1.frames import METHODS, Flaw, StartLine
from appliance.dissectors.http1.side import Side
from appliance.dissectors.kit.spec import Event
from appliance.model.direction import TO_SERVER

MAX_HEAD: Final = 256 * 1024
MAX_START_LINE: Final = 64 * 1024


class Outcome(Enum):
    """What became of a head."""

    WHOLE = "whole"
    MORE = "more"
    BROKEN = "broken"  # no message begins like this


def take_strict(side: Side, data: bytes, position: int, blank: int, base: int, events: list[Event]) -> bool:
    """Read the head that ends with the CRLF CRLF at ``blank``; False when only a lenient reader can tell what it is.

    ``base`` is the offset of ``data`` in the stream.
    """
    if side.direction is TO_SERVER:
        match = frames.REQUEST_LINE.match(data, position)
        if match is None:
            return False
        line_end = match.end()
        fields = request_fields(data[line_end : blank + 2])
        if not fields.lines_end_well:
            return False  # the head may end earlier
        method, target, minor = match.groups()
        known = METHODS.get(method)
        if known is None:
            known = method.decode()
            side.report((Flaw("http.method", 0, known[:60]),), base + position, events)
        side.method = known
        side.target = target.decode()
    else:
        match = frames.STATUS_LINE.match(data, position)
        if match is None:
            return False
        line_end = match.end()
        fields = response_fields(data[line_end : blank + 2])
        if not fields.lines_end_well:
            return False
        minor, status, reason = match.groups()
        side.status = int(status)
        side.reason = frames.text(reason) if reason else ""
    side.version = "1.1" if minor == b"1" else "1.0"
    side.head = data[position : blank + 2]
    side.fields = fields
    if fields.flaws:
        side.report(fields.flaws, base + line_end, events)
    return True


def take(side: Side, data: bytes, position: int, events: list[Event]) -> tuple[Outcome, int]:
    """Read on from ``position``; return what became of the head and where it, or the data, ends."""
    buffer = side.buffer
    if buffer:
        scanned = max(0, len(buffer) - 2)
        buffer += data[position:]
        match = frames.BLANK.search(buffer, scanned)
        raw = bytes(buffer[: match.end()]) if match else b""
        end = len(data) - (len(buffer) - match.end()) if match else len(data)
    else:
        match = frames.BLANK.search(data, position)
        raw = data[position : match.end()] if match else b""
        end = match.end() if match else len(data)
        if match is None:
            buffer += data[position:]
    seen = raw or buffer
    flaw = _too_large_or_broken(side, seen, events)
    if flaw is not None:
        buffer.clear()
        return Outcome.BROKEN, end
    if match is None:
        return Outcome.MORE, end
    buffer.clear()
    _read(side, raw, events)
    return Outcome.WHOLE, end


def take_partial(side: Side, events: list[Event]) -> None:
    """Read what there is of a head that will not become whole."""
    raw = bytes(side.buffer)
    side.buffer.clear()
    side.head = raw
    line_end = raw.find(b"\n") + 1 or len(raw)
    if _start_line(side, raw[:line_end]).fatal:
        return
    _read_start_line(side, raw[:line_end], events)
    whole_lines = raw[line_end : max(line_end, raw.rfind(b"\n") + 1)]
    last = raw[line_end + len(whole_lines) :]
    if last[:1] in (b" ", b"\t", b"\r") or b":" in last:
        whole_lines += last.rstrip(b"\r") + b"\r\n"
    _read_fields(side, whole_lines, line_end, events)


def _too_large_or_broken(side: Side, seen: bytes | bytearray, events: list[Event]) -> Flaw | None:
    """The flaw that makes an end of this direction, reported; what is kept of the head does not depend on cuts."""
    flaw: Flaw | None = None
    kept = 0
    if not side.line_read:
        line_end = seen.find(b"\n", 0, MAX_START_LINE) + 1
        if line_end:
            side.line_read = True
            start_line = _start_line(side, bytes(seen[:line_end]))
            if start_line.fatal:
                side.report(start_line.flaws[:-1], side.begun, events)
                flaw, kept = start_line.flaws[-1], line_end
        elif len(seen) >= MAX_START_LINE:
            flaw, kept = Flaw("http.start-line-too-long", 0), MAX_START_LINE
    if flaw is None and len(seen) > MAX_HEAD:
        flaw, kept = Flaw("http.head-too-large", 0), MAX_HEAD
    if flaw is not None:
        side.head = bytes(seen[:kept])
        side.report((flaw,), side.begun, events, fatal=True)
    return flaw


def _read(side: Side, raw: bytes, events: list[Event]) -> None:
    """Read a whole head, blank line included."""
    blank = len(raw) - (1 if raw.endswith(b"\n\n") else 2)
    line_end = raw.index(b"\n") + 1
    side.head = raw[:blank]
    _read_start_line(side, raw[:line_end], events)
    _read_fields(side, raw[line_end:blank], line_end, events)
    if raw.endswith(b"\n\n"):
        side.report((Flaw("http.bare-lf", blank),), side.begun, events)


def _read_start_line(side: Side, line: bytes, events: list[Event]) -> StartLine:
    start_line = _start_line(side, line)
    side.report(start_line.flaws, side.begun, events)
    if start_line.fatal:
        return start_line
    if side.direction is TO_SERVER:
        side.method, side.target, side.version = start_line.first, start_line.second, start_line.third
        if side.method.encode() not in METHODS:
            side.report((Flaw("http.method", 0, side.method[:60]),), side.begun, events)
    else:
        side.version, side.status, side.reason = start_line.first, int(start_line.second), start_line.third
    return start_line


def _start_line(side: Side, line: bytes) -> StartLine:
    if side.direction is TO_SERVER:
        match = frames.REQUEST_LINE.fullmatch(line)
        if match is None:
            return frames.read_request_line(line)
        return StartLine(match[1].decode(), match[2].decode(), f"1.{match[3].decode()}", ())
    match = frames.STATUS_LINE.fullmatch(line)
    if match is None:
        return frames.read_status_line(line)
    return StartLine(f"1.{match[1].decode()}", match[2].decode(), frames.text(match[3] or b""), ())


def _read_fields(side: Side, block: bytes, at: int, events: list[Event]) -> None:
    request = side.direction is TO_SERVER
    side.fields = request_fields(block) if request else response_fields(block)
    side.report(side.fields.flaws, side.begun + at, events)
