"""The HTTP/1 machine: two byte streams in, whole messages out (RFC 9112).

Each direction walks START → HEAD → BODY → START. Few things need both directions: a response is framed by what was
asked (HEAD, CONNECT), a request for another protocol holds the bytes behind it until the answer is known, and where
bytes were lost, what the other side does next tells that a message is over.

What a direction is told to forget stays exact: ``unfinished`` is where a fresh machine resumes, and it then finds the
same messages, also behind a hole.
"""

from collections.abc import Sequence
from typing import Final

from appliance.dissectors.http1 import frames, heads
from appliance.dissectors.http1.events import UNANSWERED, Request, Response
from appliance.dissectors.http1.fields import MAX_CACHED_BLOCK, Framing
from appliance.dissectors.http1.frames import Flaw
from appliance.dissectors.http1.framing import ChunkedBody, FixedBody, OpenBody
from appliance.dissectors.http1.heads import Outcome
from appliance.dissectors.http1.side import NO_FIELDS, Asked, Side, State, Unanswered
from appliance.dissectors.http1.sniff import begins_message
from appliance.dissectors.kit.body import whole
from appliance.dissectors.kit.spec import NEVER, Capture, Desynchronised, Event, Switched, Violation
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.exchange import EMPTY, Body, Missing

START, HEAD, BODY, HOLD, SEEK, DONE = State
_NOT_RECORDED: Final = int(Missing.NOT_RECORDED)
_NONE, _LENGTH, _CHUNKED = Framing.NONE, Framing.LENGTH, Framing.CHUNKED


