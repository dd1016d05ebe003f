"""Where a request goes: by its own URI (forward proxy) or by the configured routes (reverse listener).

Pure but for the counts of the balancer: requests in, destinations or an explaining answer out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple, Protocol
from zlib import crc32

from appliance.engine.forward.head import Request, first
from appliance.engine.forward.rewrite import Edits
from appliance.engine.listeners.answers import CHALLENGE
from appliance.engine.listeners.connect import proxy_user
from appliance.engine.listeners.handshake import target_of
from appliance.engine.settings import DirectHttpSettings, HeaderEdits, Route
from appliance.model.endpoint import Endpoint, parse_endpoint

_ABSOLUTE = re.compile(rb"(?i:(https?))://([^/?#]+)([^#]*)")
_DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_NAME = 262  # bytes of an authority: a host name (RFC 1035 §2.3.4), its last dot, and a port


class Destination(NamedTuple):
    """Where one request goes. ``target`` is in origin-form; ``host`` is what Host must say (None: leave it)."""

    server: Endpoint
    use_tls: bool
    target: bytes
    domain: str | None
    host: bytes | None = None
    user: str | None = None
    route: Route | None = None


class Refusal(NamedTuple):
    """A request that goes nowhere: the status, why in words, and header lines that belong to it."""

    status: int
    text: str
    extra: bytes = b""


class Router(Protocol):
    """What decides. ``edits`` are the header edits for everything it routes."""

    edits: Edits

    def route(self, request: Request, client: str) -> Destination | Refusal:
        """Decide about one request of the client with this address."""

    def release(self, destination: Destination) -> None:
        """The exchange with this destination is over."""


class Uri(NamedTuple):
    """An http or https URI in pieces; ``path`` includes the query and is never empty."""

    scheme: str
    authority: bytes
    server: Endpoint
    path: bytes


def parse_uri(target: bytes, method: bytes) -> Uri | None:
    """The pieces of a request target in absolute-form (RFC 9112 §3.2.2), None if it is none or is malformed."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return None
    scheme = match[1].lower().decode()
    authority, path = match[2], match[3]
    # A user name in an http URI is an old way to mislead (RFC 9110 §4.2.4).
    if b"@" in authority:
        return None
    try:
        server = parse_endpoint(authority.decode("ascii"), _DEFAULT_PORTS[scheme])
    except ValueError:
        return None
    if not path:
        path = b"*" if method == b"OPTIONS" else b"/"
    elif not path.startswith(b"/"):
        path = b"/" + path
    return Uri(scheme, authority, server, path)


class AbsoluteForm:
    """The forward proxy: a request says itself where it goes. ``users`` maps names to passwords; None asks nobody."""

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        self.edits = Edits(HeaderEdits())
        self._users = users

    def route(self, request: Request, client: str) -> Destination | Refusal:
        """Every request proves its user again: a connection may carry several users' requests."""
        user: str | None = None
        if self._users is not None:
            user = proxy_user(self._users, [field.line for field in request.fields])
            if user is None:
                return Refusal(407, "a user name and password are required", CHALLENGE)
        uri = parse_uri(request.target, request.method)
        if uri is None:
            shown = request.target[:60].decode("ascii", "replace")
            return Refusal(400, f"{shown!r}: this is a proxy, the target must be an http:// URI")
        target = target_of(*uri.server, source="host", user=user, listener="")
        if target is None or not uri.server.port:
            return Refusal(400, f"{uri.server.host!r} is neither a host name nor an address")
        return Destination(uri.server, uri.scheme == "https", uri.path, target.domain, uri.authority, user)

    def release(self, destination: Destination) -> None:
        """Nothing is counted."""


