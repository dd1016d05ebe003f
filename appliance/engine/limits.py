"""Who may open one more connection: counts for everybody and per source, and a rate per source.

Refusing costs a few dictionary look-ups and happens before anything is dialed. Sources are IPv4 addresses and IPv6
/64 networks, because one IPv6 host owns at least a /64 (RFC 7934 §6).
"""

import socket
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache

from appliance.engine.settings import LimitSettings
from appliance.model.connection import End

MAX_BUCKETS = 65_536  # sources whose rate is remembered; the least recently seen is forgotten first


class Limit(StrEnum):
    """The limits, named as in the configuration."""

    MAX_CONNECTIONS = "max_connections"
    PER_SOURCE_CONNECTIONS = "per_source_connections"
    PER_SOURCE_RATE = "per_source_rate"


class Limits:
    """The counts of one relay process. ``clock`` gives seconds and never goes back (``time.monotonic``).

    ``refused`` counts refusals by limit; ``reached`` is the limit that refused last.
    """

    def __init__(self, settings: LimitSettings, clock: Callable[[], float], max_buckets: int = MAX_BUCKETS) -> None:
        self.settings = settings
        self.open = 0
        self.refused = dict.fromkeys(Limit, 0)
        self.reached: Limit | None = None
        self._clock = clock
        self._max_buckets = max_buckets
        self._sources: dict[str, int] = {}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def admit(self, host: str) -> End | None:
        """Count a connection in and return None, or return why it is refused. ``host`` is the client's address."""
        settings = self.settings
        source = source_of(host)
        if settings.max_connections is not None and self.open >= settings.max_connections:
            return self._refuse(Limit.MAX_CONNECTIONS)
        already = self._sources.get(source, 0)
        if settings.per_source_connections is not None and already >= settings.per_source_connections:
            return self._refuse(Limit.PER_SOURCE_CONNECTIONS)
        if settings.per_source_rate is not None and not self._take_token(source, settings.per_source_rate):
            return self._refuse(Limit.PER_SOURCE_RATE)
        self._sources[source] = already + 1
        self.open += 1
        return None

    def release(self, host: str) -> None:
        """Count out a connection that was admitted. Exactly once for each."""
        source = source_of(host)
        left = self._sources[source] - 1
        if left:
            self._sources[source] = left
        else:
            del self._sources[source]
        self.open -= 1

    def _take_token(self, source: str, rate: float) -> bool:
        now = self._clock()
        burst = float(self.settings.per_source_burst)
        buckets = self._buckets
        tokens, counted = buckets.get(source, (burst, now))
        tokens = min(burst, tokens + (now - counted) * rate)
        allowed = tokens >= 1.0
        buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        buckets.move_to_end(source)
        if len(buckets) > self._max_buckets:
            buckets.popitem(last=False)
        return allowed

    def _refuse(self, limit: Limit) -> End:
        self.refused[limit] += 1
        self.reached = limit
        return End.LIMITED


@lru_cache(maxsize=4096)
def source_of(host: str) -> str:
    """What limits are counted by: an IPv4 address, mapped or not, or the /64 of an IPv6 address."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    if packed.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
