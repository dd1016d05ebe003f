"""Pair requests with responses, in order, and say in one record what was exchanged."""

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from appliance.dissectors.http1.events import UNANSWERED, Request, Response
from appliance.dissectors.http1.fields import domain_of_authority, domain_of_target
from appliance.dissectors.http1.side import NO_FIELDS
from appliance.dissectors.kit.content import format_of
from appliance.dissectors.kit.spec import Event
from appliance.model.direction import TO_SERVER, Direction
from appliance.model.exchange import EMPTY, Exchange, Missing

PROTOCOL: Final = "http/1.1"
MAX_INTERIM: Final = 16  # status codes of interim responses that are listed
_new: Final = tuple.__new__  # a named tuple's own constructor costs a Python frame
_FORMATS_BEGIN: Final = frozenset(b"{[<\xef \t\r\n")  # how JSON and XML may begin, a byte order mark included
_STATUS: Final = {code: str(code) for code in range(1000)} | {0: ""}


class Fold:
    """One connection's exchanges."""

    __slots__ = ("_early", "_interim", "_interim_bytes", "_interim_start", "_requests")

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()  # bounded by the machine: side.MAX_UNANSWERED
        self._early: Response | None = None  # answers the request that is still coming
        self._interim: list[int] = []
        self._interim_bytes = 0
        self._interim_start: int | None = None

    def add(self, event: Event) -> Sequence[Exchange]:
        """Take one event; return the exchange it completes, if any."""
        kind = type(event)
        if kind is Request:
            early = self._early
            if early is not None and early.number == event.number:
                self._early = None
                return (self._exchange(event, early),)
            self._requests.append(event)
        elif kind is Response:
            if event.number == UNANSWERED:
                return () if event.interim else (self._exchange(_no_request(event), event),)
            if event.interim:
                self._note_interim(event)
            elif self._requests and self._requests[0].number == event.number:
                return (self._exchange(self._requests.popleft(), event),)
            else:
                self._early = event
        return ()

    def close(self, at: int) -> Sequence[Exchange]:
        """The connection is over: return what was left unpaired, marked so."""
        early, self._early = self._early, None
        left = [] if early is None else [self._exchange(_no_request(early), early)]
        while self._requests:
            request = self._requests.popleft()
            left.append(self._exchange(request, _no_response(request.number, at)))
        return left

    def unfinished(self, direction: Direction) -> int | None:
        """The offset of the oldest message that is complete but not part of a returned exchange."""
        if direction is TO_SERVER:
            return self._requests[0].start if self._requests else None
        if self._interim_start is not None:
            return self._interim_start
        return self._early.start if self._early is not None and self._early.head else None

    def _note_interim(self, response: Response) -> None:
        if self._interim_start is None:
            self._interim_start = response.start
        self._interim_bytes += response.size
        if len(self._interim) < MAX_INTERIM:
            self._interim.append(response.status)

    def _exchange(self, request: Request, response: Response) -> Exchange:
        # What the fields say is shared by all messages with the same fields: changed only in a copy.
        metadata = response.fields.metadata
        if request.fields.metadata:
            metadata = {**request.fields.metadata, **metadata}
        response_bytes = response.size
        if self._interim_start is not None:
            metadata = {**metadata, "informational": tuple(self._interim)}
            response_bytes += self._interim_bytes
            self._interim, self._interim_bytes, self._interim_start = [], 0, None
        if request.fields.bytes_may_tell and request.body.head:
            metadata = _with_format(metadata, "request_format", request)
        if response.fields.bytes_may_tell and response.body.head:
            metadata = _with_format(metadata, "response_format", response)
        if request.trailers or response.trailers:
            metadata = {**metadata, "trailers": True}
        missing = request.missing | response.missing
        head = response.head
        return _new(
            Exchange,
            (
                PROTOCOL,
                request.method,
                request.target,
                _STATUS[response.status],
                response.status,
                _domain(request),
                request.started_ns,
                request.ended_ns,
                response.started_ns,
                response.ended_ns if head else 0,
                request.size,
                response_bytes,
                request.head,
                head,
                request.body,
                response.body,
                missing,
                _error(request, response) if missing or not head or request.number == UNANSWERED else None,
                request.violations + response.violations if request.violations or response.violations else (),
                metadata or None,
            ),
        )


def _domain(request: Request) -> str | None:
    """The name the request is for: the target's when it names one (RFC 9112 §3.2.2), else the Host field's."""
    target = request.target
    if target[:1] == "/" or target == "*":
        return request.fields.domain
    named = domain_of_authority(target) if request.method == "CONNECT" else domain_of_target(target)
    return named or request.fields.domain


def _error(request: Request, response: Response) -> str | None:
    if request.number == UNANSWERED:
        return "no request was seen for this response"
    if not response.head:
        gap = response.missing & Missing.RESPONSE_GAP
        return "the response was not captured" if gap else "the connection ended before the response"
    if not request.complete:
        return "the request has no end that was seen"
    if not response.complete:
        return "the response has no end that was seen"
    return None


def _with_format(metadata: dict[str, Any], key: str, message: Request | Response) -> dict[str, Any]:
    if message.body.head[0] not in _FORMATS_BEGIN:
        return metadata
    kind = format_of(message.fields.media_type, message.body.head[:64])
    return metadata if kind is None else {**metadata, key: kind}


def _no_request(response: Response) -> Request:
    """What stands for a request that was never seen."""
    at = response.started_ns
    return Request(UNANSWERED, "", "", "", b"", NO_FIELDS, EMPTY, b"", False, 0, 0, at, at)


def _no_response(number: int, at: int) -> Response:
    """What stands for a response that will not come."""
    missing = int(Missing.RESPONSE_UNFINISHED)
    return Response(number, 0, "", "", b"", NO_FIELDS, EMPTY, b"", False, 0, 0, 0, at, missing)
