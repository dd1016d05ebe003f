"""What the data plane obeys. Built by ``app``, checked there, passed in; nothing below reads files or environment."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from appliance.model.bypass import BypassRule, Network
from appliance.model.endpoint import Endpoint

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SocksSettings:
    """The mixed listener: SOCKS4, 4a, 5, HTTP CONNECT and absolute-form on one port.

    ``users`` maps names to passwords; when it is not None every method asks for one of them. ``allow`` lists the
    client networks that may connect at all (None: everybody).
    """

    bind: tuple[Endpoint, ...]
    users: dict[str, str] | None = None
    allow: tuple[Network, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransparentSettings:
    """The listener that nftables TPROXY delivers to; needs CAP_NET_RAW for IP_TRANSPARENT."""

    bind: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the reverse listener sends a request. The most specific one decides; None matches everything.

    ``host`` may start with ``*.``; ``path_prefix`` is stripped before forwarding when ``strip_prefix``.
    """

    upstream: Endpoint
    host: str | None = None
    path_prefix: str | None = None
    use_tls: bool = False
    strip_prefix: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    """Headers that the reverse listener adds and removes; values may hold $remote_addr, $scheme, $host."""

    add_request: tuple[tuple[str, str], ...] = ()
    remove_request: tuple[str, ...] = ()
    add_response: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectHttpSettings:
    """The reverse listener for HTTP."""

    bind: tuple[Endpoint, ...]
    routes: tuple[Route, ...]
    default: Route | None = None
    headers: HeaderEdits = HeaderEdits()
    strategy: Literal["round_robin", "least_connections", "ip_hash"] = "round_robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Refused early, before anything is dialed. Counts are per relay process; None is no limit."""

    max_connections: int | None = 10_000
    per_source_connections: int | None = 500
    per_source_rate: float | None = 200.0  # new connections per second
    per_source_burst: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DialSettings:
    """How servers are reached. ``mark`` is put on every own socket (SO_MARK), so that the ruleset lets it pass.

    ``own_addresses`` are refused as destinations (our listeners, our API): features K4, O12.
    """

    mark: int | None = None
    connect_timeout: float = 10.0
    attempt_delay: float = 0.25  # RFC 8305 §5
    resolve_timeout: float = 5.0
    own_addresses: frozenset[Endpoint] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSettings:
    """The ring between relay and inspector. Sizes in bytes.

    ``turn_head``: of one direction's uninterrupted turn, the first bytes that are copied; what follows is counted
    and only its last chunk (``turn_tail``) is copied, so that bulk costs nothing. ``on_overload``: ``gap`` never slows
    traffic, ``pause`` never loses a byte.
    """

    directory: Path
    ring_bytes: int = 128 * MIB
    slots: int = 32_768
    turn_head: int = 80 * KIB
    turn_tail: int = 16 * KIB
    on_overload: Literal["gap", "pause"] = "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """One relay process."""

    transparent: TransparentSettings | None = None
    socks: SocksSettings | None = None
    direct_http: DirectHttpSettings | None = None
    limits: LimitSettings = LimitSettings()
    dial: DialSettings = DialSettings()
    bypass: tuple[BypassRule, ...] = ()
    tap: TapSettings | None = None
    handshake_timeout: float = 10.0
    idle_timeout: float = 600.0
    drain_timeout: float = 30.0
    write_high: int = 256 * KIB  # a peer that does not read may hold this much of our memory
    backlog: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectSettings:
    """One inspector process. ``protocols`` are the dissectors that are switched on (None: all that are installed).

    ``count`` is how many inspectors there are: the first also reads what relays left that have no inspector any more.
    """

    directory: Path
    count: int
    protocols: tuple[str, ...] | None = None
    poll: float = 0.003
    batch_rows: int = 1000
    batch_age: float = 0.1
    detection_ports: dict[int, str] = field(default_factory=dict)
    detection_cache: int = 10_000
    body_head: int = 48 * KIB
    body_tail: int = 16 * KIB
    digest_limit: int = 2**63 - 1
    live_socket: Path | None = None
