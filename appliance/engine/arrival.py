"""A client from the moment it is accepted until it is relayed: admit, hear where it wants to go, dial, hand over.

One ``Arrival`` is the client's ``Half`` of the later pump. What its ``write`` does tells where it stands: first it
feeds the handshake, then it holds early bytes while the server is dialed, then it is the server's transport.
"""

import asyncio
import time
from abc import ABC, abstractmethod

from appliance.engine.dial import DialFailed, dial
from appliance.engine.forward.client import ForwardClient
from appliance.engine.gate import Gate
from appliance.engine.listeners.allow import AllowList
from appliance.engine.listeners.handshake import Handshake, Target
from appliance.engine.listeners.mixed import Mixed
from appliance.engine.relay.pump import Half, Pump
from appliance.engine.relay.tap import TapLine
from appliance.engine.settings import RelaySettings
from appliance.model.connection import Closed, Connection, End
from appliance.model.endpoint import Endpoint

_NOWHERE = Endpoint("", 0)


class Arrival(Half, ABC):
    """What both kinds of arrival share: dialing, failing, and becoming one side of a pump."""

    __slots__ = ("_born", "_dialing", "_early", "connection", "gate", "line", "peer", "relay")

    listener = ""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.peer = _NOWHERE
        self.connection: Connection | None = None
        self.line: TapLine | None = None
        self.relay: Pump | None = None
        self._early: list[bytes] = []
        self._dialing: asyncio.Task[None] | None = None
        self._born = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer is None:  # reset before we looked
            self.abort()
            return
        self.peer = Endpoint(_unmapped(peer[0]), peer[1])
        refused = self.gate.admit(self.peer.host, self.listener)
        if refused is not None:
            self.peer = _NOWHERE
            self.abort()
            return
        self.gate.live.add(self)
        self.arrived()

    @abstractmethod
    def arrived(self) -> None:
        """The client is admitted."""

    def eof_received(self) -> bool:
        self.eof = True
        if self.relay is not None:
            self.relay.ended(self)
        elif self._dialing is None:
            self.fail(End.CLIENT_GONE, "the client left during the handshake")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.relay is not None:
            super().connection_lost(exc)
            return
        self.lost = True
        if self._dialing is not None:
            self._dialing.cancel()
        self.fail(End.CLIENT_GONE, str(exc) if exc else "the client left before the server was reached")

    def overdue(self, now: float, settings: RelaySettings) -> End | None:
        """Judge by the pump when there is one; a dial has its own deadline."""
        if self.relay is not None:
            return self.relay.overdue(now, settings.idle_timeout)
        if self._dialing is None and now - self._born > settings.handshake_timeout:
            return End.HANDSHAKE_TIMEOUT
        return None

    def end(self, end: End) -> None:
        """Close everything now."""
        if self.relay is not None:
            self.relay.end(end)
        else:
            if self._dialing is not None:
                self._dialing.cancel()
            self.fail(end, end.value)

    def go(self, connection: Connection) -> None:
        """The target is known: open the record, dial."""
        self.connection = connection
        self.line = self.gate.tap.open(connection)
        self.write = self._hold
        self._dialing = asyncio.get_running_loop().create_task(self._reach(connection, self.line))

    def reached(self, bound: Endpoint) -> None:
        """The server is connected; tell the client if its protocol wants to know."""

    def unreached(self, failure: DialFailed) -> None:
        """The server is not reached; tell the client as its protocol says, then close."""
        self.reset()

    def fail(self, end: End, error: str) -> None:
        """Record a connection that never came to be relayed, once, and close the client's side."""
        if self not in self.gate.live:
            return
        self.gate.live.discard(self)
        connection = self.connection or self.gate.connection(self.listener, self.peer, _NOWHERE)
        line = self.line or self.gate.tap.open(connection)
        self.connection, self.line = connection, line
        self._close_record(Closed(self.gate.now_ns(), end, 0, 0, -1, error))
        self.write = self.copy = _ignore
        if end is End.HANDSHAKE_TIMEOUT or end is End.DRAINED:
            self.abort()
        else:
            self.finish()

    def _hold(self, data: bytes) -> None:
        # On uvloop pausing in connection_made does nothing, so the first early bytes are held here.
        self._early.append(data)
        self.transport.pause_reading()

    async def _reach(self, connection: Connection, line: TapLine) -> None:
        loop = asyncio.get_running_loop()
        started = time.perf_counter_ns()
        try:
            sock = await dial(connection.server, self.gate.dial_settings)
        except DialFailed as failure:
            self._missed(failure)
            return
        took = time.perf_counter_ns() - started
        server = Half()
        # uvloop may deliver what a server says first before create_connection returns: hold it until there is a pump.
        orphan = server.pump = _Orphan()
        spoken: list[bytes] = []
        server.write = spoken.append
        try:
            if connection.domain is not None and not connection.server.is_literal:
                line.reroute(Endpoint(*sock.getpeername()[:2]), connection.domain)
            await loop.create_connection(lambda: server, sock=sock)
        except OSError as error:  # reset already: such a socket has no peer any more (ENOTCONN)
            sock.close()
            self._missed(DialFailed(End.SERVER_RESET, f"{connection.server}: {error.strerror}", error.errno or 0))
            return
        except BaseException:
            sock.close()
            raise
        self._dialing = None
        if self.lost:  # the client left while the transport was made
            server.abort()
            return
        bound = server.transport.get_extra_info("sockname")
        self.relay = Pump(self, server, line, took, self._relayed)
        self.reached(Endpoint(bound[0], bound[1]))
        early = b"".join(self._early)
        self._early = []
        relay = self.relay
        relay.start(early, self.gate.settings.write_high)
        for data in spoken:
            server.data_received(data)
        if server.eof:
            relay.ended(server)
        if server.lost:
            relay.lost(server, orphan.exc)
        self.resume(0)

    def _missed(self, failure: DialFailed) -> None:
        self._dialing = None
        if not self.lost:
            self.unreached(failure)
        self.fail(failure.end, failure.message)

    def _relayed(self, closed: Closed) -> None:
        self.gate.live.discard(self)
        self._close_record(closed)
        self.relay = None

    def _close_record(self, closed: Closed) -> None:
        assert self.connection is not None and self.line is not None
        self.line.close(closed)
        self.gate.closed(self.connection, closed)


