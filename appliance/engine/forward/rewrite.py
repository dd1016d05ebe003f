"""What changes in a head between its two sides: as little as HTTP demands, and what the user configured.

Lines that are kept are kept as sent: order, case and spacing. Hop-by-hop headers end here (RFC 9110 §7.6.1).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from appliance.engine.forward.head import Request, Response, tokens
from appliance.engine.settings import HeaderEdits

_HOP_BY_HOP = frozenset(
    b"connection keep-alive te upgrade proxy-connection "
    b"proxy-authorization proxy-authenticate proxy-authentication-info".split()
)
# Connection may name headers that end with it; a client that names one of these wants the two sides to disagree.
_NOT_HOP_BY_HOP = frozenset((b"host", b"content-length", b"transfer-encoding", b"trailer", b"content-encoding"))
_VARIABLE = re.compile(r"\$(remote_addr|scheme|host)\b")


class Variables(NamedTuple):
    """What $remote_addr, $scheme and $host stand for in a configured header value."""

    remote_addr: str
    scheme: str
    host: str


class Edits:
    """Configured header edits, compiled. What is removed is removed from what the peer sent, then ours is added."""

    def __init__(self, settings: HeaderEdits) -> None:
        self.remove_request = frozenset(name.lower().encode() for name in settings.remove_request)
        self._add_request = tuple(_compiled(name, value) for name, value in settings.add_request)
        self._add_response = tuple(_compiled(name, value) for name, value in settings.add_response)

    def request_lines(self, variables: Variables) -> list[bytes]:
        """Header lines to add to a request."""
        return [line(variables) for line in self._add_request]

    def response_lines(self, variables: Variables) -> list[bytes]:
        """Header lines to add to a response."""
        return [line(variables) for line in self._add_response]


def upgrade_of(request: Request) -> bool:
    """Whether an upgrade is asked for that we let through.

    Not h2c: behind it requests would travel that nobody routes or authenticates any more.
    """
    if request.minor == 0 or b"upgrade" not in tokens(request.fields, b"connection"):
        return False
    wanted = tokens(request.fields, b"upgrade")
    return bool(wanted) and b"h2c" not in wanted


def request_head(request: Request, target: bytes, host: bytes | None, edits: Edits, variables: Variables) -> bytes:
    """The head to send to the server: origin-form ``target``; ``host`` replaces the Host header unless None."""
    upgrade = upgrade_of(request)
    ends_here = _HOP_BY_HOP | (tokens(request.fields, b"connection") - _NOT_HOP_BY_HOP) | edits.remove_request
    if upgrade:
        ends_here -= {b"upgrade"}
    # An HTTP/1.0 client could not read a chunked response, so its server is not told of 1.1 either.
    lines = [b"%b %b HTTP/1.%d" % (request.method, target, request.minor)]
    if host is not None and not any(field.name == b"host" for field in request.fields):
        lines.append(b"Host: " + host)
    for field in request.fields:
        if field.name == b"host" and host is not None and host != field.value:
            # Absolute-form wins over Host, and Host must then say the same (RFC 9112 §3.2.2).
            lines.append(field.line[:4] + b": " + host)
        elif field.name not in ends_here:
            lines.append(field.line)
    lines += edits.request_lines(variables)
    if upgrade:
        lines.append(b"Connection: Upgrade")
    elif request.minor == 0:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def response_head(response: Response, edits: Edits, variables: Variables, *, close: bool) -> bytes:
    """The head to send to the client; ``close`` tells it that this connection ends with the body."""
    switched = response.status == 101
    ends_here = _HOP_BY_HOP | (tokens(response.fields, b"connection") - _NOT_HOP_BY_HOP)
    if switched or response.status == 426:  # Upgrade Required names the protocols there (RFC 9110 §15.5.22)
        ends_here -= {b"upgrade"}
    lines = [b"HTTP/1.1 %d %b" % (response.status, response.reason)]
    lines += [field.line for field in response.fields if field.name not in ends_here]
    if response.status >= 200:
        lines += edits.response_lines(variables)
    if switched:
        lines.append(b"Connection: Upgrade")
    elif close:
        lines.append(b"Connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _compiled(name: str, value: str) -> Callable[[Variables], bytes]:
    if not _VARIABLE.search(value):
        line = f"{name}: {value}".encode()
        return lambda _variables: line
    return lambda variables: f"{name}: {_VARIABLE.sub(lambda m: str(getattr(variables, m[1])), value)}".encode(
        "utf-8", "surrogateescape"
    )
