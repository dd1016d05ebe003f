"""A protocol small enough to be obviously right: a request is a line, its response is a line."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from appliance.dissectors.kit.spec import Capture, Event, ProtocolSpec, Sniff
from appliance.model.direction import TO_SERVER, Direction
from appliance.model.exchange import EMPTY, Exchange


class Line(NamedTuple):
    direction: Direction
    text: bytes
    at: int
    start: int


class Lines:
    def __init__(self, _capture: Capture) -> None:
        self._buffers = [b"", b""]
        self._starts = [0, 0]

    def receive(self, direction: Direction, data: bytes, at: int) -> Sequence[Event]:
        events = []
        *lines, rest = (self._buffers[direction] + data).split(b"\n")
        for line in lines:
            events.append(Line(direction, line, at, self._starts[direction]))
            self._starts[direction] += len(line) + 1
        self._buffers[direction] = rest
        return events

    def lose(self, direction: Direction, count: int, at: int) -> Sequence[Event]:
        self._starts[direction] += len(self._buffers[direction]) + count
        self._buffers[direction] = b""
        return []

    def close(self, direction: Direction, at: int) -> Sequence[Event]:
        return []

    def unfinished(self, direction: Direction) -> int:
        return self._starts[direction]


class Pairs:
    def __init__(self) -> None:
        self._asked: deque[Line] = deque()

    def add(self, event: Line) -> Sequence[Exchange]:
        if event.direction is TO_SERVER:
            self._asked.append(event)
            return ()
        if not self._asked:
            return ()
        asked = self._asked.popleft()
        return [exchange(asked.text, event.text, asked.at, event.at)]

    def close(self, at: int) -> Sequence[Exchange]:
        return ()

    def unfinished(self, direction: Direction) -> int | None:
        return self._asked[0].start if direction is TO_SERVER and self._asked else None


def exchange(asked: bytes, answered: bytes, started: int, ended: int, **more: Any) -> Exchange:
    return Exchange(
        "toy", "ASK", asked.decode(), answered.decode(), 0, None, started, started, ended, ended,
        len(asked), len(answered), b"", b"", EMPTY, EMPTY, **more,
    )  # fmt: skip


def sniff(direction: Direction, data: bytes) -> Sniff:
    if not data.startswith(b"q"[: len(data)]) or direction is not TO_SERVER:
        return Sniff.NO
    return Sniff.YES if len(data) > 1 else Sniff.MORE


SPEC = ProtocolSpec(name="toy", ports=(7,), alpn=(), sniff=sniff, new=Lines, fold=Pairs)
