"""The nftables table that a policy means: pure, and readable.

``build`` makes a ``Ruleset`` value; ``render`` shows it in nft's own language (logs, ``weir doctor``, tests);
``messages.table`` turns the same value into what the kernel reads.

The way of a packet from a client, in prerouting at priority mangle (-150), before routing decides:

1. it belongs to a connection that a transparent socket of ours has: mark it, done;
2. it did not come from where clients live: done, not ours;
3. chains ``clients`` and ``select``: excluded clients, loop guard, bypass, the gateway's own addresses; then other
   ports: done, not ours;
4. chain ``divert``: hand it to the listener, then mark it. In this order: TPROXY without a listener stops the rule, and
   a packet that is not marked is simply forwarded (fail open). For fail closed, a reject follows.

The mark makes the policy routing deliver the packet locally (routing.py).
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

from appliance.netfilter import expressions as x
from appliance.netfilter.expressions import IPV4, IPV6, TCP, UDP, Statement
from appliance.netfilter.policy import PROBE_INTERFACE, Address, InterceptPolicy, Network
from appliance.netfilter.sets import Range, merge, networks_of

MANGLE = -150  # NF_IP_PRI_MANGLE: before routing, after conntrack
HTTPS = 443

OWNER = 0x2  # NFT_TABLE_F_OWNER, since Linux 5.12
PERSIST = 0x4  # NFT_TABLE_F_PERSIST, since Linux 6.9

SIGNATURE = "made by Weir"
"""The comment on every table of ours, whatever its name."""

FAMILY = {4: IPV4, 6: IPV6}

SetType = Literal["ipv4_addr", "ipv6_addr", "inet_service", "ifname", "ether_addr"]
_ADDRESS: dict[int, SetType] = {4: "ipv4_addr", 6: "ipv6_addr"}


@dataclass(frozen=True, slots=True)
class Set:
    """A named set. Address sets hold ranges, all others plain keys."""

    name: str
    type: SetType
    ranges: tuple[Range, ...] = ()
    keys: tuple[bytes, ...] = ()

    @property
    def version(self) -> int | None:
        """The IP version of an address set, None for other sets."""
        return {"ipv4_addr": 4, "ipv6_addr": 6}.get(self.type)


@dataclass(frozen=True, slots=True)
class Hook:
    """Where the kernel enters a base chain. Its policy is always accept: we never drop what we do not know."""

    name: Literal["prerouting", "forward", "output"]
    priority: int
    type: Literal["filter", "route"] = "filter"


@dataclass(frozen=True, slots=True)
class Rule:
    """Statements from left to right, and what they are for."""

    comment: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules from top to bottom; without a hook it is only reached by jumps."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One ``inet`` table."""

    table: str
    flags: int
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


def build(policy: InterceptPolicy) -> Ruleset:
    """The table for this policy.

    A fail-open table vanishes with its owner, even on SIGKILL. A fail-closed one must not, so it is asked to persist.
    """
    chains = [
        Chain("select", tuple(_select(policy))),
        Chain("clients", tuple(_clients(policy))),
        Chain("divert", tuple(_divert(policy))),
    ]
    chains.append(Chain("prerouting", tuple(_prerouting(policy)), Hook("prerouting", MANGLE)))
    if policy.own_traffic:
        chains.append(Chain("output", tuple(_output(policy)), Hook("output", MANGLE, "route")))
    if policy.quic == "reject":
        chains.append(Chain("forward", tuple(_forward(policy)), Hook("forward", MANGLE)))
    flags = OWNER if policy.on_failure == "open" else OWNER | PERSIST
    return Ruleset(policy.table, flags, tuple(_sets(policy)), tuple(chains))


def build_draining(policy: InterceptPolicy) -> Ruleset:
    """The table while the listener finishes what it has: its connections stay ours, new ones go straight.

    Without rule 1 the packets of those connections would be routed to servers that know nothing of them.
    """
    chain = Chain("prerouting", (_ours(policy),), Hook("prerouting", MANGLE))
    return Ruleset(policy.table, OWNER, (), (chain,))


