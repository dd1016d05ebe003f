"""What must hold between keys: each rule looks at a whole document and says what contradicts what."""

import ipaddress
import os
from collections.abc import Callable, Iterator

from appliance.app.config.document import Document
from appliance.model.endpoint import parse_endpoint

Finding = tuple[str, str]  # key, message

MIN_TOKEN = 16
# What a turn holds besides a body: start line, headers, chunk sizes.
HEAD_SLACK = 16 << 10
# Of a body that is stored in part, this much of its end at most.
LARGEST_TAIL = 64 << 10
# Linux: a user name is bounded by utmp (useradd(8)).
_MAX_USER = 32
# struct sockaddr_un holds 107 bytes and a zero (unix(7)); this is the longest that we put below the state directory.
_SOCKET_PATH = 107
_LONGEST_SOCKET = "postgres/run/.s.PGSQL.5432"


def check(document: Document) -> list[Finding]:
    """All contradictions, as (key, message). Empty when the document can be run."""
    return [finding for rule in RULES for finding in rule(document)]


def listens(document: Document, kind: str) -> bool:
    """Whether the mode runs this kind of listener: socks, direct_http or transparent."""
    mode = document.proxy.mode
    if mode == "hybrid":
        return kind == "socks" or getattr(document.proxy, kind) is not None
    return mode == kind


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what is bound to ``HOST:PORT``."""
    host = parse_endpoint(address).host
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _authentication(document: Document) -> Iterator[Finding]:
    socks = document.proxy.socks
    if socks.auth_method == "username_password" and not socks.users:
        yield "proxy.socks.users", "auth_method is username_password, but nobody is listed: nobody could connect"
    if socks.auth_method == "none" and socks.users:
        yield "proxy.socks.auth_method", "users are listed, but nobody is asked: write username_password"
    names = [user.username for user in socks.users]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"proxy.socks.users[{index}].username", f"{name!r} is listed twice"


def _addresses(document: Document) -> Iterator[Finding]:
    proxy = document.proxy
    bound = [("proxy.bind_address", proxy.bind_address)] if listens(document, "socks") else []
    if proxy.transparent is not None and listens(document, "transparent"):
        bound.append(("proxy.transparent.bind_address", proxy.transparent.bind_address))
    if proxy.direct_http is not None and listens(document, "direct_http"):
        bound.append(("proxy.direct_http.bind_address", proxy.direct_http.bind_address))
    if document.api.enabled:
        bound.append(("api.bind_address", document.api.bind_address))
    taken: dict[int, list[tuple[str, str]]] = {}
    for key, addresses in bound:
        for address in addresses:
            host, port = parse_endpoint(address)
            if port == 0:
                continue  # the kernel chooses a free one
            for other, other_host in taken.get(port, []):
                if host == other_host or ((_is_any(host) or _is_any(other_host)) and _overlap(host, other_host)):
                    yield key, f"{address} is taken by {other}"
                    break
            taken.setdefault(port, []).append((key, host))


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _overlap(host: str, other: str) -> bool:
    # [::] is bound for IPv6 only, so that it and 0.0.0.0 may stand side by side.
    return (":" in host) == (":" in other)


def _reverse(document: Document) -> Iterator[Finding]:
    if not listens(document, "direct_http"):
        return
    reverse = document.proxy.direct_http
    if reverse is None:
        yield "proxy.direct_http", "mode is direct_http, but this section is missing: it says where requests go"
    elif not reverse.upstream_routing and reverse.default_upstream is None:
        yield "proxy.direct_http", "needs upstream_routing or default_upstream: it has nowhere to send a request"


def _transparent(document: Document) -> Iterator[Finding]:
    if not listens(document, "transparent"):
        return
    transparent = document.proxy.transparent
    if transparent is None:
        yield "proxy.transparent", "mode is transparent, but this section is missing: it names the interfaces"
        return
    if not transparent.interfaces and not transparent.own_traffic:
        yield "proxy.transparent.interfaces", "name at least one interface where clients live (or set own_traffic)"
    if transparent.ports == ():
        yield "proxy.transparent.ports", "an empty list intercepts nothing (write all, or list ports)"
    for name in transparent.interfaces:
        if name == "lo":
            yield "proxy.transparent.interfaces", "lo carries this machine's own traffic: write own_traffic: true"
    if any(parse_endpoint(address).port == 0 for address in transparent.bind_address):
        yield "proxy.transparent.bind_address", "needs a port: the kernel's rules name it"


def _api(document: Document) -> Iterator[Finding]:
    api = document.api
    for index, token in enumerate(api.tokens):
        if len(token) < MIN_TOKEN:
            yield f"api.tokens[{index}]", f"has {len(token)} characters, at least {MIN_TOKEN} (openssl rand -hex 20)"
    if api.enabled and not api.tokens:
        for address in api.bind_address:
            if not is_loopback(address):
                yield "api.bind_address", f"{address} is reachable from elsewhere: set api.tokens, or bind to 127.0.0.1"


def body_sizes(document: Document) -> tuple[int, int]:
    """How much of a long body is stored: bytes of its beginning, and of its end."""
    size = document.protocols.http.max_body_size
    tail = min(LARGEST_TAIL, size // 4)
    return size - tail, tail


def turn_sizes(document: Document) -> tuple[int, int]:
    """How much of a long turn is copied: bytes of its beginning, and of its end."""
    tap = document.engine.tap
    head = document.protocols.http.max_body_size + HEAD_SLACK if tap.turn_head is None else tap.turn_head
    return head, body_sizes(document)[1] if tap.turn_tail is None else tap.turn_tail


def _engine(document: Document) -> Iterator[Finding]:
    engine = document.engine
    if "auto" not in (engine.workers, engine.inspectors) and engine.workers != engine.inspectors:
        yield "engine.inspectors", f"is {engine.inspectors}, but each of the {engine.workers} relays needs exactly one"
    if engine.workers == "auto" and engine.inspectors != "auto":
        yield "engine.inspectors", "follows engine.workers: set that instead"
    if not engine.user or len(engine.user) > _MAX_USER or ":" in engine.user:
        yield "engine.user", f"{engine.user!r} is no user name"
    tap = engine.tap
    if tap.ring_size < 1 << 20:
        yield "engine.tap.ring_size", "is under 1MB: it would only make gaps"
    if sum(turn_sizes(document)) > tap.ring_size // 2:
        key = "engine.tap.ring_size" if tap.turn_head is None else "engine.tap.turn_head"
        yield key, "the ring must hold two whole turns (protocols.http.max_body_size decides how long a turn is)"


def _timeouts(document: Document) -> Iterator[Finding]:
    for name, value in document.engine.timeouts:
        if value == 0 and name != "drain":
            yield f"engine.timeouts.{name}", "is 0: every connection would fail at once"


def _bypass(document: Document) -> Iterator[Finding]:
    for index, rule in enumerate(document.protocols.bypass_rules):
        key = f"protocols.bypass_rules[{index}]"
        if rule.address is None and rule.port is None:
            yield key, "names neither an address nor a port: it would hold for everything"
            continue
        try:
            _, port = split_target(rule.address) if rule.address is not None else ("", None)
        except ValueError as error:
            yield f"{key}.address", str(error)
            continue
        if port is not None and rule.port is not None and port != rule.port:
            yield f"{key}.port", f"is {rule.port}, but the address says {port}"


def _storage(document: Document) -> Iterator[Finding]:
    dsn = document.storage.dsn
    if dsn != "embedded" and not dsn.startswith(("postgresql://", "postgres://")):
        yield "storage.dsn", 'is neither "embedded" nor postgresql://USER:PASSWORD@HOST/DATABASE'


def _state_dir(document: Document) -> Iterator[Finding]:
    directory = document.state_dir
    if not directory.is_absolute():
        yield "state_dir", f"{str(directory)!r} is relative: what would it be relative to when a service starts?"
    if "\0" in str(directory):
        yield "state_dir", "has a zero byte"
    longest = len(os.fsencode(directory / _LONGEST_SOCKET))
    if longest > _SOCKET_PATH:
        yield "state_dir", f"is {longest - _SOCKET_PATH} bytes too long: sockets below it could not be opened (unix(7))"


RULES: tuple[Callable[[Document], Iterator[Finding]], ...] = (
    _state_dir,
    _authentication,
    _addresses,
    _reverse,
    _transparent,
    _bypass,
    _storage,
    _api,
    _engine,
    _timeouts,
)


def split_target(text: str) -> tuple[str, int | None]:
    """The host, network or domain pattern of a bypass rule, and its port when it has one.

    Raises ``ValueError`` that says what is wrong.
    """
    try:
        return str(ipaddress.ip_network(text, strict=False)), None
    except ValueError:
        pass
    if "/" in text:
        raise ValueError(f'{text!r} is not a network (write "192.0.2.0/24")')
    if ":" in text:
        host, port = parse_endpoint(text)
        return host, port
    if not text or "*" in text.removeprefix("*."):
        raise ValueError(f'{text!r}: a star stands only in front ("*.example.com")')
    return text, None
