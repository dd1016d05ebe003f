"""What every connection of one relay process shares: its tap, its limits, its counters, who is open."""

import random
import time
from typing import Protocol

from appliance.engine.limits import Limits
from appliance.engine.relay.tap import Tap
from appliance.engine.settings import DialSettings, RelaySettings
from appliance.model.connection import Closed, Connection, End
from appliance.model.endpoint import Endpoint
from appliance.model.identity import uuid7
from appliance.observe import metrics
from appliance.observe.logging import get_logger
from appliance.rules.plan import Planner

log = get_logger("relay")


class Live(Protocol):
    """Something that is open and can be ended from outside."""

    def overdue(self, now: float, settings: RelaySettings) -> End | None:
        """Whether it has taken too long (``now``: monotonic seconds), and what the record then says."""

    def end(self, end: End) -> None:
        """Close both sides now; ``end`` is what the record says."""


class Gate:
    """The shared context. ``settings`` and ``dial_settings`` are replaced as a whole by a reload."""

    def __init__(self, settings: RelaySettings, tap: Tap, registry: metrics.Registry) -> None:
        self.tap = tap
        self.registry = registry
        self.live: set[Live] = set()
        self.limits = Limits(settings.limits, time.monotonic)
        self.obey(settings)
        self.draining = False
        self._bytes = (
            registry.cell(metrics.BYTES, "to_server"),
            registry.cell(metrics.BYTES, "to_client"),
        )
        self._dial_seconds = registry.histogram(metrics.DIAL_SECONDS)
        self._connection_seconds = registry.histogram(metrics.CONNECTION_SECONDS)

    def obey(self, settings: RelaySettings) -> None:
        """Take new settings for connections that are accepted from now on."""
        self.settings = settings
        self.dial_settings: DialSettings = settings.dial
        self.planner = Planner(settings.bypass)
        self.limits.settings = settings.limits  # what is open stays counted

    def admit(self, client: str, listener: str) -> End | None:
        """Count a connection in, or say why it is refused."""
        self.registry.cell(metrics.CONNECTIONS_OPENED, listener).value += 1
        refused = self.limits.admit(client)
        if refused is not None:
            self.registry.cell(metrics.LIMITED, self.limits.reached or refused).value += 1
            self.registry.cell(metrics.CONNECTIONS_CLOSED, listener, refused.value).value += 1
        return refused

    def connection(
        self,
        listener: str,
        client: Endpoint,
        server: Endpoint,
        domain: str | None = None,
        domain_source: str | None = None,
        user: str | None = None,
    ) -> Connection:
        """A new connection with its identity and its plan."""
        now = self.now_ns()
        plan = self.planner.plan(server, domain)
        return Connection(
            uuid7(now, random.getrandbits(62)),
            now,
            listener,
            client,
            server,
            plan.path,
            plan.why,
            domain,
            domain_source,
            user,
            plan.headers_only,
        )

    def closed(self, connection: Connection, closed: Closed) -> None:
        """Account for a connection that was admitted and has ended."""
        self.limits.release(connection.client.host)
        self.registry.cell(metrics.CONNECTIONS_CLOSED, connection.listener, closed.end.value).value += 1
        self._bytes[0].value += closed.to_server
        self._bytes[1].value += closed.to_client
        if closed.connect_ns >= 0:
            self._dial_seconds.observe(closed.connect_ns / 1e9)
        ended = closed.closed_ns or self.now_ns()  # the pump leaves the clock to the ring
        self._connection_seconds.observe((ended - connection.opened_ns) / 1e9)

    def sweep(self, now: float) -> None:
        """End what has been quiet for too long. Called about once a second; no timer per connection."""
        for live in tuple(self.live):
            try:
                end = live.overdue(now, self.settings)
                if end is not None:
                    live.end(end)
            except Exception as error:  # one connection's trouble must not end the sweeps of all others
                log.error("a connection could not be ended", error=repr(error), exc_info=error)
                self.live.discard(live)

    @staticmethod
    def now_ns() -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()
