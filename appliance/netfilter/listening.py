"""Who listens on a TCP port, and whether TPROXY may deliver to it (NETLINK_SOCK_DIAG)."""

import socket
from ipaddress import ip_address
from typing import NamedTuple

from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, SS_LISTEN, inet_diag_msg, inet_diag_req

from appliance.model.endpoint import Endpoint
from appliance.netfilter.netlink import HEADER, NETLINK_SOCK_DIAG, NetlinkSocket, Refused, attributes

# include/uapi/linux/inet_diag.h, not in pyroute2's map; the kernel reports it since 5.10.
_INET_DIAG_SOCKOPT = 22
_TRANSPARENT = 0x20  # bit 5 of struct inet_diag_sockopt
_INET_DIAG_MSG = 72  # sizeof(struct inet_diag_msg)


class Listener(NamedTuple):
    """A listening socket. ``transparent`` is None where the kernel does not tell."""

    host: str
    transparent: bool | None


def listeners(endpoint: Endpoint) -> list[Listener] | None:
    """The sockets that take connections for this endpoint; None when the kernel cannot tell (no inet_diag)."""
    version = ip_address(endpoint.host).version
    request = inet_diag_req()
    request["sdiag_family"] = socket.AF_INET if version == 4 else socket.AF_INET6
    request["sdiag_protocol"] = socket.IPPROTO_TCP
    request["idiag_states"] = 1 << SS_LISTEN
    request["idiag_src"] = request["idiag_dst"] = (0, 0, 0, 0)
    request["header"]["type"] = SOCK_DIAG_BY_FAMILY
    diag = NetlinkSocket(NETLINK_SOCK_DIAG)
    try:
        answers = diag.dump(request)
    except Refused:
        return None
    finally:
        diag.close()
    found = []
    for answer in answers:
        message = inet_diag_msg(answer.data)
        message.decode()
        if message["idiag_sport"] != endpoint.port or message["idiag_src"] not in (endpoint.host, "0.0.0.0", "::"):
            continue
        options = dict(attributes(answer.data[HEADER.size + _INET_DIAG_MSG :])).get(_INET_DIAG_SOCKOPT)
        found.append(Listener(message["idiag_src"], bool(options[0] & _TRANSPARENT) if options else None))
    return found
