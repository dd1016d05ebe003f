"""The client's side of forwarding: one request at a time, from its head to the last byte of its response.

Requests that a client pipelines wait here, unread beyond ``MAX_PENDING``, until the response before them is complete:
so the order of responses never depends on which upstream is faster. Bodies are streamed in both directions and never
held. The inspector is shown what the client sent and what the client received, not our rewritten heads.
"""

import asyncio
import time
from enum import Enum, auto
from typing import ClassVar, cast

from appliance.engine.dial import DialFailed
from appliance.engine.forward.account import NOWHERE, Account, Gate
from appliance.engine.forward.body import Body, Chunked, Length
from appliance.engine.forward.head import Malformed, Request, Response, first, tokens
from appliance.engine.forward.intake import Intake
from appliance.engine.forward.rewrite import Variables, request_head, response_head
from appliance.engine.forward.routing import AbsoluteForm, Destination, Refusal, Reverse, Router, bare_host
from appliance.engine.forward.upstream import Upstream, reach
from appliance.engine.listeners.answers import answer, status_of
from appliance.engine.settings import DirectHttpSettings, RelaySettings
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

MAX_PENDING = 64 * 1024
LINGER = 2.0  # seconds to hear a client out that we have answered early (RFC 9112 §9.6)

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 §9.2.2
_BY_SERVER, _BY_PENDING, _BY_TAP = 1, 2, 4


class Phase(Enum):
    """Where a client stands."""

    HEAD = auto()  # between requests, or in the middle of a head
    DIALING = auto()  # a request is read, its server is not reached yet
    EXCHANGE = auto()  # bytes flow, in both directions perhaps
    TUNNEL = auto()  # another protocol since a 101
    CLOSING = auto()  # answered for the last time