class Reverse:
    """The reverse listener: routes by host and path prefix.

    The most specific route wins: an exact host before a wildcard (longer suffixes first) before none, then the longest
    path prefix. Routes with the same host and prefix share the load by ``strategy``.
    """

    def __init__(self, settings: DirectHttpSettings) -> None:
        self.edits = Edits(settings.headers)
        self._strategy = settings.strategy
        self._groups = _grouped(settings.routes)
        self._default = (settings.default,) if settings.default is not None else ()
        self._turns: Counter[tuple[Route, ...]] = Counter()
        self._open: Counter[Route] = Counter()

    def route(self, request: Request, client: str) -> Destination | Refusal:
        """Decide by Host (or the URI's authority) and path."""
        if request.method == b"CONNECT":
            return Refusal(501, "this is a reverse proxy, it opens no tunnels")
        uri = parse_uri(request.target, request.method)
        authority = uri.authority if uri else first(request.fields, b"host") or b""
        path = uri.path if uri else request.target
        if not path.startswith(b"/") and path != b"*":
            return Refusal(400, f"{path[:60].decode('ascii', 'replace')!r} is no path")
        host = bare_host(authority)
        matched = self.matching(host, path)
        if not matched:
            text = f"no route for host {host!r} and this path (direct_http.upstream_routing, .default_upstream)"
            return Refusal(404, text)
        chosen = self._choose(matched, client)
        self._open[chosen] += 1
        target = stripped(path, chosen.path_prefix) if chosen.strip_prefix and chosen.path_prefix else path
        return Destination(
            chosen.upstream, chosen.use_tls, target, domain_of(authority), authority if uri else None, route=chosen
        )

    def release(self, destination: Destination) -> None:
        """One exchange less on that upstream."""
        if destination.route is not None:
            self._open[destination.route] -= 1

    def matching(self, host: str, path: bytes) -> tuple[Route, ...]:
        """The routes that share this request, by specificity; the default when none matches."""
        for group in self._groups:
            if _matches(group[0], host, path):
                return group
        return self._default

    def _choose(self, routes: tuple[Route, ...], client: str) -> Route:
        if len(routes) == 1:
            return routes[0]
        if self._strategy == "ip_hash":
            return routes[crc32(client.encode()) % len(routes)]
        turn = self._turns[routes] % len(routes)
        self._turns[routes] += 1
        if self._strategy == "least_connections":
            # Equal ones take turns: without that, the first would get every request of a sequential client.
            return min(routes[turn:] + routes[:turn], key=lambda route: self._open[route])
        return routes[turn]


def bare_host(authority: bytes) -> str:
    """The host of a Host header or authority as routes compare it: lower case, no port, no trailing dot."""
    return _host(authority)[0]


def domain_of(authority: bytes) -> str | None:
    """The same when it is a name; None for an address, for nothing, and for what is too long to be a name."""
    host, is_name = _host(authority)
    return host if is_name and len(authority) <= MAX_NAME else None


def _host(authority: bytes) -> tuple[str, bool]:
    # Longer ones are no host names, and would make the cache a place to fill our memory.
    return _cached_host(authority) if len(authority) <= 255 else _cached_host.__wrapped__(authority)


@lru_cache(maxsize=1024)
def _cached_host(authority: bytes) -> tuple[str, bool]:
    text = authority.decode("utf-8", "replace").strip().lower()
    host = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]
    try:
        return str(ip_address(host)), False
    except ValueError:
        name = host.rstrip(".")
        return name, bool(name)


def stripped(path: bytes, prefix: str) -> bytes:
    """The path without the prefix, still beginning with a slash."""
    rest = path.removeprefix(prefix.rstrip("/").encode())
    return rest if rest.startswith(b"/") else b"/" + rest


def _grouped(routes: Iterable[Route]) -> tuple[tuple[Route, ...], ...]:
    groups: dict[tuple[str | None, str | None], list[Route]] = {}
    for route in routes:
        groups.setdefault((route.host.lower() if route.host else None, route.path_prefix), []).append(route)
    return tuple(tuple(group) for group in sorted(groups.values(), key=lambda group: _specificity(group[0])))


def _specificity(route: Route) -> tuple[int, int, int]:
    host = route.host or ""
    rank = 2 if not host else 1 if host.startswith("*.") else 0
    return rank, -len(host), -len(route.path_prefix or "")


def _matches(route: Route, host: str, path: bytes) -> bool:
    return _host_matches(route.host, host) and (route.path_prefix is None or _under(path, route.path_prefix))


def _host_matches(pattern: str | None, host: str) -> bool:
    if pattern is None:
        return True
    pattern = pattern.lower()
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _under(path: bytes, prefix: str) -> bool:
    """Whether the path is the prefix or below it: ``/v1`` is above ``/v1/x`` and ``/v1?q``, not above ``/v10``."""
    raw = prefix.encode()
    return path.startswith(raw) and (raw.endswith(b"/") or path[len(raw) : len(raw) + 1] in (b"", b"/", b"?"))
