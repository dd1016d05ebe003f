"""What the HTTP/1 machine knows about one direction, and about the requests that wait for an answer."""

from collections import deque
from collections.abc import Iterable
from enum import Enum
from itertools import takewhile
from typing import Final, NamedTuple

from appliance.dissectors.http1.events import UNANSWERED
from appliance.dissectors.http1.fields import Fields
from appliance.dissectors.http1.frames import Flaw
from appliance.dissectors.http1.framing import ChunkedBody, FixedBody, OpenBody
from appliance.dissectors.kit.spec import Event, Violation
from appliance.model.direction import TO_SERVER, Direction
from appliance.model.exchange import Missing

MAX_HELD: Final = 64 * 1024  # bytes behind a request for another protocol that are kept until it is answered
MAX_HELD_PIECES: Final = 256  # of them that are kept apart
MAX_UNANSWERED: Final = 1024  # pipelined requests that wait for a response
MAX_UNANSWERED_BYTES: Final = 8 * 1024 * 1024  # of their heads and bodies


class State(Enum):
    """Where a direction is."""

    START = "start"  # between messages
    HEAD = "head"
    BODY = "body"
    HOLD = "hold"  # behind a request that asks for another protocol: whose bytes these are is not known yet
    SEEK = "seek"  # after a hole: waiting for the next message
    DONE = "done"  # ended, opaque, or another protocol's


NO_FIELDS: Final = Fields()


class Held(NamedTuple):
    """Bytes, or a hole, behind a request for another protocol; ``heard`` is the side's when they came."""

    at: int
    heard: int
    data: bytearray
    lost: int


class Side:
    """One direction: what has come of the message under way."""

    __slots__ = (
        "answered",
        "begun",
        "body",
        "body_at",
        "buffer",
        "closing",
        "direction",
        "ended",
        "fields",
        "gap",
        "head",
        "heard",
        "held",
        "hole",
        "line_read",
        "method",
        "names",
        "not_kept",
        "number",
        "reason",
        "sought",
        "start",
        "started",
        "state",
        "status",
        "target",
        "total",
        "truncated",
        "unfinished",
        "version",
    )

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        request = direction is TO_SERVER
        self.gap = int(Missing.REQUEST_GAP if request else Missing.RESPONSE_GAP)
        self.unfinished = int(Missing.REQUEST_UNFINISHED if request else Missing.RESPONSE_UNFINISHED)
        self.truncated = int(Missing.REQUEST_TRUNCATED if request else Missing.RESPONSE_TRUNCATED)
        self.state = State.START
        self.total = 0  # bytes received, lost ones included
        self.hole = 0  # where the last lost bytes began
        self.buffer = bytearray()  # of a head that is not whole yet
        self.heard = 0  # bytes that had come from the other side when the piece came that is being read
        self.held: list[Held] = []
        self.not_kept = 0  # bytes that followed what is held, past its bounds
        self.ended = False  # closed while holding
        self.closing = False  # the last message said that it is the last
        self.begin(0, 0, 0)
        self.state = State.START

    def begin(self, start: int, begun: int, at: int) -> None:
        """A message begins at offset ``begun``; to see it again, a reader resumes at ``start``."""
        self.state = State.HEAD
        self.start = start
        self.begun = begun
        self.started = at
        self.number = UNANSWERED
        self.answered = False  # a request: its response came before its own end
        self.sought = False  # it is the first after a hole
        self.line_read = False
        self.method = ""
        self.target = ""
        self.status = 0
        self.reason = ""
        self.version = ""
        self.head = b""
        self.fields = NO_FIELDS
        self.body: FixedBody | OpenBody | ChunkedBody | None = None
        self.body_at = 0
        self.names: tuple[str, ...] = ()  # of violations

    def report(self, flaws: Iterable[Flaw], base: int, events: list[Event], *, fatal: bool = False) -> None:
        """Report what is wrong with the message under way, each kind once; ``base`` is where flaws count from."""
        for flaw in flaws:
            if flaw.kind not in self.names:
                self.names = (*self.names, flaw.kind)
                events.append(Violation(flaw.kind, self.direction, base + flaw.at, flaw.detail, fatal))

    def hold(self, data: bytes, lost: int, at: int) -> None:
        """Keep bytes, or a hole, until it is known whose they are."""
        if self.not_kept:
            self.not_kept += len(data) + lost
            return
        kept = data[: MAX_HELD - sum(len(piece.data) for piece in self.held)]
        self.not_kept = len(data) - len(kept)
        if len(self.held) < MAX_HELD_PIECES:
            self.held.append(Held(at, self.heard, bytearray(kept), lost))
        elif not lost and not self.held[-1].lost:
            self.held[-1].data.extend(kept)
        else:
            self.not_kept += len(kept) + lost

    def early(self) -> bytes:
        """What is held, up to the first hole."""
        seen = takewhile(lambda piece: not piece.lost, self.held)
        return b"".join(piece.data for piece in seen)


class Asked(NamedTuple):
    """A request that waits for its response, as far as the response's framing depends on it.

    ``size`` is how many bytes of it are kept until then; ``heard`` how many bytes had come from the server when it
    was asked.
    """

    number: int
    method: str
    upgrade: str
    size: int
    heard: int


class Unanswered:
    """Requests that no final response has come for, oldest first."""

    __slots__ = ("_asked", "_size")

    def __init__(self) -> None:
        self._asked: deque[Asked] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, asked: Asked) -> None:
        """Wait for one more response."""
        self._size += asked.size
        self._asked.append(asked)

    def grow(self, number: int, size: int) -> None:
        """The latest request turned out to keep more bytes than its head said."""
        if self._asked and self._asked[-1].number == number:
            self._asked[-1] = self._asked[-1]._replace(size=self._asked[-1].size + size)
            self._size += size

    @property
    def too_many(self) -> bool:
        """Whether the bounds are exceeded."""
        return len(self._asked) > MAX_UNANSWERED or self._size > MAX_UNANSWERED_BYTES

    def pop(self) -> Asked:
        """The request that the next final response answers."""
        asked = self._asked.popleft()
        self._size -= asked.size
        return asked

    def take_back(self) -> None:
        """Forget the latest request again."""
        self._size -= self._asked.pop().size

    @property
    def next(self) -> Asked:
        """The request that the next final response answers; there must be one."""
        return self._asked[0]

    @property
    def next_number(self) -> int:
        """The request that an interim response belongs to."""
        return self._asked[0].number if self._asked else UNANSWERED