class ForwardClient(asyncio.Protocol):
    """One client of a forward proxy or reverse listener; see the package for how to put it to work."""

    _reverse: ClassVar[tuple[DirectHttpSettings, Reverse] | None] = None

    def __init__(self, gate: Gate, listener: str, router: Router, peer: Endpoint = NOWHERE) -> None:
        self._gate = gate
        self._listener = listener
        self._router = router
        self._edits = router.edits
        self._account = Account(gate, listener)
        self._account.client = peer
        self._account.on_pause = self._tap_pause
        self._transport: asyncio.Transport
        self._phase = Phase.HEAD
        self._since = time.monotonic()  # of the head being waited for
        self._intake = Intake()
        self._head = b""  # read, and not yet forwarded
        self._request: Request | None = None
        self._destination: Destination | None = None
        self._variables = Variables("", "http", "")
        self._body: Body = Length(0)  # of the request
        self._upstream: Upstream | None = None
        self._dialing: asyncio.Task[None] | None = None
        self._reused = self._begun = self._answered = self._continued = self._close_after = False
        self._eof = self._full = self._server_eof = False
        self._paused = 0
        self._linger: asyncio.TimerHandle | None = None

    @classmethod
    def reverse(cls, gate: Gate) -> "ForwardClient":
        """A client of the reverse listener; its router is kept for as long as the settings are the same."""
        settings = gate.settings.direct_http
        if settings is None:
            raise ValueError("direct_http is not configured")
        if cls._reverse is None or cls._reverse[0] is not settings:
            cls._reverse = settings, Reverse(settings)
        return cls(gate, "direct_http", cls._reverse[1])

    @classmethod
    def absolute_form(cls, gate: Gate, peer: Endpoint) -> "ForwardClient":
        """A client of the mixed listener that sent a request in absolute-form; to be adopted."""
        socks = gate.settings.socks
        return cls(gate, "forward", AbsoluteForm(socks.users if socks else None), peer)

    # The client's transport ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted by our own listener."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer is None:  # reset before we looked
            self._phase = Phase.CLOSING
            self._transport.abort()
            return
        host = peer[0]
        host = host[7:] if host.startswith("::ffff:") and "." in host else host.partition("%")[0]
        self._account.client = Endpoint(host, peer[1])
        refused = self._gate.admit(host, self._listener)
        if refused is not None:
            self._phase = Phase.CLOSING
            self._transport.write(answer(status_of(refused), "too many connections, try again later"))
            self._transport.close()
            return
        self._open_for_business()

    def adopt(self, transport: asyncio.Transport, rest: bytes) -> None:
        """Take over a transport whose client is admitted already; ``rest`` starts at its first request."""
        self._transport = transport
        self._open_for_business()
        if rest:
            self.data_received(rest)

    def _open_for_business(self) -> None:
        self._gate.live.add(self)
        self._transport.set_write_buffer_limits(high=self._gate.settings.write_high)

    def data_received(self, data: bytes) -> None:
        """The client speaks."""
        phase = self._phase
        if phase is Phase.TUNNEL:
            self._send(data)
            return
        if phase is Phase.CLOSING:
            return
        self._intake.add(data)
        if phase is Phase.HEAD:
            self._read_head()
        elif phase is Phase.EXCHANGE:
            self._send_body()
        if len(self._intake.pending) > MAX_PENDING:
            self._pause(_BY_PENDING)

    def eof_received(self) -> bool:
        """The client will say no more; it may still want its answer."""
        if self._eof:  # said again after reading was paused and resumed
            return True
        self._eof = True
        if self._phase is Phase.TUNNEL:
            if self._server_eof:
                self._finish()
            elif self._upstream is not None:
                self._upstream.end()
        elif self._phase is Phase.HEAD or self._phase is Phase.CLOSING:
            self._hang_up()
        elif not self._body.done and self._phase is Phase.EXCHANGE:
            self._abort(End.CLIENT_GONE, "the client left in the middle of its request")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        if exc is not None:
            self._account.ends(End.CLIENT_RESET, str(exc))
        elif self._phase is Phase.DIALING or self._phase is Phase.EXCHANGE:
            self._account.ends(End.CLIENT_GONE, "the client left before its response was complete")
        self._phase = Phase.CLOSING
        self._drop_upstream(abort=True)
        if self._linger is not None:
            self._linger.cancel()
        if self in self._gate.live:
            self._gate.live.discard(self)
            self._account.close()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._full = True
        if self._upstream is not None:
            self._upstream.pause(True)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._full = False
        if self._upstream is not None:
            self._upstream.pause(False)

    # Told by the process -------------------------------------------------------------------------------------------

    def overdue(self, now: float, settings: RelaySettings) -> End | None:
        """Whether this client has taken too long: a head has its deadline, everything else must not be quiet."""
        quiet = self._account.quiet_for(now)
        if self._phase is Phase.HEAD:
            if (self._intake.pending or self._request is None) and now - self._since > settings.handshake_timeout:
                return End.HANDSHAKE_TIMEOUT
            if not self._intake.pending and self._gate.draining:
                return End.DRAINED
        if self._phase is Phase.DIALING:  # a dial has its own deadline
            return None
        return End.IDLE_TIMEOUT if quiet > settings.idle_timeout else None

    def end(self, end: End) -> None:
        """Close both sides now; whoever waits for an answer gets one that says why."""
        if self._phase is Phase.CLOSING:
            self._transport.abort()
        elif self._phase is Phase.HEAD and not self._intake.pending:
            self._account.ends(end, None)
            self._hang_up()
        elif self._phase is Phase.TUNNEL or self._begun:
            self._abort(end, end.replace("_", " "))
        else:
            text = "the request took too long" if end is End.HANDSHAKE_TIMEOUT else f"no response: {end.value}"
            self._refuse(status_of(end), text, end)

    # A request -----------------------------------------------------------------------------------------------------

    def _read_head(self) -> None:
        if not self._intake.begun:
            self._since = time.monotonic()
        head = self._intake.head()
        if head is None:
            return
        if isinstance(head, Malformed):
            self._body = Length(1)  # whatever else comes is not read as a request any more
            self._refuse(head.status, head.text, End.PROTOCOL_ERROR)
            return
        request, self._head = head
        self._request = request
        self._body = Chunked() if request.chunked else Length(request.length or 0)
        self._begun = self._answered = self._continued = self._close_after = False
        destination = self._router.route(request, self._account.client.host)
        if isinstance(destination, Refusal):
            end_reason = End.DENIED if destination.status == 407 else End.UNREACHABLE
            self._refuse(destination.status, destination.text, end_reason, destination.extra)
            return
        self._start(request, destination)

    def _start(self, request: Request, destination: Destination) -> None:
        self._destination = destination
        host = bare_host(destination.host or first(request.fields, b"host") or b"")
        self._variables = Variables(self._account.client.host, "http", host)
        self._account.open(destination)
        upstream = self._upstream
        if upstream is not None and upstream.usable and upstream.key == (destination.server, destination.use_tls):
            self._reused = True
            self._forward(request, destination, upstream)
        else:
            self._dial(request, destination)

    def _dial(self, request: Request, destination: Destination) -> None:
        self._drop_upstream()
        self._reused = False
        self._phase = Phase.DIALING
        name = f"forward {self._account.client} to {destination.server}"
        self._dialing = asyncio.get_running_loop().create_task(self._reach(request, destination), name=name)

    async def _reach(self, request: Request, destination: Destination) -> None:
        started = time.perf_counter_ns()
        try:
            upstream = await reach(destination, self._gate.dial_settings)
        except DialFailed as failure:
            self._dialing = None
            self._refuse(status_of(failure.end), failure.message, failure.end)
            return
        self._dialing = None
        if self._account.connect_ns < 0:
            self._account.connect_ns = time.perf_counter_ns() - started
        self._upstream = upstream
        transport = cast(asyncio.Transport, upstream.transport)
        transport.set_write_buffer_limits(high=self._gate.settings.write_high)
        peer = transport.get_extra_info("peername")
        self._account.goes_to(Endpoint(*peer[:2]) if peer else destination.server, destination.domain)
        self._forward(request, destination, upstream)

    def _forward(self, request: Request, destination: Destination, upstream: Upstream) -> None:
        self._phase = Phase.EXCHANGE
        upstream.begin(self, request)
        if self._full or self._paused & _BY_TAP:
            upstream.pause(True)
        upstream.write(request_head(request, destination.target, destination.host, self._edits, self._variables))
        if self._head:
            self._account.sent(self._head)
            self._head = b""
        self._send_body()
        if self._eof and not self._body.done and self._phase is Phase.EXCHANGE:
            self._abort(End.CLIENT_GONE, "the client left in the middle of its request")

    def _send(self, data: bytes) -> None:
        cast(Upstream, self._upstream).write(data)
        self._account.sent(data)

    def _send_body(self) -> None:
        data = self._intake.body(self._body)
        if self._body.broken is not None:
            self._failed(400, End.PROTOCOL_ERROR, self._body.broken)
            return
        if not data:
            return
        self._send(data)
        self._resume(_BY_PENDING)
        if self._body.done and self._answered:
            self._next()

    # What the upstream tells ---------------------------------------------------------------------------------------

    def respond(self, response: Response, *, until_close: bool) -> None:
        """A response's head, interim ones included."""
        request, upstream = cast(Request, self._request), cast(Upstream, self._upstream)
        if response.status < 200:
            self._continued = self._continued or response.status == 100
            if request.minor == 0:  # RFC 9110 §15.2: an HTTP/1.0 client does not know them
                return
        else:
            self._begun = True
            unheard = not self._body.done and (
                not upstream.usable or (not self._continued and b"100-continue" in tokens(request.fields, b"expect"))
            )
            self._close_after = (
                until_close
                or unheard
                or request.minor == 0
                or self._gate.draining
                or b"close" in tokens(request.fields, b"connection")
            )
        self.deliver(response_head(response, self._edits, self._variables, close=self._close_after))
        if response.status == 101:
            self._begun = True
            self._phase = Phase.TUNNEL
            early = self._intake.rest()
            if early:
                self._send(early)
            self._resume(_BY_PENDING)
            if self._eof:
                upstream.end()

    def deliver(self, data: bytes) -> None:
        """Bytes for the client."""
        self._transport.write(data)
        self._account.received(data)

    def answered(self) -> None:
        """The response is complete; the request may still be on its way."""
        self._answered = True
        self._release()
        if self._close_after:
            self._finish()
        elif self._body.done:
            self._next()

    def failed(self, end: End, text: str) -> None:
        """The upstream failed in the middle of an exchange."""
        request, destination = self._request, self._destination
        if (self._phase is Phase.TUNNEL and end is End.CLOSED) or self._answered:
            self._finish()
        elif self._phase is Phase.TUNNEL:
            self._abort(end, text)
        elif (
            self._reused
            and self._upstream is not None
            and self._upstream.silent
            and request is not None
            and destination is not None
            and request.method in _IDEMPOTENT
            and not request.has_body
        ):
            # A kept connection that the server closed just as we used it (RFC 9112 §9.3.1): once more, on a new one.
            self._dial(request, destination)
        else:
            self._failed(502, end, text)

    def server_ended(self) -> None:
        """The server will say no more on a tunnel."""
        self._server_eof = True
        if self._eof:
            self._finish()
        elif self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def server_full(self, full: bool) -> None:
        """The server does not read fast enough, or does again."""
        if full:
            self._pause(_BY_SERVER)
        else:
            self._resume(_BY_SERVER)

    def idle_lost(self) -> None:
        """The server closed a kept connection; one that still receives a request cannot go on."""
        self._upstream = None
        self._resume(_BY_SERVER)
        if self._phase is Phase.EXCHANGE:
            self._finish()

    # Ends ----------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """The exchange is over: the next request, which may be here already."""
        self._phase = Phase.HEAD
        self._since = time.monotonic()
        if self._upstream is not None and not self._upstream.usable:
            self._drop_upstream()
        self._resume(_BY_PENDING)
        if self._intake.pending:
            self._read_head()
        if self._eof and self._phase is Phase.HEAD:
            self._hang_up()

    def _failed(self, status: int, end: End, text: str) -> None:
        """An exchange fails: in words if the client has heard nothing of its response yet, else by a broken one."""
        if self._begun:
            self._abort(end, text)
        else:
            self._refuse(status, text, end)

    def _refuse(self, status: int, text: str, end: End, extra: bytes = b"") -> None:
        self._account.open(None)
        unsent, self._head = self._head + self._intake.rest(), b""
        if unsent:
            self._account.sent(unsent)
        head_only = self._request is not None and self._request.method == b"HEAD"
        self.deliver(answer(status, text, extra, body=not head_only))
        self._finish(end, text)

    def _finish(self, end: End | None = None, error: str | None = None) -> None:
        """Close once everything is written; hear a client out that is still talking, else a reset eats our answer."""
        if self._phase is Phase.CLOSING:
            return
        talking = not self._body.done and not self._eof and self._phase is not Phase.TUNNEL
        self._phase = Phase.CLOSING
        self._account.ends(end, error)
        self._intake.rest()
        self._drop_upstream()
        self._resume(-1)
        if talking and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._linger = asyncio.get_running_loop().call_later(LINGER, self._transport.close)
        else:
            self._transport.close()

    def _hang_up(self) -> None:
        """Close a connection on which nothing is under way, or no more than the beginning of a head."""
        unsent = self._intake.rest()
        if unsent:
            self._account.open(None)
            self._account.sent(unsent)
            self._account.ends(End.CLIENT_GONE, "the client left in the middle of a request's head")
        self._phase = Phase.CLOSING
        self._drop_upstream()
        self._transport.close()

    def _abort(self, end: End, error: str) -> None:
        """Break the connection, so that nobody takes what was sent for a whole."""
        self._phase = Phase.CLOSING
        self._account.ends(end, error)
        self._drop_upstream(abort=True)
        self._transport.abort()

    def _drop_upstream(self, *, abort: bool = False) -> None:
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.leave(abort=abort)
        self._resume(_BY_SERVER)
        if self._phase is Phase.CLOSING:
            self._release()

    def _release(self) -> None:
        destination, self._destination = self._destination, None
        if destination is not None:
            self._router.release(destination)

    # Flow control --------------------------------------------------------------------------------------------------

    def _pause(self, why: int) -> None:
        if not self._paused and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused |= why

    def _resume(self, why: int) -> None:
        if self._paused:
            self._paused &= ~why
            if not self._paused and not self._transport.is_closing():
                self._transport.resume_reading()

    def _tap_pause(self, paused: bool) -> None:
        if paused:
            self._pause(_BY_TAP)
        else:
            self._resume(_BY_TAP)
        if self._upstream is not None:
            self._upstream.pause(paused or self._full)
