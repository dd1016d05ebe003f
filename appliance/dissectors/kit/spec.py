"""The shape of a protocol: what a folder under ``dissectors`` offers and what the inspector asks of it.

A ``Dissector`` turns two byte streams into events; a ``Fold`` turns events into exchanges. Neither raises on any
input: what a peer does wrong is a ``Violation`` among the events. Both are told the time; neither asks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from appliance.model.direction import Direction
from appliance.model.exchange import Exchange


class Sniff(Enum):
    """What first bytes say about a protocol."""

    YES = "yes"
    NO = "no"
    MORE = "more"  # a prefix of something that could be ours


class Violation(NamedTuple):
    """Something a peer did that its protocol forbids, or that two implementations would read differently.

    ``kind`` is a stable short name (``http.bare-lf``); ``at`` is the offset in that direction's byte stream;
    ``fatal`` means that the direction is opaque from here on.
    """

    kind: str
    direction: Direction
    at: int
    detail: str = ""
    fatal: bool = False


class Switched(NamedTuple):
    """The connection speaks another protocol from here on (HTTP Upgrade, CONNECT). ``protocol`` may be empty.

    ``at`` and ``to_server`` are the offsets at which it begins in the streams toward client and server. A client may
    have spoken early: ``early`` holds the bytes past ``to_server`` that were received already (``early_lost`` more
    were not kept); whoever takes over is fed those first. Bytes past ``at`` are in the chunk just received.
    """

    protocol: str
    at: int
    to_server: int = 0
    early: bytes = b""
    early_lost: int = 0


class Desynchronised(NamedTuple):
    """Bytes were lost where the framing needed them: this direction waits for the next recognisable message.

    ``at`` is the offset of the first lost byte in that direction's stream.
    """

    direction: Direction
    at: int


Event = Any  # a protocol's own named tuple, a Violation, Switched, or Desynchronised

NEVER = 2**63 - 1  # an offset no stream reaches: nothing of this direction will be needed again


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """How much of a message a dissector keeps, in bytes. Bounds memory per message in flight.

    A body that is known to be longer than ``digest_limit`` is not hashed: it will arrive with holes.
    """

    body_head: int = 192 * 1024
    body_tail: int = 64 * 1024
    digest_limit: int = 2**63 - 1
    headers_only: bool = False  # fast path: sizes and start lines, no bodies


class Dissector(Protocol):
    """One connection's protocol machine."""

    def receive(self, direction: Direction, data: bytes, at: int) -> Sequence[Event]:
        """Take bytes as they came (``at``: ns since the epoch, never decreasing); return what they complete."""

    def lose(self, direction: Direction, count: int, at: int) -> Sequence[Event]:
        """``count`` bytes of this direction were not seen. Resynchronise, or say so and stay opaque."""

    def close(self, direction: Direction, at: int) -> Sequence[Event]:
        """This direction has ended (end of file or reset)."""

    def unfinished(self, direction: Direction) -> int:
        """Offset in this direction's byte stream of the oldest byte that an incomplete message still needs.

        The number of bytes received so far (lost ones included) when nothing is incomplete. It is where a
        restarted inspector resumes. ``NEVER`` when the direction has ended or is opaque: a restarted inspector
        calls ``close`` for that direction and feeds it no more.
        """


class Fold(Protocol):
    """Pairs a dissector's events into exchanges."""

    def add(self, event: Event) -> Sequence[Exchange]:
        """Take one event; return the exchanges it completes."""

    def close(self, at: int) -> Sequence[Exchange]:
        """The connection is over: return what was left unfinished, marked so."""

    def unfinished(self, direction: Direction) -> int | None:
        """Like ``Dissector.unfinished`` for messages that are complete but still unpaired; None when there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSpec:
    """Everything the core knows about a protocol. Adding one is adding one of these to the registry."""

    name: str
    ports: tuple[int, ...]
    alpn: tuple[str, ...]
    sniff: Callable[[Direction, bytes], Sniff]
    new: Callable[[Capture], Dissector]
    fold: Callable[[], Fold]
    encode: Callable[[Event], bytes] | None = None
