"""Network namespaces without names, and the few link commands that make a path through them.

A namespace here is a file descriptor: it needs no entry in ``/run/netns`` and is gone, with its interfaces, when the
process is, however that ends. Entering changes the calling thread only, and sockets stay where they were made; so
enter, make sockets, leave, and use them.
"""

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any, NamedTuple, Self

from pyroute2 import netns
from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from appliance.netfilter.errors import PrivilegeMissing
from appliance.netfilter.netlink import NETLINK_ROUTE, NetlinkSocket
from appliance.netfilter.policy import Address

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_IFF_UP = 1
_IFA_F_NODAD = 0x02  # usable at once, without waiting for duplicate address detection
_RTPROT_STATIC = 4
_RTN_UNICAST = 1
_RT_TABLE_MAIN = 254

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new, empty network namespace; ``close`` (or the end of the process) removes it."""

    def __init__(self) -> None:
        """Make the namespace; the calling thread stays where it is."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.unshare(_CLONE_NEWNET):
                raise PrivilegeMissing("making a network namespace")
            try:
                self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                netns.setns(home)
        finally:
            os.close(home)
        with self.entered():
            links = Links()
            links.set_up("lo")
            dont_wait_for_addresses("default")
            links.close()

    def fileno(self) -> int:
        """The descriptor that keeps the namespace."""
        return self._descriptor

    def close(self) -> None:
        """Let go of the namespace; it vanishes once no socket or process is in it any more."""
        os.close(self._descriptor)

    @contextmanager
    def entered(self) -> Iterator[Self]:
        """Put the calling thread into the namespace. Do not await inside: other tasks would be in it, too."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(self._descriptor)
            try:
                yield self
            finally:
                netns.setns(home)
        finally:
            os.close(home)


class Link(NamedTuple):
    """An interface: whether it is switched on (IFF_UP), and whether it is a bridge or one of a bridge's ports."""

    up: bool
    bridged: bool


class Links:
    """Interfaces, addresses and routes of the namespace in which this was made."""

    def __init__(self) -> None:
        """Open the socket."""
        self._netlink = NetlinkSocket(NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def add_veth(self, name: str, peer: str, peer_namespace: Namespace) -> None:
        """A cable: one end here, the other in the peer's namespace."""
        far = {"attrs": [("IFLA_IFNAME", peer), ("IFLA_NET_NS_FD", peer_namespace.fileno())]}
        info = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", far)]})]
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})]
        self._ask(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)

    def set_up(self, name: str) -> None:
        """Switch the interface on."""
        message = ifinfmsg()
        message["index"] = socket.if_nametoindex(name)
        message["flags"] = message["change"] = _IFF_UP
        self._ask(message, RTM_NEWLINK)

    def remove(self, name: str) -> None:
        """Remove the interface, and with a veth its other end."""
        message = ifinfmsg()
        message["index"] = socket.if_nametoindex(name)
        self._ask(message, RTM_DELLINK)

    def add_address(self, name: str, address: IPv4Interface | IPv6Interface) -> None:
        """Give the interface an address that is usable at once."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
        message["prefixlen"] = address.network.prefixlen
        message["index"] = socket.if_nametoindex(name)
        message["flags"] = _IFA_F_NODAD if address.version == 6 else 0
        message["attrs"] = [("IFA_ADDRESS", str(address.ip))]
        if address.version == 4:
            message["attrs"].append(("IFA_LOCAL", str(address.ip)))
        self._ask(message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL)

    def add_default_route(self, gateway: Address) -> None:
        """Send everything else there."""
        message = rtmsg()
        message["family"] = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
        message["table"] = _RT_TABLE_MAIN
        message["proto"] = _RTPROT_STATIC
        message["type"] = _RTN_UNICAST
        message["attrs"] = [("RTA_GATEWAY", str(gateway))]
        self._ask(message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL)

    def all(self) -> dict[str, Link]:
        """Every interface by its name. Not from /sys, which shows the namespace in which it was mounted."""
        request = ifinfmsg()
        request["header"]["type"] = RTM_GETLINK
        found = {}
        for answer in self._netlink.dump(request):
            message = ifinfmsg(answer.data)
            message.decode()
            info = message.get_attr("IFLA_LINKINFO")
            kinds = {info.get_attr("IFLA_INFO_KIND"), info.get_attr("IFLA_INFO_SLAVE_KIND")} if info else set()
            found[message.get_attr("IFLA_IFNAME")] = Link(bool(message["flags"] & _IFF_UP), "bridge" in kinds)
        return found

    def _ask(self, message: Any, kind: int, flags: int = 0) -> None:
        message["header"]["type"] = kind
        message["header"]["flags"] = flags
        self._netlink.ask(message)


def dont_wait_for_addresses(interface: str) -> None:
    """Make IPv6 addresses of an interface (or ``default``) usable at once, its link-local one included."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        Path(f"/proc/sys/net/ipv6/conf/{interface}/accept_dad").write_text("0")
