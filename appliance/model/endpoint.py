"""A host and a port, written the way users write them."""

import ipaddress
from typing import NamedTuple


class Endpoint(NamedTuple):
    """One end of a connection: an IP literal or a host name, and a port (0–65535).

    A named tuple rather than a dataclass: one is made per accepted connection, and a frozen dataclass costs
    three times as much to build.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """Whether the host is an IP address and needs no name resolution."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """Read ``host:port``, ``[v6]:port``, or a bare host when there is a default port.

    Raises ``ValueError`` that says what is wrong when the text is no endpoint.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address and port (write [IPv6]:PORT)")
        port = rest[1:]
        ipaddress.IPv6Address(host)
    elif text.count(":") > 1:
        raise ValueError(f"{text!r}: an IPv6 address with a port is written [IPv6]:PORT")
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} has no host (write HOST:PORT)")
    if not port:
        if default_port is None:
            raise ValueError(f"{text!r} has no port (write HOST:PORT)")
        return Endpoint(host, default_port)
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port (0–65535)")
    return Endpoint(host, int(port))
