"""Every road from the client through Weir to a server, as plain sockets: no client library between us and the bytes.

A road opens a socket on which HTTP can be spoken; ``prefix`` is what a request target has to begin with there.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

from appliance.tools.lab.clients import REVERSE_PORT, SOCKS_PORT
from appliance.tools.lab.namespaces import GATEWAY_V4, ORIGIN_V4, ORIGIN_V6, Namespace

Open = Callable[[Namespace, str, int], socket.socket]


@dataclass(frozen=True, slots=True)
class Road:
    """One way through Weir; ``listener`` is what the stored row must say about it."""

    name: str
    listener: str
    open: Open
    host: str = ORIGIN_V4
    absolute: bool = False

    def prefix(self, port: int) -> str:
        """What comes before the path in a request's target."""
        return f"http://{self.host}:{port}" if self.absolute else ""


def transparent(client: Namespace, host: str, port: int) -> socket.socket:
    """The client knows nothing of Weir."""
    return client.connect(host, port)


def socks4(client: Namespace, host: str, port: int) -> socket.socket:
    """SOCKS4, an address."""
    sock = client.connect(GATEWAY_V4, SOCKS_PORT)
    sock.sendall(b"\x04\x01" + port.to_bytes(2, "big") + socket.inet_aton(host) + b"me\0")
    assert exactly(sock, 8)[:2] == b"\x00\x5a"
    return sock


def socks5(client: Namespace, host: str, port: int) -> socket.socket:
    """SOCKS5, an address."""
    sock = client.connect(GATEWAY_V4, SOCKS_PORT)
    sock.sendall(b"\x05\x01\x00")
    assert exactly(sock, 2) == b"\x05\x00"
    sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big"))
    assert exactly(sock, 10)[:2] == b"\x05\x00"
    return sock


def connect(client: Namespace, host: str, port: int) -> socket.socket:
    """HTTP CONNECT."""
    sock = client.connect(GATEWAY_V4, SOCKS_PORT)
    sock.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(sock, 1)
    assert b" 200 " in head
    return sock


def proxy(client: Namespace, host: str, port: int) -> socket.socket:
    """An HTTP proxy that is asked in absolute form."""
    return client.connect(GATEWAY_V4, SOCKS_PORT)


def reverse(client: Namespace, host: str, port: int) -> socket.socket:
    """Weir is the server, as far as the client knows."""
    return client.connect(GATEWAY_V4, REVERSE_PORT)


ROADS = (
    Road("transparent-v4", "transparent", transparent),
    Road("transparent-v6", "transparent", transparent, host=ORIGIN_V6),
    Road("socks4", "socks4", socks4),
    Road("socks5", "socks5", socks5),
    Road("connect", "connect", connect),
    Road("absolute-form", "forward", proxy, absolute=True),
    Road("reverse", "direct_http", reverse),
)


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes; fewer only at the end of the stream."""
    data = b""
    while len(data) < count and (piece := sock.recv(count - len(data))):
        data += piece
    return data