def render(ruleset: Ruleset) -> str:
    """The table in nft's language. It loads with ``nft -f``, but for the owner flag, which only a process can have."""
    flags = [name for bit, name in ((OWNER, "owner"), (PERSIST, "persist")) if ruleset.flags & bit]
    lines = [f"table inet {ruleset.table} {{" + (f" # flags {','.join(flags)}" if flags else "")]
    lines.append(f'  comment "{SIGNATURE}"')
    for each in ruleset.sets:
        lines += [f"  set {each.name} {{", f"    type {each.type};"]
        if each.version:
            lines.append("    flags interval;")
        shown = list(_elements(each))
        if shown:
            lines.append(f"    elements = {{ {', '.join(shown)} }}")
        lines.append("  }")
    for chain in ruleset.chains:
        lines.append(f"  chain {chain.name} {{")
        if chain.hook:
            hook = chain.hook
            lines.append(f"    type {hook.type} hook {hook.name} priority {hook.priority}; policy accept;")
        lines += [f'    {" ".join(s.text for s in rule.statements)} comment "{rule.comment}"' for rule in chain.rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def listener_rule(version: int) -> str:
    """The comment of the rule that hands this family's connections to the listener; its counter counts them."""
    return f"to the listener, IPv{version}"


def bypass_set(version: int, ranges: tuple[Range, ...]) -> Set:
    """The set of bypassed networks of this IP version, holding these ranges."""
    return Set(_bypass(version), _ADDRESS[version], ranges)


def _bypass(version: int) -> str:
    return f"bypass{version}"


BYPASS_PORTS = "bypass_ports"


def port_key(port: int) -> bytes:
    """A port as a set key."""
    return struct.pack(">H", port)


def _sets(policy: InterceptPolicy) -> Iterator[Set]:
    yield Set("interfaces", "ifname", keys=tuple(name.encode().ljust(16, b"\0") for name in policy.interfaces))
    if policy.ports != "all":
        yield Set("ports", "inet_service", keys=tuple(port_key(port) for port in sorted(set(policy.ports))))
    yield Set(BYPASS_PORTS, "inet_service", keys=tuple(port_key(port) for port in sorted(set(policy.bypass_ports))))
    if policy.exclude_macs:
        macs = sorted(set(policy.exclude_macs))
        yield Set("exclude_macs", "ether_addr", keys=tuple(bytes.fromhex(mac.replace(":", "")) for mac in macs))
    for version in (4, 6):
        yield _address_set(_bypass(version), version, policy.bypass)
        yield _address_set(f"own{version}", version, _hosts(policy.own_addresses))
        if policy.exclude_clients:
            yield _address_set(f"exclude_clients{version}", version, policy.exclude_clients)
        if policy.clients:
            yield _address_set(f"clients{version}", version, policy.clients)


def _address_set(name: str, version: int, networks: Iterable[Network]) -> Set:
    chosen = merge(network for network in networks if network.version == version)
    return Set(name, _ADDRESS[version], ranges=chosen)


def _hosts(addresses: Iterable[Address]) -> Iterator[Network]:
    for address in addresses:
        yield IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def _prerouting(policy: InterceptPolicy) -> Iterator[Rule]:
    yield _ours(policy)
    yield Rule("doctor's probe", (x.interface_is(PROBE_INTERFACE), x.l4proto(TCP), x.goto("divert")))
    if policy.own_traffic:
        yield Rule(
            "own traffic, sent back by chain output",
            (x.interface_is("lo"), x.l4proto(TCP), x.mark_is(policy.mark, policy.mask), x.goto("divert")),
        )
    yield Rule("not where clients live", (x.interface_not_in("interfaces"), x.accept()))
    yield Rule("who may be intercepted", (x.l4proto(TCP), x.jump("clients")))
    yield Rule("what may be intercepted", (x.l4proto(TCP), x.jump("select")))
    if policy.ports != "all":
        yield Rule("ports that are not intercepted", (x.port_not_in(TCP, "ports"), x.accept()))
    yield Rule("what is left is ours", (x.l4proto(TCP), x.goto("divert")))


def _ours(policy: InterceptPolicy) -> Rule:
    # Not tied to an interface: the same rule brings home the return traffic of sockets bound to a client's address.
    return Rule(
        "packets of connections we have",
        (x.l4proto(TCP), x.socket_transparent(), x.set_mark(policy.mark, policy.mask), x.accept()),
    )


def _select(policy: InterceptPolicy) -> Iterator[Rule]:
    yield Rule("loop guard: our own sockets", (x.mark_is(policy.own_mark, policy.mask), x.accept()))
    for version in (4, 6):
        family = FAMILY[version]
        yield Rule(f"never intercepted, IPv{version}", (x.destination_in(family, f"own{version}"), x.accept()))
        yield Rule(f"bypass, IPv{version}", (x.destination_in(family, _bypass(version)), x.counter(), x.accept()))
    yield Rule("bypass, ports", (x.port_in(TCP, BYPASS_PORTS), x.counter(), x.accept()))
    # Last, because it costs a routing lookup. ssh to the gateway and our own API stay reachable.
    yield Rule("the gateway itself", (x.destination_is_local(), x.accept()))


def _clients(policy: InterceptPolicy) -> Iterator[Rule]:
    if policy.exclude_macs:
        yield Rule("excluded clients, by MAC", (x.mac_in("exclude_macs"), x.accept()))
    for version in (4, 6):
        family = FAMILY[version]
        if policy.exclude_clients:
            match = x.source_in(family, f"exclude_clients{version}")
            yield Rule(f"excluded clients, IPv{version}", (match, x.accept()))
        if policy.clients:
            match = x.source_not_in(family, f"clients{version}")
            yield Rule(f"not a listed client, IPv{version}", (match, x.accept()))


def _divert(policy: InterceptPolicy) -> Iterator[Rule]:
    # Fail open takes only SYNs: connections that were there before us go on past us instead of being reset.
    only = (x.opens_connection(),) if policy.on_failure == "open" else ()
    for version, listener in policy.listeners:
        family = FAMILY[version]
        yield Rule(
            listener_rule(version),
            (
                x.nfproto(family),
                *((x.l4proto(TCP), *only)),
                x.tproxy(family, listener.host, listener.port),
                x.set_mark(policy.mark, policy.mask),
                x.counter(),
                x.accept(),
            ),
        )
        if policy.on_failure == "closed":
            yield Rule(
                f"nobody listens, IPv{version}",
                (x.nfproto(family), x.l4proto(TCP), x.counter(), x.reject_with_reset()),
            )


def _output(policy: InterceptPolicy) -> Iterator[Rule]:
    # What our listener says to clients leaves through here, too, and must not be sent back to it.
    yield Rule("what we say to clients", (x.l4proto(TCP), x.socket_transparent(), x.accept()))
    yield Rule("what may pass", (x.l4proto(TCP), x.jump("select")))
    if policy.ports != "all":
        yield Rule("ports that are not intercepted", (x.port_not_in(TCP, "ports"), x.accept()))
    for version, _ in policy.listeners:
        yield Rule(
            f"own connections, IPv{version}",
            (x.nfproto(FAMILY[version]), x.l4proto(TCP), x.set_mark(policy.mark, policy.mask)),
        )


def _forward(policy: InterceptPolicy) -> Iterator[Rule]:
    yield Rule("not where clients live", (x.interface_not_in("interfaces"), x.accept()))
    yield Rule("whose QUIC", (x.port_is(UDP, HTTPS), x.jump("clients")))
    yield Rule("QUIC where to", (x.port_is(UDP, HTTPS), x.jump("select")))
    for version, _ in policy.listeners:
        yield Rule(
            f"HTTP/3 falls back to TCP, IPv{version}",
            (x.nfproto(FAMILY[version]), x.port_is(UDP, HTTPS), x.counter(), x.reject_port_unreachable()),
        )


def _elements(shown: Set) -> Iterator[str]:
    if shown.version:
        yield from (str(network) for network in networks_of(shown.ranges, shown.version))
        return
    for key in shown.keys:
        if shown.type == "inet_service":
            yield str(struct.unpack(">H", key)[0])
        elif shown.type == "ether_addr":
            yield key.hex(":")
        else:
            yield f'"{key.rstrip(bytes(1)).decode()}"'
