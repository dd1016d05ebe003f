"""The machine: two byte streams in, commands and replies out.

Each direction is a sequence of lines. After a hole, a direction skips to the next line end; a line that never ends
makes it opaque.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from appliance.dissectors._template import frames
from appliance.dissectors._template.events import Command, Reply
from appliance.dissectors.kit.spec import NEVER, Capture, Desynchronised, Event, Violation
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction

MAX_LINE: Final = 64 * 1024
MAX_WAITING: Final = 1024  # commands without a reply


class State(Enum):
    """Where a direction is."""

    LINES = "lines"
    SEEK = "seek"  # after a hole: waiting for a line end
    DONE = "done"  # ended or opaque


class Side:
    """One direction: the line under way."""

    __slots__ = ("buffer", "direction", "start", "started", "state", "total")

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.state = State.LINES
        self.buffer = bytearray()
        self.total = 0  # bytes received, lost ones included
        self.start = 0  # where to resume
        self.started = 0


class Machine:
    """One connection's dissector."""

    __slots__ = ("_sides", "_waiting")

    def __init__(self, capture: Capture) -> None:
        self._sides = (Side(TO_SERVER), Side(TO_CLIENT))
        self._waiting = 0

    def receive(self, direction: Direction, data: bytes, at: int) -> Sequence[Event]:
        """Take bytes as they came; return what they complete."""
        side = self._sides[direction]
        base = side.total
        side.total = base + len(data)
        position, events = 0, list[Event]()
        if side.state is State.SEEK:
            position = data.find(b"\n") + 1
            if position:
                side.state = State.LINES
                side.start = base + position
        while side.state is State.LINES and position < len(data):
            if not side.buffer:
                side.start, side.started = base + position, at
            end = data.find(b"\n", position) + 1
            side.buffer += data[position : end or len(data)]
            position = end or len(data)
            if len(side.buffer) > MAX_LINE:
                self._fail(side, "template.line-too-long", events)
            elif end:
                line = bytes(side.buffer)
                side.buffer.clear()
                side.start = base + end
                self._take_line(side, line, base + end - len(line), at, events)
        return events

    def lose(self, direction: Direction, count: int, at: int) -> Sequence[Event]:
        """Skip ``count`` bytes that were not seen."""
        side = self._sides[direction]
        hole = side.total
        side.total = hole + count
        if count <= 0 or side.state is not State.LINES:
            return []
        side.buffer.clear()
        side.state = State.SEEK
        side.start = hole
        if direction == TO_CLIENT:
            self._waiting = 0  # nobody knows which of them were answered
        return [Desynchronised(direction, hole)]

    def close(self, direction: Direction, at: int) -> Sequence[Event]:
        """This direction has ended."""
        side = self._sides[direction]
        cut = side.state is State.LINES and side.buffer
        side.state = State.DONE
        side.buffer.clear()
        return [Violation("template.incomplete-line", direction, side.start)] if cut else []

    def unfinished(self, direction: Direction) -> int:
        """Where a fresh machine must resume in this direction; ``NEVER`` when nothing more will be read."""
        side = self._sides[direction]
        return NEVER if side.state is State.DONE else side.start

    def _take_line(self, side: Side, line: bytes, start: int, at: int, events: list[Event]) -> None:
        violations: tuple[str, ...] = ()
        if not line.endswith(b"\r\n"):
            violations = ("template.bare-lf",)
            events.append(Violation("template.bare-lf", side.direction, start))
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if side.direction is TO_SERVER:
            self._waiting += 1
            if self._waiting > MAX_WAITING:
                self._fail(side, "template.too-many-waiting", events)
                return
            events.append(Command(*frames.read_command(content), start, len(line), side.started, at, violations))
            return
        reply = frames.read_reply(content)
        if reply is None:
            events.append(Violation("template.no-reply", side.direction, start))
            return
        self._waiting = max(0, self._waiting - 1)
        events.append(Reply(*reply, start, len(line), side.started, at, violations))

    def _fail(self, side: Side, kind: str, events: list[Event]) -> None:
        side.state = State.DONE
        side.buffer.clear()
        events.append(Violation(kind, side.direction, side.start, fatal=True))
