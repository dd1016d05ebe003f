"""What is to be intercepted, as one checked, frozen value.

Everything the kernel side does is a function of an ``InterceptPolicy``: the table, the policy routing, the sysctls
and what the doctor looks for. Nothing here touches the kernel.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from appliance.model.endpoint import Endpoint
from appliance.netfilter.errors import PolicyError

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
BypassEntry = IPv4Network | IPv6Network | int
"""A destination network, or a destination TCP port, that goes past the engine."""

MAX_INTERFACE_NAME = 15  # IFNAMSIZ - 1, include/uapi/linux/if.h
MAX_TABLE_NAME = 127
RESERVED_ROUTING_TABLES = (0, 253, 254, 255)  # unspec, default, main, local
MAX_RULE_PRIORITY = 32765  # the main table is looked up at 32766; a later rule would never be reached

# Interfaces of this name are always intercepted, whoever their clients are: the doctor's own veth, so that it can prove
# the live table without changing it. Only root can create an interface, so only root can use it.
PROBE_INTERFACE = "weir-probe"

DEFAULT_LISTEN4 = Endpoint("127.0.0.1", 15001)
DEFAULT_LISTEN6 = Endpoint("::1", 15001)

_TABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterceptPolicy:
    """Which connections the kernel hands to the transparent listener, and how.

    ``interfaces``: where intercepted clients live. ``ports``: destination TCP ports, or ``"all"``. ``listen4`` and
    ``listen6``: where the transparent listener of each family is bound (None: that family is not intercepted).

    ``mark`` within ``mask`` is what the policy routing looks for; ``own_mark`` within ``mask`` is what our own sockets
    carry (SO_MARK) so that they are never intercepted; bits outside ``mask`` belong to others and are kept.

    ``on_failure``: ``open`` lets traffic go straight to its server while nobody listens and after the supervisor is
    gone; ``closed`` refuses it. ``quic``: ``reject`` makes HTTP/3 clients fall back to TCP at once.

    Selection, in this order of strength: ``own_addresses`` and every local address of the gateway are never
    intercepted; ``bypass`` destinations and ``bypass_ports`` go straight; then ``exclude_macs``, ``exclude_clients``,
    and ``clients`` (empty: every client). ``own_traffic`` intercepts what this machine itself sends, too.

    ``manage_sysctls``: switch forwarding on and redirects off, and restore what was there.

    Raises ``PolicyError`` that lists every problem at once.
    """

    interfaces: tuple[str, ...]
    ports: tuple[int, ...] | Literal["all"] = "all"
    listen4: Endpoint | None = DEFAULT_LISTEN4
    listen6: Endpoint | None = DEFAULT_LISTEN6
    mark: int = 0x1
    own_mark: int = 0x2
    mask: int = 0xFF
    routing_table: int = 5757
    rule_priority: int = 100
    table: str = "weir"
    on_failure: Literal["open", "closed"] = "open"
    quic: Literal["reject", "pass"] = "reject"
    clients: tuple[Network, ...] = ()
    exclude_clients: tuple[Network, ...] = ()
    exclude_macs: tuple[str, ...] = ()
    bypass: tuple[Network, ...] = ()
    bypass_ports: tuple[int, ...] = ()
    own_addresses: tuple[Address, ...] = ()
    own_traffic: bool = False
    manage_sysctls: bool = True

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise PolicyError(problems)

    @property
    def listeners(self) -> Iterator[tuple[int, Endpoint]]:
        """The intercepted families as (IP version, listener)."""
        if self.listen4 is not None:
            yield 4, self.listen4
        if self.listen6 is not None:
            yield 6, self.listen6


def _problems(policy: InterceptPolicy) -> Iterator[str]:
    if not policy.interfaces and not policy.own_traffic:
        yield "interfaces: name at least one interface where clients live (or set own_traffic)"
    for name in policy.interfaces:
        yield from _interface_problems(name)
    if len(set(policy.interfaces)) != len(policy.interfaces):
        yield "interfaces: the same interface is named twice"
    if policy.ports != "all":
        if not policy.ports:
            yield "ports: an empty list intercepts nothing (write all, or list ports)"
        yield from _port_problems("ports", policy.ports)
    yield from _port_problems("bypass_ports", policy.bypass_ports)
    yield from _listener_problems(policy)
    yield from _mark_problems(policy)
    if policy.routing_table in RESERVED_ROUTING_TABLES or not 0 < policy.routing_table < 2**32:
        yield f"routing_table: {policy.routing_table} is not free (any of 1–4294967295 but 253, 254, 255)"
    if not 0 < policy.rule_priority <= MAX_RULE_PRIORITY:
        yield f"rule_priority: {policy.rule_priority} is not in 1–{MAX_RULE_PRIORITY} (it must come before table main)"
    if not _TABLE_NAME.match(policy.table) or len(policy.table) > MAX_TABLE_NAME:
        yield f"table: {policy.table!r} is no nft table name (a letter, then letters, digits, _ . -)"
    if policy.on_failure not in ("open", "closed"):
        yield f"on_failure: {policy.on_failure!r} is neither open nor closed"
    if policy.quic not in ("reject", "pass"):
        yield f"quic: {policy.quic!r} is neither reject nor pass"
    for mac in policy.exclude_macs:
        if not _MAC.match(mac):
            yield f"exclude_macs: {mac!r} is no MAC address (lower case, like 02:00:5e:10:00:01)"
    yield from _type_problems(policy)


def _interface_problems(name: str) -> Iterator[str]:
    if not name or len(name.encode()) > MAX_INTERFACE_NAME or name in (".", "..") or re.search(r"[\s/:]", name):
        yield f"interfaces: {name!r} is no interface name (1–{MAX_INTERFACE_NAME} bytes, no space, slash or colon)"
    elif name == "lo":
        yield "interfaces: lo carries the gateway's own traffic; set own_traffic to intercept that"


def _port_problems(field: str, ports: tuple[int, ...]) -> Iterator[str]:
    for port in ports:
        if not 0 < port < 65536:
            yield f"{field}: {port} is not a port (1–65535)"


def _listener_problems(policy: InterceptPolicy) -> Iterator[str]:
    if policy.listen4 is None and policy.listen6 is None:
        yield "listen4, listen6: at least one family needs a listener"
    for field, listener, family in (("listen4", policy.listen4, IPv4Address), ("listen6", policy.listen6, IPv6Address)):
        if listener is None:
            continue
        try:
            family(listener.host)
        except ValueError:
            yield f"{field}: {listener.host!r} is no {family.__name__[:4]} address"
        yield from _port_problems(field, (listener.port,))


def _mark_problems(policy: InterceptPolicy) -> Iterator[str]:
    if not 0 < policy.mask < 2**32:
        yield f"mask: {policy.mask:#x} is not in 0x1–0xffffffff"
    for field, mark in (("mark", policy.mark), ("own_mark", policy.own_mark)):
        if mark <= 0 or mark & ~policy.mask:
            yield f"{field}: {mark:#x} must be above zero and lie within mask {policy.mask:#x}"
    if policy.mark == policy.own_mark:
        yield f"own_mark: must differ from mark ({policy.mark:#x}), or our own connections would be intercepted"


def _type_problems(policy: InterceptPolicy) -> Iterator[str]:
    for field in fields(policy):
        if field.name in ("clients", "exclude_clients", "bypass"):
            for entry in getattr(policy, field.name):
                if not isinstance(entry, IPv4Network | IPv6Network):
                    yield f"{field.name}: {entry!r} is no network (use ipaddress.ip_network)"
    for address in policy.own_addresses:
        if not isinstance(address, IPv4Address | IPv6Address):
            yield f"own_addresses: {address!r} is no address (use ipaddress.ip_address)"
