"""What a forwarding connection leaves behind: its line of the tap while it lasts, its record when it ends."""

from collections.abc import Callable
from typing import Any, Protocol, cast

from appliance.engine.forward.routing import Destination
from appliance.engine.settings import DialSettings, RelaySettings
from appliance.model.connection import Closed, Connection, End
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.endpoint import Endpoint

NOWHERE = Endpoint("", 0)


class Line(Protocol):
    """One connection's part of the tap (``engine.relay.tap.TapLine``)."""

    on_pause: Callable[[bool], None] | None

    def copy(self, direction: Direction, data: bytes) -> None:
        """Show the inspector bytes that were forwarded."""

    def reroute(self, server: Endpoint, domain: str | None) -> None:
        """What follows goes to another server."""

    def close(self, closed: Closed) -> None:
        """The connection is over."""


class Gate(Protocol):
    """What a forwarding client needs of its process (``engine.gate.Gate``).

    ``tap.open(connection)`` returns a ``Line``; ``live`` is the set of what is open; ``admit`` counts a client in or
    says why not; ``connection`` mints a record; ``closed`` accounts for its end and counts the client out.
    """

    tap: Any
    live: set[Any]
    settings: RelaySettings
    dial_settings: DialSettings
    draining: bool

    def admit(self, client: str, listener: str) -> End | None:
        """Count a connection in, or say why it is refused."""

    def connection(
        self,
        listener: str,
        client: Endpoint,
        server: Endpoint,
        domain: str | None = None,
        domain_source: str | None = None,
        user: str | None = None,
    ) -> Connection:
        """A new record of a connection."""

    def closed(self, connection: Connection, closed: Closed) -> None:
        """A connection that was admitted has ended."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""


class Account:
    """One client's connection as it is counted, shown and recorded. Bytes are those on the client's side."""

    def __init__(self, gate: Gate, listener: str) -> None:
        self._gate = gate
        self._listener = listener
        self.client = NOWHERE
        self.to_server = 0
        self.to_client = 0
        self.connect_ns = -1  # of the first dial
        self.end: End | None = None
        self.error: str | None = None
        self.on_pause: Callable[[bool], None] | None = None
        self._connection: Connection | None = None
        self._line: Line | None = None
        self._shown: tuple[Endpoint, str | None] = (NOWHERE, None)
        self._quiet = (-1, 0.0)  # total bytes at a sweep, and when they were first seen

    def open(self, destination: Destination | None) -> None:
        """The first request says where it goes (None: nowhere). Later calls change nothing."""
        if self._line is not None:
            return
        server, domain, user = NOWHERE, None, None
        if destination is not None:
            server, domain, user = destination.server, destination.domain, destination.user
        source = None if domain is None else "host"
        self._connection = self._gate.connection(self._listener, self.client, server, domain, source, user)
        self._line = cast(Line, self._gate.tap.open(self._connection))
        self._line.on_pause = self.on_pause
        self._shown = server, domain

    def goes_to(self, server: Endpoint, domain: str | None) -> None:
        """What follows goes to this server, an address now."""
        if self._line is not None and (server, domain) != self._shown:
            self._shown = server, domain
            self._line.reroute(server, domain)

    def sent(self, data: bytes) -> None:
        """The client sent this, and it was forwarded."""
        self.to_server += len(data)
        if self._line is not None:
            self._line.copy(TO_SERVER, data)

    def received(self, data: bytes) -> None:
        """The client was sent this."""
        self.to_client += len(data)
        if self._line is not None:
            self._line.copy(TO_CLIENT, data)

    def quiet_for(self, now: float) -> float:
        """Seconds since the last byte, as far as earlier calls noticed."""
        total = self.to_server + self.to_client
        if total != self._quiet[0]:
            self._quiet = total, now
        return now - self._quiet[1]

    def ends(self, end: End | None, error: str | None) -> None:
        """Why the connection ends. The first reason is the one that counts."""
        if self.end is None and end is not None:
            self.end, self.error = end, error

    def close(self) -> None:
        """The connection is over: write its record, count the client out."""
        self.open(None)
        line, connection = cast(Line, self._line), cast(Connection, self._connection)
        line.on_pause = None
        closed = Closed(
            self._gate.now_ns(), self.end or End.CLOSED, self.to_server, self.to_client, self.connect_ns, self.error
        )
        line.close(closed)
        self._gate.closed(connection, closed)