class Machine:
    """One connection's dissector: every path that a message can take."""

    __slots__ = ("_capture", "_next", "_request", "_response", "_sides", "_unanswered")

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._request = Side(TO_SERVER)
        self._response = Side(TO_CLIENT)
        self._sides = (self._request, self._response)
        self._next = 0  # number of the next request
        self._unanswered = Unanswered()

    def receive(self, direction: Direction, data: bytes, at: int) -> Sequence[Event]:
        """Take bytes as they came; return what they complete."""
        side = self._sides[direction]
        base = side.total
        side.total = base + len(data)
        side.heard = self._sides[not direction].total
        events: list[Event] = []
        self._drain(side, data, base, at, events)
        return events

    def lose(self, direction: Direction, count: int, at: int) -> Sequence[Event]:
        """Skip ``count`` bytes that were not seen."""
        side = self._sides[direction]
        hole = side.total
        events: list[Event] = []
        if count > 0:
            side.total = hole + count
            self._skip(side, hole, count, at, events)
        return events

    def close(self, direction: Direction, at: int) -> Sequence[Event]:
        """This direction has ended: complete what ends with it, report what is cut off."""
        side = self._sides[direction]
        events: list[Event] = []
        if side.state is HOLD:
            side.ended = True  # what is held may still be HTTP, if the answer says so
        else:
            self._end(side, at, events)
        return events

    def unfinished(self, direction: Direction) -> int:
        """Where a fresh machine must resume in this direction; ``NEVER`` when nothing more will be read."""
        side = self._sides[direction]
        if side.state is START:
            return side.total
        return NEVER if side.state is DONE else side.start

    # Walking the states

    def _drain(self, side: Side, data: bytes, base: int, at: int, events: list[Event]) -> None:
        """Consume ``data``, whose first byte is at offset ``base`` of its stream."""
        position, size = 0, len(data)
        blank = -1  # where the next CRLF CRLF is, ``size`` when there is none; stale once it is behind ``position``
        while position < size:
            state = side.state
            if state is START:
                if data[position] in b"\r\n":
                    # RFC 9112 §2.2: empty lines before a message are ignored.
                    position = frames.skip_blank_lines(data, position)
                    continue
                self._begin(side, base + position, base + position, at, events)
            elif state is BODY:
                position = self._take_body(side, data, position, base, at, events)
                continue
            elif state is SEEK:
                if position or not begins_message(side.direction, data):
                    return
                self._begin(side, side.start, base, at, events)
                side.sought = True
            elif state is HOLD:
                rest = data[position:]
                if not begins_message(side.direction, rest) or not self._has_answers(at, events):
                    side.hold(rest, 0, at)
                    return
                self._release(at, events)  # the answer was lost, and the client goes on in HTTP
                continue
            elif state is DONE:
                return
            if not side.buffer:
                if blank < position:
                    blank = data.find(b"\r\n\r\n", position)
                    if blank < 0:
                        blank = size
                # Long heads go the patient way, so that a long piece is not read again for each of its messages.
                short = blank < size and blank - position < MAX_CACHED_BLOCK
                if short and heads.take_strict(side, data, position, blank, base, events):
                    position = self._act(side, data, blank + 4, base, at, events)
                    continue
            outcome, position = heads.take(side, data, position, events)
            if outcome is Outcome.WHOLE:
                position = self._act(side, data, position, base, at, events)
            elif outcome is Outcome.BROKEN:
                self._cut(side, side.unfinished, side.begun + len(side.head), at, events)
                self._done(side, at, events)

    def _act(self, side: Side, data: bytes, after: int, base: int, at: int, events: list[Event]) -> int:
        """Act on a head that was read; its body, if any, begins at ``data[after]``. Return where reading goes on."""
        if side is self._request:
            return self._act_on_request(side, data, after, base, at, events)
        return self._act_on_response(side, data, after, base, at, events)

    def _begin(self, side: Side, start: int, begun: int, at: int, events: list[Event]) -> None:
        side.begin(start, begun, at)
        if side.closing:
            # Reported apart from the message: a machine that resumes here does not know of it.
            side.closing = False
            events.append(Violation("http.data-after-close", side.direction, begun))
        if side is not self._request:
            return
        side.number = self._next
        self._next += 1
        self._has_answers(at, events)

    def _has_answers(self, at: int, events: list[Event]) -> bool:
        """The client goes on: what was lost of the answers that it waited for is over. False when some are to come."""
        response = self._response
        if response.state is BODY and response.body is not None and response.body.lost:
            self._finish(response, response.total, at, events)
            self._seek(response, response.hole, events)
        if response.state is SEEK:
            self._give_up_asked_before(self._request.heard, at, events)
        return not self._unanswered

    def _skip(self, side: Side, hole: int, count: int, at: int, events: list[Event]) -> None:
        """``count`` bytes at offset ``hole`` were not seen."""
        state, body = side.state, side.body
        if state is HOLD:
            side.hold(b"", count, at)
        elif state is START:
            self._seek(side, hole, events)
        elif state is HEAD:
            heads.take_partial(side, events)
            self._cut(side, side.gap | side.unfinished, hole, at, events)
            self._seek(side, hole, events)
        elif state is BODY and body is not None:
            was_lost = body.lost
            side.hole = hole
            beyond = body.lose(count)
            if body.done:
                self._finish(side, hole + count - beyond, at, events)
                if beyond:
                    self._skip(side, hole + count - beyond, beyond, at, events)
            elif body.lost and not was_lost:
                events.append(Desynchronised(side.direction, hole))

    def _seek(self, side: Side, hole: int, events: list[Event]) -> None:
        if side.state is not DONE:
            side.state = SEEK
            side.start = hole
            events.append(Desynchronised(side.direction, hole))

    def _end(self, side: Side, at: int, events: list[Event]) -> None:
        state, body = side.state, side.body
        if state is BODY and body is not None and (body.lost or isinstance(body, OpenBody)):
            self._finish(side, side.total, at, events)
        elif state is HEAD or state is BODY:
            if state is HEAD:
                heads.take_partial(side, events)
            side.report((Flaw("http.incomplete-message", 0),), side.total, events)
            self._cut(side, side.unfinished, side.total, at, events)
        self._done(side, at, events)

    def _done(self, side: Side, at: int, events: list[Event]) -> None:
        """Read no more of this direction."""
        side.state = DONE
        side.buffer.clear()
        side.held.clear()
        if side is self._response:
            self._give_up_answers(side.unfinished, at, events)
            if self._request.state is HOLD:
                self._done(self._request, at, events)

    # Requests

    def _act_on_request(self, side: Side, data: bytes, after: int, base: int, at: int, events: list[Event]) -> int:
        fields = side.fields
        framing, length = fields.framing, fields.length
        if not fields.hosts and side.version == "1.1":
            side.report((Flaw("http.host-missing", 0),), side.begun, events)
        if not side.answered and not self._ask(side, at, events):
            side.report((Flaw("http.pipeline-too-deep", 0),), side.begun, events, fatal=True)
            self._emit(side, side.unfinished, base + after, at, events)
            self._done(side, at, events)
            return len(data)
        if framing is _NONE or (not length and framing is _LENGTH) or side.method == "CONNECT":
            self._emit_request(side, EMPTY, base + after, at, 0, events)
            return after
        if framing is _LENGTH:
            end = after + length
            if end <= len(data):
                body = whole(data[after:end], self._capture)
                self._emit_request(side, body, base + end, at, self._missing(side, body), events)
                return end
            side.body = FixedBody(self._capture, length)
        elif framing is _CHUNKED:
            if side.version == "1.0":
                side.report((Flaw("http.chunked-in-1.0", 0),), side.begun, events)
            side.body = ChunkedBody(self._capture)
        else:
            # RFC 9112 §6.3: the server cannot know where this request ends, and neither can we.
            side.report((Flaw("http.framing-unknown", 0, framing.name.lower()),), side.begun, events, fatal=True)
            self._emit(side, side.unfinished, base + after, at, events)
            self._done(side, at, events)
            return len(data)
        side.body_at = base + after
        side.state = BODY
        return after

    def _ask(self, side: Side, at: int, events: list[Event]) -> bool:
        """Wait for this request's response; False when too many wait already."""
        if self._response.state is DONE:
            side.answered = True
            events.append(self._no_answer(side.number, self._response.unfinished, at))
            return True
        self._unanswered.add(Asked(side.number, side.method, side.fields.upgrade, len(side.head), side.heard))
        return not self._unanswered.too_many

    def _emit_request(self, side: Side, body: Body, end: int, at: int, missing: int, events: list[Event]) -> None:
        fields = side.fields
        trailers = side.body.trailers if side.body is not None else b""
        chunked = isinstance(side.body, ChunkedBody)
        events.append(
            Request(
                side.number,
                side.method,
                side.target,
                side.version,
                side.head,
                fields,
                body,
                trailers,
                chunked,
                side.start,
                end - side.begun,
                side.started,
                at,
                missing,
                side.names,
            )
        )
        if body is not EMPTY:
            self._unanswered.grow(side.number, len(body.head) + len(body.tail))
        side.body = None
        side.state = START
        if side.version != "1.1" or fields.close:
            side.closing = fields.close or not fields.keep_alive
        if (fields.upgrade or side.method == "CONNECT") and not side.answered and not missing & side.unfinished:
            side.state = HOLD
            side.start = end
            side.closing = False

    def _release(self, at: int, events: list[Event]) -> None:
        """What was held is HTTP after all."""
        side = self._request
        begun, heard, held, not_kept = side.start, side.heard, side.held, side.not_kept
        side.held, side.not_kept = [], 0
        side.state = START
        for piece in held:
            side.heard = piece.heard
            if piece.lost:
                self._skip(side, begun, piece.lost, piece.at, events)
            else:
                self._drain(side, bytes(piece.data), begun, piece.at, events)
            begun += piece.lost + len(piece.data)
        side.heard = heard
        if not_kept:
            self._skip(side, begun, not_kept, at, events)
        if side.ended and side.state is not HOLD:
            self._end(side, at, events)

    # Responses

    def _act_on_response(self, side: Side, data: bytes, after: int, base: int, at: int, events: list[Event]) -> int:
        status, fields = side.status, side.fields
        if side.sought:
            if self._is_endless(side):
                # Rather content that looks like a head: as one, it would take everything that comes.
                side.state = SEEK
                return len(data)
            self._pair_anew(side, at, events)
        if 100 <= status < 200 and status != 101:
            side.number = self._unanswered.next_number
            self._emit_response(side, EMPTY, base + after, at, 0, events)
            return after
        asked = self._answered(side, at, events)
        if side.state is DONE:
            return len(data)
        method = asked.method if asked is not None else ""
        if status == 101 or (method == "CONNECT" and 200 <= status < 300):
            protocol = "" if method == "CONNECT" else fields.upgrade or (asked.upgrade if asked is not None else "")
            if status == 101 and asked is not None and not asked.upgrade:
                side.report((Flaw("http.switch-not-asked", 0),), side.begun, events)
            self._emit_response(side, EMPTY, base + after, at, 0, events)
            self._switch(protocol, base + after, at, events)
            return len(data)
        request = self._request
        if request.state is HOLD and asked is not None and (asked.upgrade or method == "CONNECT"):
            self._release(at, events)
        framing, length = fields.framing, fields.length
        # RFC 9112 §6.3: these have no body, whatever their fields say.
        if method == "HEAD" or status == 204 or status == 304 or (framing is _LENGTH and not length):
            self._emit_response(side, EMPTY, base + after, at, 0, events)
            return after
        if framing is _LENGTH:
            end = after + length
            if end <= len(data):
                body = whole(data[after:end], self._capture)
                self._emit_response(side, body, base + end, at, self._missing(side, body), events)
                return end
            side.body = FixedBody(self._capture, length)
        elif framing is _CHUNKED:
            if side.version == "1.0":
                side.report((Flaw("http.chunked-in-1.0", 0),), side.begun, events)
            side.body = ChunkedBody(self._capture)
        else:
            side.body = OpenBody(self._capture)
        side.body_at = base + after
        side.state = BODY
        return after

    def _is_endless(self, side: Side) -> bool:
        """Whether this response lasts until the connection closes although it does not say that it will."""
        status, fields = side.status, side.fields
        if fields.framing is _LENGTH or fields.framing is _CHUNKED or status < 200 or status in (204, 304):
            return False
        method = self._unanswered.next.method if self._unanswered else ""
        if method == "HEAD" or (method == "CONNECT" and status < 300):
            return False
        return side.version == "1.1" and not fields.close

    def _pair_anew(self, side: Side, at: int, events: list[Event]) -> None:
        """Behind a hole, nobody knows which of several requests a response answers, nor what the next one will."""
        request = self._request
        if len(self._unanswered) + (request.state is HOLD and bool(request.held)) < 2:
            return
        self._give_up_asked_before(side.begun, at, events)
        while request.state is HOLD and not self._unanswered:
            self._release(at, events)
            self._give_up_asked_before(side.begun, at, events)

    def _answered(self, side: Side, at: int, events: list[Event]) -> Asked | None:
        """Find the request that this final response answers, and note its number."""
        request = self._request
        if request.state is BODY and request.body is not None and request.body.lost:
            # An answer to an upload whose end was lost: it has ended.
            self._finish(request, request.total, at, events)
            self._seek(request, request.hole, events)
        if self._unanswered:
            asked = self._unanswered.pop()
            side.number = asked.number
            if asked.number == request.number:
                request.answered = True
            return asked
        side.number = UNANSWERED
        if request.state is HEAD or request.state is BODY:
            if request.answered:
                # Response splitting, or a server that has lost count: nobody can pair what follows.
                side.report((Flaw("http.response-not-asked", 0),), side.begun, events, fatal=True)
                self._done(side, at, events)
                return None
            request.answered = True
            side.number = request.number
        return None

    def _emit_response(self, side: Side, body: Body, end: int, at: int, missing: int, events: list[Event]) -> None:
        fields = side.fields
        trailers = side.body.trailers if side.body is not None else b""
        chunked = isinstance(side.body, ChunkedBody)
        events.append(
            Response(
                side.number,
                side.status,
                side.reason,
                side.version,
                side.head,
                fields,
                body,
                trailers,
                chunked,
                side.start,
                end - side.begun,
                side.started,
                at,
                missing | side.gap if side.sought else missing,
                side.names,
            )
        )
        side.body = None
        side.state = START
        if side.version != "1.1" or fields.close:
            side.closing = fields.close or not fields.keep_alive

    def _no_answer(self, number: int, missing: int, at: int) -> Response:
        return Response(number, 0, "", "", b"", NO_FIELDS, EMPTY, b"", False, 0, 0, 0, at, missing)

    def _give_up_asked_before(self, heard: int, at: int, events: list[Event]) -> None:
        """No answer will be found to what was asked before so many bytes had come from the server."""
        request = self._request
        while self._unanswered and self._unanswered.next.heard < heard:
            if request.state is BODY and self._unanswered.next.number == request.number:
                return  # a request that is still under way is answered last
            events.append(self._no_answer(self._unanswered.pop().number, self._response.gap, at))

    def _give_up_answers(self, missing: int, at: int, events: list[Event]) -> None:
        """Nothing will come for the requests that wait."""
        while self._unanswered:
            asked = self._unanswered.pop()
            if asked.number == self._request.number:
                self._request.answered = True
            events.append(self._no_answer(asked.number, missing, at))

    def _switch(self, protocol: str, to_client: int, at: int, events: list[Event]) -> None:
        """Both directions are another protocol's from here on."""
        request = self._request
        early, to_server = b"", request.total
        if request.state is HOLD:
            early, to_server = request.early(), request.start
        elif request.state is HEAD or request.state is BODY:
            self._end(request, at, events)
        request.state = self._response.state = DONE
        request.buffer.clear()
        request.held.clear()
        self._give_up_answers(self._response.unfinished, at, events)
        early_lost = request.total - to_server - len(early)
        events.append(Switched(protocol, to_client, to_server, early, early_lost))

    # Bodies

    def _take_body(self, side: Side, data: bytes, position: int, base: int, at: int, events: list[Event]) -> int:
        body = side.body
        if body is None:
            return len(data)
        if body.lost and not position and begins_message(side.direction, data):
            self._finish(side, base, at, events)
            self._seek(side, side.hole, events)
            return 0
        position = body.take(data, position)
        if body.flaws:
            last = body.flaws[-1]
            if body.fatal:
                side.report(body.flaws[:-1], side.body_at, events)
                side.report((last,), side.body_at, events, fatal=True)
                self._cut(side, side.unfinished, side.body_at + last.at, at, events)
                self._done(side, at, events)
                return len(data)
            side.report(body.flaws, side.body_at, events)
            body.flaws.clear()
        if body.done:
            self._finish(side, base + position, at, events)
            if body.lost and side is self._response and self._unanswered:
                # Further answers may have been taken for the end of this body.
                self._seek(side, side.hole, events)
        return position

    def _finish(self, side: Side, end: int, at: int, events: list[Event]) -> None:
        """The message under way ends at offset ``end``."""
        self._emit(side, 0, end, at, events)

    def _cut(self, side: Side, missing: int, end: int, at: int, events: list[Event]) -> None:
        """Report what there is of a message whose end will not be seen."""
        asked: Asked | None = None
        if side.state is HEAD:
            if side is self._response:
                if side.sought:
                    self._pair_anew(side, at, events)
                if 100 <= side.status < 200 and side.status != 101:
                    side.number = self._unanswered.next_number
                else:
                    asked = self._answered(side, at, events)
                if side.state is DONE:
                    return
            elif not side.answered:
                self._ask(side, at, events)
        self._emit(side, missing, end, at, events)
        if asked is not None and self._request.state is HOLD and (asked.upgrade or asked.method == "CONNECT"):
            self._release(at, events)  # whether it was accepted is lost; HTTP says at once when it was

    def _emit(self, side: Side, missing: int, end: int, at: int, events: list[Event]) -> None:
        body = side.body.finish() if side.body is not None else EMPTY
        missing |= self._missing(side, body)
        if side is self._request:
            self._emit_request(side, body, end, at, missing, events)
        else:
            self._emit_response(side, body, end, at, missing, events)

    def _missing(self, side: Side, body: Body) -> int:
        if len(body.head) == body.length:
            return 0
        if body.missing:
            return side.gap
        return _NOT_RECORDED if self._capture.headers_only else side.truncated