class TransparentArrival(Arrival):
    """Delivered by TPROXY: the socket's own address is where the client wanted to go."""

    __slots__ = ()

    listener = "transparent"

    def arrived(self) -> None:
        host, port = self.transport.get_extra_info("sockname")[:2]
        self.go(self.gate.connection(self.listener, self.peer, Endpoint(_unmapped(host), port)))


class MixedArrival(Arrival):
    """SOCKS4, 4a, 5, HTTP CONNECT and absolute-form on one port."""

    __slots__ = ("_allow", "_handshake")

    listener = "mixed"

    def __init__(self, gate: Gate, users: dict[str, str] | None, allow: AllowList | None) -> None:
        super().__init__(gate)
        self._handshake: Handshake = Mixed(users)
        self._allow = allow

    def arrived(self) -> None:
        if self._allow is not None and not self._allow.permits(self.peer.host):
            self.fail(End.DENIED, "the client's address is not in proxy.socks.allow")
            return
        self.write = self._speak

    def reached(self, bound: Endpoint) -> None:
        self.transport.write(self._handshake.accepted(bound))

    def unreached(self, failure: DialFailed) -> None:
        self.transport.write(self._handshake.refused(failure.end, failure.message, failure.errno))

    def _speak(self, data: bytes) -> None:
        step = self._handshake.receive(data)
        if step.reply:
            self.transport.write(step.reply)
        if step.failed is not None:
            self.fail(step.failed, step.error or "the handshake failed")
        elif step.forward:
            self._forward(step.rest)
        elif step.target is not None:
            self._towards(step.target, step.rest)

    def _towards(self, target: Target, rest: bytes) -> None:
        self.go(
            self.gate.connection(
                target.listener, self.peer, target.server, target.domain, target.domain_source, target.user
            )
        )
        if rest:
            self._hold(rest)

    def _forward(self, rest: bytes) -> None:
        """Hand the client over to the forwarder: it is admitted already, and from now on the forwarder's to end."""
        self.gate.live.discard(self)
        self.write = self.copy = _ignore
        client = ForwardClient.absolute_form(self.gate, self.peer)
        self.transport.set_protocol(client)
        client.adopt(self.transport, rest)


class _Orphan:
    """Stands in for the pump of a server that is just being connected, or whose client left meanwhile."""

    exc: Exception | None = None

    def lost(self, half: Half, exc: Exception | None) -> None:
        self.exc = exc

    def ended(self, half: Half) -> None:
        pass


def _ignore(_data: bytes) -> None:
    """What arrives after the end of a handshake that failed."""


def _unmapped(host: str) -> str:
    """An IPv4 client of a dual-stack socket, as IPv4."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host.partition("%")[0]
