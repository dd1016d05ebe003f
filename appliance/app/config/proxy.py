"""The ``proxy`` section: which listeners there are and how they treat what arrives."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from appliance.app.config.section import Port, Section
from appliance.app.config.values import SECRET, Address, BindAddress, Cidr, Duration

VARIABLES = ("$remote_addr", "$scheme", "$host")
_TOKEN = set("!#$%&'*+-.^_`|~") | set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _header_name(text: str) -> str:
    # RFC 9110 §5.1: a field name is a token.
    if not text or not set(text) <= _TOKEN:
        raise ValueError(f"{text!r} is not the name of a header")
    return text


def _header_line(text: str) -> str:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f'{text!r} is not a header (write "Name: value")')
    _header_name(name.strip())
    if any(ord(character) < 32 and character != "\t" for character in value):
        raise ValueError(f"{text!r}: a header's value is one line")
    rest = value
    for variable in VARIABLES:
        rest = rest.replace(variable, "")
    if "$" in rest:
        raise ValueError(f"{text!r} has an unknown variable (known: {', '.join(VARIABLES)})")
    return text


HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderLine = Annotated[str, AfterValidator(_header_line)]


class User(Section):
    """Somebody who may use the SOCKS and CONNECT listener."""

    # RFC 1929 §2: both lengths are one byte.
    username: Annotated[str, Field(min_length=1, max_length=255)]
    """Name."""
    password: Annotated[str, Field(min_length=1, max_length=255), SECRET]
    """Password; better `${env.NAME}` or `${file:/path}`."""


class Socks(Section):
    """Who may use the listener for SOCKS and HTTP CONNECT."""

    auth_method: Literal["none", "username_password"] = "none"
    """Whether clients say who they are."""
    users: tuple[User, ...] = ()
    """Who they may be."""
    allow: tuple[Cidr, ...] | None = None
    """Client networks that may connect at all; unset is everybody."""


class Transparent(Section):
    """Connections that the kernel takes from the wire; clients need no setting. Needs root."""

    bind_address: BindAddress = ("127.0.0.1:15001",)
    """Where the kernel delivers them; 127.0.0.1 stands for [::1] too."""
    interfaces: tuple[Annotated[str, Field(min_length=1, max_length=15)], ...] = ()
    """Where the intercepted clients live; needed unless `own_traffic` is true."""
    ports: Literal["all"] | tuple[Port, ...] = "all"
    """Server ports that are intercepted."""
    own_traffic: bool = False
    """Also intercept what this machine itself sends."""
    source_address: Literal["gateway", "client"] = "gateway"
    """Whose address servers see."""
    on_failure: Literal["open", "closed"] = "open"
    """What happens to traffic when Weir is gone: it passes, or it is refused."""
    quic: Literal["reject", "pass"] = "reject"
    """QUIC (UDP 443): rejected at once, so that browsers fall back to TCP, or passed unseen."""


class Upstream(Section):
    """A server behind the reverse listener."""

    upstream: Address
    """`HOST:PORT`."""
    use_tls: bool = False
    """Speak TLS to it."""
    health_check_path: str | None = None
    """Path that answers 2xx while it is well."""


class UpstreamRoute(Upstream):
    """Which requests go to which upstream: the most specific host decides, then the longest path."""

    host: str | None = None
    """Exact name or `*.suffix`; unset fits every host."""
    path_prefix: Annotated[str, Field(pattern="^/")] | None = None
    """Start of the path; unset fits every path."""
    strip_prefix: bool = False
    """Remove the prefix before the request is sent on."""


class HealthChecks(Section):
    """Asking upstreams whether they are well."""

    enabled: bool = False
    """Whether to ask."""
    interval: Duration = 10.0
    """How often."""
    timeout: Duration = 2.0
    """How long an answer may take."""
    path: Annotated[str, Field(pattern="^/")] = "/health"
    """What is asked for."""


class LoadBalancing(Section):
    """Choosing among upstreams of the same host and path."""

    strategy: Literal["round_robin", "least_connections", "ip_hash"] = "round_robin"
    """How."""
    health_checks: HealthChecks = HealthChecks()


class Headers(Section):
    """Headers that are added and removed; values may hold `$remote_addr`, `$scheme`, `$host`."""

    add_request: tuple[HeaderLine, ...] = ()
    """Added to requests: `Name: value`."""
    remove_request: tuple[HeaderName, ...] = ()
    """Removed from requests."""
    add_response: tuple[HeaderLine, ...] = ()
    """Added to responses."""


class DirectHttp(Section):
    """The reverse listener for HTTP."""

    bind_address: BindAddress = ("127.0.0.1:8080",)
    """Where it listens."""
    upstream_routing: tuple[UpstreamRoute, ...] = ()
    """Routes; their order does not matter, and those of the same host and path share the load."""
    default_upstream: Upstream | None = None
    """Where requests go that fit no route; unset answers 404."""
    load_balancing: LoadBalancing = LoadBalancing()
    headers: Headers = Headers()


class SniRoute(Section):
    """A certificate for a name."""

    sni: str
    """Exact name or `*.suffix`."""
    cert_path: Path
    """Certificate chain, PEM."""
    key_path: Path
    """Private key, PEM."""


class Intercept(Section):
    """Reading TLS by showing clients our own certificates."""

    enabled: bool = False
    """Whether to."""
    trust: tuple[str, ...] = ("system",)
    """Which CAs servers' certificates are checked against: `system` or files."""
    passthrough: tuple[str, ...] = ()
    """Names that are never intercepted."""
    learn_pinned: bool = True
    """Stop intercepting where a client rejects our certificate."""
    client_auth: Literal["none", "request", "require"] = "none"
    """Ask clients for certificates."""
    ciphers: str | None = None
    """OpenSSL cipher list."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """Oldest TLS version."""


class Tls(Section):
    """Certificates."""

    cert_path: Path | None = None
    """Certificate chain of the reverse listener, PEM."""
    key_path: Path | None = None
    """Its private key, PEM."""
    sni_routing: tuple[SniRoute, ...] = ()
    """Certificates by name."""
    intercept: Intercept = Intercept()


class Proxy(Section):
    """Listeners."""

    mode: Literal["socks", "direct_http", "transparent", "hybrid"] = "socks"
    """Which listeners run: one kind, or with `hybrid` SOCKS and every kind whose section is there."""
    bind_address: BindAddress = ("127.0.0.1:1080",)
    """SOCKS4, 4a, 5, HTTP CONNECT and absolute-form, all on this port."""
    socks: Socks = Socks()
    transparent: Transparent | None = None
    direct_http: DirectHttp | None = None
    tls: Tls = Tls()
