"""The same machine, with a short cut for the message that nearly all messages are.

A message that lies whole and alone in one piece, whose head passes the strict expressions, whose body has a length,
and that finds both directions between messages, changes no state: it goes in and its event comes out. Everything else
takes ``Machine``'s way; both ways yield the same events, which the tests compare.
"""

from collections.abc import Sequence
from typing import Final

from appliance.dissectors.http1 import frames
from appliance.dissectors.http1.events import Request, Response
from appliance.dissectors.http1.fields import MAX_CACHED_BLOCK, Framing, request_fields, response_fields
from appliance.dissectors.http1.machine import START, Machine
from appliance.dissectors.http1.side import Asked
from appliance.dissectors.kit.body import whole
from appliance.dissectors.kit.spec import Event
from appliance.model.direction import TO_SERVER, Direction
from appliance.model.exchange import EMPTY

_LENGTH: Final = Framing.LENGTH
_match_request = frames.REQUEST_LINE.match
_match_status = frames.STATUS_LINE.match
# Building a named tuple by its own constructor costs a Python frame; there are five in an exchange.
_new: Final = tuple.__new__


class FastMachine(Machine):
    """One connection's dissector."""

    __slots__ = ()

    def receive(self, direction: Direction, data: bytes, at: int) -> Sequence[Event]:
        """Take bytes as they came; return what they complete."""
        if self._request.state is START and self._response.state is START:
            event = self._request_at_once(data, at) if direction == TO_SERVER else self._response_at_once(data, at)
            if event is not None:
                return (event,)
        return super().receive(direction, data, at)

    def _request_at_once(self, data: bytes, at: int) -> Request | None:
        side = self._request
        line = _match_request(data)
        if line is None or side.closing:
            return None
        head_end = data.find(b"\r\n\r\n", line.end() - 2) + 2
        raw_method, target, minor = line.groups()
        method = frames.METHODS.get(raw_method)
        if head_end < 2 or head_end > MAX_CACHED_BLOCK or minor != b"1" or method is None or method == "CONNECT":
            return None
        fields = request_fields(data[line.end() : head_end])
        size = len(data)
        if not fields.plain or size != head_end + 2 + fields.length:
            return None
        body, missing = EMPTY, 0
        if fields.length:
            body = whole(data[head_end + 2 :], self._capture)
            if len(body.head) != fields.length:
                missing = self._missing(side, body)
        number = self._next
        unanswered = self._unanswered
        kept = head_end + len(body.head) + len(body.tail)
        unanswered.add(_new(Asked, (number, method, "", kept, self._response.total)))
        if unanswered.too_many:
            unanswered.take_back()
            return None
        self._next = number + 1
        start = side.total
        side.total = start + size
        head = data[:head_end]
        return _new(
            Request,
            (
                number,
                method,
                target.decode(),
                "1.1",
                head,
                fields,
                body,
                b"",
                False,
                start,
                size,
                at,
                at,
                missing,
                (),
            ),
        )

    def _response_at_once(self, data: bytes, at: int) -> Response | None:
        side = self._response
        line = _match_status(data)
        if line is None or side.closing or not self._unanswered:
            return None
        head_end = data.find(b"\r\n\r\n", line.end() - 2) + 2
        minor, raw_status, reason = line.groups()
        if head_end < 2 or head_end > MAX_CACHED_BLOCK or minor != b"1":
            return None
        fields = response_fields(data[line.end() : head_end])
        size = len(data)
        status = int(raw_status)
        if (
            not fields.plain
            or fields.framing is not _LENGTH
            or size != head_end + 2 + fields.length
            or status < 200
            or status == 204
            or status == 304
        ):
            return None
        asked = self._unanswered.next
        if asked.method == "HEAD" or asked.method == "CONNECT":
            return None
        self._unanswered.pop()
        body, missing = EMPTY, 0
        if fields.length:
            body = whole(data[head_end + 2 :], self._capture)
            if len(body.head) != fields.length:
                missing = self._missing(side, body)
        start = side.total
        side.total = start + size
        return _new(
            Response,
            (
                asked.number,
                status,
                "OK" if reason == b"OK" else frames.text(reason or b""),
                "1.1",
                data[:head_end],
                fields,
                body,
                b"",
                False,
                start,
                size,
                at,
                at,
                missing,
                (),
            ),
        )
