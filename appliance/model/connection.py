"""A client–server conversation through us: what is known when it opens, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum

from appliance.model.endpoint import Endpoint


class Path(StrEnum):
    """How deep a connection is understood (contract §5)."""

    RELAY = "relay"  # forwarded, a copy is understood
    REWRITE = "rewrite"  # understood inline and changed
    OPAQUE = "opaque"  # forwarded and counted, no copy
    BYPASS = "bypass"  # never left the kernel


@dataclass(frozen=True, slots=True)
class Connection:
    """What is known about a connection before its first relayed byte.

    ``headers_only`` asks for start lines and heads without bodies (the fast path).

    ``id`` is a UUIDv7 as 16 bytes; ``opened_ns`` is nanoseconds since the Unix epoch; ``server`` is where we dial
    (an IP literal once resolved; port 0 and an empty host when the client never said); ``domain`` is the name that
    led there and ``domain_source`` who said it (``socks``, ``connect``, ``host``, ``sni``, ``dns``); ``detail`` says
    why this path was chosen, and ``user`` who authenticated.
    """

    id: bytes
    opened_ns: int
    listener: str
    client: Endpoint
    server: Endpoint
    path: Path = Path.RELAY
    detail: str = ""
    domain: str | None = None
    domain_source: str | None = None
    user: str | None = None
    headers_only: bool = False


class End(StrEnum):
    """Why a connection ended. ``closed`` is the good one; the rest name who failed."""

    CLOSED = "closed"
    CLIENT_RESET = "client_reset"
    SERVER_RESET = "server_reset"
    CLIENT_GONE = "client_gone"  # left before the server was reached
    IDLE_TIMEOUT = "idle_timeout"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    PROTOCOL_ERROR = "protocol_error"  # the client did not speak the listener's protocol
    DENIED = "denied"  # by rule, allow list, authentication
    LIMITED = "limited"  # by a limit
    REFUSED = "refused"  # server answered RST
    UNREACHABLE = "unreachable"
    CONNECT_TIMEOUT = "connect_timeout"
    NAME_NOT_FOUND = "name_not_found"
    DRAINED = "drained"  # we stopped while it was open
    LOST = "lost"  # its relay died; nobody saw the end


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended. Bytes are exact, whatever was copied; durations are nanoseconds.

    ``server`` is set when the server became known or changed after opening; ``connect_ns`` is the time the
    dial took, -1 when there was none.
    """

    closed_ns: int
    end: End
    to_server: int
    to_client: int
    connect_ns: int = -1
    error: str | None = None
    missing: int = 0  # bytes that were relayed but not copied because the ring was full


@dataclass(frozen=True, slots=True)
class ConnectionRecord:
    """One row of ``traffic_logs``. ``closed`` is None while the connection is open."""

    connection: Connection
    closed: Closed | None
    protocol: str = "tcp"
    exchanges: int = 0
