"""What the laws need to know about a protocol, and how they feed it.

Each protocol's tests have a ``subject.py`` that defines ``SUBJECT``; the laws find it by the folder's name.
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from appliance.dissectors import registry
from appliance.dissectors._template import SPEC as TEMPLATE
from appliance.dissectors.kit.spec import Capture, Dissector, Event, Fold, ProtocolSpec
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.exchange import Exchange

Turn = tuple[Direction, bytes]


@dataclass(frozen=True, repr=False)
class Step:
    """One call: bytes, a hole (``lost`` bytes), or the end of a direction."""

    direction: Direction
    data: bytes = b""
    lost: int = 0
    close: bool = False

    @property
    def size(self) -> int:
        return self.lost or len(self.data)

    def __repr__(self) -> str:
        what = "close" if self.close else f"lose {self.lost}" if self.lost else repr(self.data)
        return f"<{self.direction.name} {what}>"


@dataclass(frozen=True)
class Subject:
    """A protocol under law."""

    spec: ProtocolSpec
    conversations: st.SearchStrategy[list[Turn]]  # well-formed, kept open, one turn after the other
    probe: list[Turn]  # one more exchange, recognisable by its target
    probe_target: str
    placed: frozenset[str]  # fields of events that say where and when, not what
    farewells: st.SearchStrategy[list[Turn]] = st.just([])  # turns after which nothing can be found any more  # noqa: RUF009
    endless: dict[str, tuple[list[Turn], Direction, bytes]] = field(default_factory=dict)  # first turns, then for ever

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def package(self) -> str:
        return self.spec.new.__module__.rpartition(".")[0]


def subjects() -> list[Subject]:
    """One for each registered protocol, and one for the template that new ones start from."""
    return [_subject_of(spec) for spec in (*registry.load(), TEMPLATE)]


def _subject_of(spec: ProtocolSpec) -> Subject:
    folder = spec.new.__module__.split(".")[2]
    subject: Subject = importlib.import_module(f"tests.dissectors.{folder}.subject").SUBJECT
    return subject


def steps_of(turns: Sequence[Turn]) -> list[Step]:
    return [Step(direction, data) for direction, data in turns]


@st.composite
def cuts(draw: st.DrawFn, steps: Sequence[Step]) -> list[Step]:
    """The same bytes in other pieces; the order between directions stays."""
    pieces = []
    for step in steps:
        if len(step.data) < 2:
            pieces.append(step)
            continue
        if draw(st.integers(0, 9)) == 0:
            places: Iterable[int] = range(1, len(step.data))
        else:
            places = sorted(draw(st.sets(st.integers(1, len(step.data) - 1), max_size=5)))
        begin = 0
        for place in [*places, len(step.data)]:
            pieces.append(Step(step.direction, step.data[begin:place]))
            begin = place
    return pieces


@st.composite
def damaged(draw: st.DrawFn, turns: Sequence[Turn]) -> list[Turn]:
    """The same conversation with bytes flipped, dropped, doubled or put in."""
    result = []
    for direction, data in turns:
        spoilt = bytearray(data)
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(spoilt)))
            kind = draw(st.sampled_from(("insert", "delete", "double", "replace")))
            noise = draw(st.sampled_from(NOISE) | st.binary(min_size=1, max_size=4))
            span = draw(st.integers(1, 8))
            if kind == "insert":
                spoilt[at:at] = noise
            elif kind == "delete":
                del spoilt[at : at + span]
            elif kind == "double":
                spoilt[at:at] = spoilt[at : at + span]
            else:
                spoilt[at : at + len(noise)] = noise
        result.append((direction, bytes(spoilt)))
    return result


NOISE = (
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"0\r\n\r\n",
    b"ffffffffffffffffff",
    b';="',
)


@st.composite
def with_holes(draw: st.DrawFn, steps: Sequence[Step], count: int = 1) -> list[Step]:
    """The same steps, but a few stretches of bytes were not seen."""
    result = list(steps)
    for _ in range(count):
        candidates = [place for place, step in enumerate(result) if step.data]
        if not candidates:
            return result
        place = draw(st.sampled_from(candidates))
        step = result[place]
        begin = draw(st.integers(0, len(step.data) - 1))
        end = draw(st.integers(begin + 1, len(step.data)))
        around = [
            Step(step.direction, step.data[:begin]),
            Step(step.direction, lost=end - begin),
            Step(step.direction, step.data[end:]),
        ]
        result[place : place + 1] = [piece for piece in around if piece.size]
    return result


def feed(machine: Dissector, step: Step, at: int) -> Sequence[Event]:
    if step.close:
        return machine.close(step.direction, at)
    if step.lost:
        return machine.lose(step.direction, step.lost, at)
    return machine.receive(step.direction, step.data, at)


def run(spec: ProtocolSpec, steps: Iterable[Step], capture: Capture | None = None) -> list[Event]:
    """All events, at one constant time."""
    machine = spec.new(capture or Capture())
    return [event for step in steps for event in feed(machine, step, 1)]


def fold(fold_: Fold, events: Iterable[Event]) -> Iterator[Exchange]:
    for event in events:
        yield from fold_.add(event)


def stripped(event: Event, placed: frozenset[str]) -> Any:
    """An event without where and when."""
    return event._replace(**dict.fromkeys(placed.intersection(event._fields)))


CLOSED = [Step(TO_SERVER, close=True), Step(TO_CLIENT, close=True)]
