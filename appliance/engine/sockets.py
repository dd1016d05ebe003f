"""Listening sockets: one per relay process and address, the kernel spreads connections over them (SO_REUSEPORT)."""

import socket

from appliance.model.endpoint import Endpoint

IP_TRANSPARENT = 19  # linux/in.h
IPV6_TRANSPARENT = 75  # linux/in6.h


class ListenFailed(OSError):
    """A listener could not be opened; the text says which, why and what to do."""


def listen(address: Endpoint, backlog: int, *, transparent: bool = False) -> socket.socket:
    """A non-blocking listening TCP socket. IPv6 sockets take IPv6 only, so that both families can be bound.

    ``transparent`` sockets accept connections whose destination is not this machine: set before ``bind``, because
    TPROXY delivers only to sockets that are (Documentation/networking/tproxy.rst). Needs CAP_NET_RAW or CAP_NET_ADMIN.
    Raises ``ListenFailed``.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        sock.bind((address.host, address.port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise ListenFailed(error.errno, _explain(address, error, transparent)) from error
    return sock


def _explain(address: Endpoint, error: OSError, transparent: bool) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, PermissionError):
        need = "CAP_NET_RAW" if transparent else "CAP_NET_BIND_SERVICE"
        return f"cannot listen on {address}: {reason} (needs {need}: run as root, or choose another port)"
    return f"cannot listen on {address}: {reason} (is another program listening there? see: ss -ltnp)"
