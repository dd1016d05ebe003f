"""Decide which protocol a connection speaks from the first bytes of either side.

Bytes beat ports: a port (or what the same destination spoke last time) only says whom to ask first. Nothing waits for
a timeout: bytes are forwarded before they are understood, and a server that speaks first is judged by its own words.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from enum import Enum
from typing import Final, Literal

from appliance.dissectors.kit.spec import ProtocolSpec, Sniff
from appliance.model.direction import Direction

MAX_SNIFFED: Final = 2048  # bytes of each direction that are looked at before giving up


class Undecided(Enum):
    """The type of ``UNDECIDED``: more bytes are needed."""

    UNDECIDED = "undecided"


UNDECIDED: Final = Undecided.UNDECIDED
RAW: Final = None  # no registered protocol: the connection is recorded as ``tcp``

Verdict = ProtocolSpec | Literal[Undecided.UNDECIDED] | None


class Detection:
    """One connection's open question. Feed it chunks until it answers; it never changes its mind."""

    __slots__ = ("_open", "_seen", "_verdict")

    def __init__(self, specs: Sequence[ProtocolSpec], port: int = 0, hint: ProtocolSpec | None = None) -> None:
        """``port`` is the server's; ``hint`` is what this destination spoke before."""
        self._open = sorted(specs, key=lambda spec: (spec is not hint, port not in spec.ports))
        self._seen = (bytearray(), bytearray())
        self._verdict: Verdict = UNDECIDED

    def feed(self, direction: Direction, data: bytes) -> Verdict:
        """Take bytes as they came: the protocol, ``RAW`` when nobody knows it, ``UNDECIDED`` when it may be several."""
        if self._verdict is not UNDECIDED:
            return self._verdict
        seen = self._seen[direction]
        seen += data[: MAX_SNIFFED - len(seen)]
        first_bytes = bytes(seen)
        if not first_bytes:
            return UNDECIDED
        undecided = []
        for spec in self._open:
            answer = spec.sniff(direction, first_bytes)
            if answer is Sniff.YES:
                self._verdict = spec
                return spec
            if answer is Sniff.MORE:
                undecided.append(spec)
        self._open = undecided
        if not undecided or len(seen) >= MAX_SNIFFED:
            self._verdict = RAW
        return self._verdict

    def seen(self, direction: Direction) -> int:
        """How many bytes of a direction were looked at."""
        return len(self._seen[direction])


class Recent:
    """What destinations spoke lately: a bounded map that forgets the least recently used."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int = 10_000) -> None:
        self._entries: OrderedDict[Hashable, ProtocolSpec] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, destination: Hashable) -> ProtocolSpec | None:
        """What this destination spoke last, if it is still remembered."""
        spec = self._entries.get(destination)
        if spec is not None:
            self._entries.move_to_end(destination)
        return spec

    def remember(self, destination: Hashable, spec: ProtocolSpec) -> None:
        """Note what a destination speaks; the oldest is forgotten when there are too many."""
        self._entries[destination] = spec
        self._entries.move_to_end(destination)
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def forget(self, destination: Hashable) -> None:
        """Drop what was remembered: it turned out wrong."""
        self._entries.pop(destination, None)
