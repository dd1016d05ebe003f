"""nftables expressions as values: what ``nft`` would print, and what the kernel wants to read.

A ``Statement`` is one readable piece of a rule together with the register operations it stands for. Rules are tuples of
statements, so that the text shown to users and the messages sent to the kernel cannot drift apart.

Encodings that are not obvious were verified against the kernel: marks are host-endian, ports and addresses
network-endian, interface names padded to 16 bytes (include/uapi/linux/netfilter/nf_tables.h).
"""

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

Operation = dict[str, Any]

IPV4 = 2  # NFPROTO_IPV4
IPV6 = 10  # NFPROTO_IPV6
TCP = 6
UDP = 17

_META_MARK = 3
_META_IIFNAME = 6
_META_IIFTYPE = 8
_META_NFPROTO = 15
_META_L4PROTO = 16
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2
_EQUAL = 0
_ARPHRD_ETHER = 1
# The result is an enumeration (3: address type) that pyroute2 writes as a set of flags: bits 0 and 1 make the 3.
_FIB_RESULT_ADDRTYPE = frozenset({"NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF"})
_FIB_DADDR = 2
_RTN_LOCAL = 2
_REJECT_TCP_RST = 1
_REJECT_ICMPX = 2
_ICMPX_PORT_UNREACH = 1
_SYN, _FIN_SYN_RST_ACK = b"\x02", b"\x17"

# The verdicts' numbers, include/uapi/linux/netfilter.h and nf_tables.h.
_ACCEPT = 1
_JUMP = -3
_GOTO = -4


@dataclass(frozen=True, slots=True)
class Statement:
    """One piece of a rule: nft's text for it, and the kernel's operations."""

    text: str
    operations: tuple[Operation, ...]


def l4proto(protocol: int) -> Statement:
    """The packet's transport protocol is this one."""
    name = {TCP: "tcp", UDP: "udp"}[protocol]
    return Statement(f"meta l4proto {name}", (_meta(_META_L4PROTO), _compare(bytes([protocol]))))


def nfproto(family: int) -> Statement:
    """The packet's network protocol is this one."""
    name = {IPV4: "ipv4", IPV6: "ipv6"}[family]
    return Statement(f"meta nfproto {name}", (_meta(_META_NFPROTO), _compare(bytes([family]))))


def interface_is(name: str) -> Statement:
    """The packet came in by this interface."""
    return Statement(f'iifname "{name}"', (_meta(_META_IIFNAME), _compare(name.encode().ljust(16, b"\0"))))


def interface_not_in(set_name: str) -> Statement:
    """The packet came in by none of the set's interfaces."""
    return Statement(f"iifname != @{set_name}", (_meta(_META_IIFNAME), _lookup(set_name, inverted=True)))


def interface_in(set_name: str) -> Statement:
    """The packet came in by one of the set's interfaces."""
    return Statement(f"iifname @{set_name}", (_meta(_META_IIFNAME), _lookup(set_name)))


def mac_in(set_name: str) -> Statement:
    """The packet's sender is one of these Ethernet addresses. Other link types never match."""
    return Statement(
        f"ether saddr @{set_name}",
        (_meta(_META_IIFTYPE), _compare(struct.pack("=H", _ARPHRD_ETHER)), _payload(_LINK, 6, 6), _lookup(set_name)),
    )


def source_in(family: int, set_name: str) -> Statement:
    """The source address is in the set."""
    return _address(family, "saddr", set_name, inverted=False)


def source_not_in(family: int, set_name: str) -> Statement:
    """The source address is not in the set; only packets of that family match."""
    return _address(family, "saddr", set_name, inverted=True)


def destination_in(family: int, set_name: str) -> Statement:
    """The destination address is in the set."""
    return _address(family, "daddr", set_name, inverted=False)


def destination_is_local() -> Statement:
    """The destination is one of this machine's own addresses, as the routing tables see it now."""
    fib = _operation(
        "fib", ("NFTA_FIB_DREG", 1), ("NFTA_FIB_RESULT", _FIB_RESULT_ADDRTYPE), ("NFTA_FIB_FLAGS", _FIB_DADDR)
    )
    return Statement("fib daddr type local", (fib, _compare(struct.pack("=I", _RTN_LOCAL))))


def port_in(protocol: int, set_name: str) -> Statement:
    """The destination port is in the set."""
    return _port(protocol, set_name, inverted=False)


def port_not_in(protocol: int, set_name: str) -> Statement:
    """The destination port is not in the set."""
    return _port(protocol, set_name, inverted=True)


def port_is(protocol: int, port: int) -> Statement:
    """The destination port is this one."""
    name = {TCP: "tcp", UDP: "udp"}[protocol]
    check = _compare(struct.pack(">H", port))
    return Statement(f"{name} dport {port}", (*l4proto(protocol).operations, _payload(_TRANSPORT, 2, 2), check))


def opens_connection() -> Statement:
    """A SYN, and nothing else: the first segment of a connection (RFC 9293 §3.1)."""
    return Statement(
        "tcp flags syn / fin,syn,rst,ack",
        (_payload(_TRANSPORT, 13, 1), _mask(_FIN_SYN_RST_ACK, b"\0"), _compare(_SYN)),
    )


def socket_transparent() -> Statement:
    """An IP_TRANSPARENT socket of ours already handles this packet's connection."""
    socket = _operation("socket", ("NFTA_SOCKET_KEY", 0), ("NFTA_SOCKET_DREG", 1))
    return Statement("socket transparent 1", (socket, _compare(b"\x01")))


def mark_is(mark: int, mask: int) -> Statement:
    """The packet's mark, within the mask, is this one."""
    return Statement(
        f"meta mark & 0x{mask:08x} == 0x{mark:08x}",
        (_meta(_META_MARK), _mask(_word(mask), _word(0)), _compare(_word(mark))),
    )


def set_mark(mark: int, mask: int) -> Statement:
    """Write the mark's bits within the mask and keep everybody else's."""
    keep = ~mask & 0xFFFFFFFF
    write = _operation("meta", ("NFTA_META_KEY", _META_MARK), ("NFTA_META_SREG", 1))
    return Statement(
        f"meta mark set meta mark & 0x{keep:08x} ^ 0x{mark:08x}",
        (_meta(_META_MARK), _mask(_word(keep), _word(mark)), write),
    )


def tproxy(family: int, host: str, port: int) -> Statement:
    """Hand the packet to the listener at this address; without a listener the rule stops matching here."""
    name, shown = ("ip", host) if family == IPV4 else ("ip6", f"[{host}]")
    return Statement(
        f"tproxy {name} to {shown}:{port}",
        (
            _immediate(ip_address(host).packed, 1),
            _immediate(struct.pack(">H", port), 2),
            _operation(
                "tproxy", ("NFTA_TPROXY_FAMILY", family), ("NFTA_TPROXY_REG_ADDR", 1), ("NFTA_TPROXY_REG_PORT", 2)
            ),
        ),
    )


def reject_with_reset() -> Statement:
    """Answer with a TCP reset."""
    return Statement("reject with tcp reset", (_operation("reject", ("NFTA_REJECT_TYPE", _REJECT_TCP_RST)),))


def reject_port_unreachable() -> Statement:
    """Answer with ICMP or ICMPv6 port unreachable; a connected UDP socket sees ECONNREFUSED at once."""
    reject = _operation("reject", ("NFTA_REJECT_TYPE", _REJECT_ICMPX), ("NFTA_REJECT_ICMP_CODE", _ICMPX_PORT_UNREACH))
    return Statement("reject with icmpx port-unreachable", (reject,))


def counter() -> Statement:
    """Count packets and bytes that come this far in the rule."""
    return Statement("counter", (_operation("counter", ("NFTA_COUNTER_BYTES", 0), ("NFTA_COUNTER_PACKETS", 0)),))


def accept() -> Statement:
    """Leave our chains; other tables still have their say."""
    return _verdict("accept", _ACCEPT)


def jump(chain: str) -> Statement:
    """Go on in another chain and come back."""
    return _verdict(f"jump {chain}", _JUMP, chain)


def goto(chain: str) -> Statement:
    """Go on in another chain for good."""
    return _verdict(f"goto {chain}", _GOTO, chain)


def _address(family: int, side: str, set_name: str, *, inverted: bool) -> Statement:
    name = "ip" if family == IPV4 else "ip6"
    length, offsets = (4, {"saddr": 12, "daddr": 16}) if family == IPV4 else (16, {"saddr": 8, "daddr": 24})
    return Statement(
        f"{name} {side} {'!= ' if inverted else ''}@{set_name}",
        (
            *nfproto(family).operations,
            _payload(_NETWORK, offsets[side], length),
            _lookup(set_name, inverted=inverted),
        ),
    )


def _port(protocol: int, set_name: str, *, inverted: bool) -> Statement:
    name = {TCP: "tcp", UDP: "udp"}[protocol]
    return Statement(
        f"{name} dport {'!= ' if inverted else ''}@{set_name}",
        (*l4proto(protocol).operations, _payload(_TRANSPORT, 2, 2), _lookup(set_name, inverted=inverted)),
    )


def _operation(name: str, *attributes: tuple[str, Any]) -> Operation:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": list(attributes)})]}


def _value(data: bytes) -> Operation:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _word(value: int) -> bytes:
    return struct.pack("=I", value)


def _meta(key: int) -> Operation:
    return _operation("meta", ("NFTA_META_DREG", 1), ("NFTA_META_KEY", key))


def _compare(data: bytes) -> Operation:
    return _operation("cmp", ("NFTA_CMP_SREG", 1), ("NFTA_CMP_OP", _EQUAL), ("NFTA_CMP_DATA", _value(data)))


def _mask(keep: bytes, flip: bytes) -> Operation:
    return _operation(
        "bitwise",
        ("NFTA_BITWISE_SREG", 1),
        ("NFTA_BITWISE_DREG", 1),
        ("NFTA_BITWISE_LEN", len(keep)),
        ("NFTA_BITWISE_MASK", _value(keep)),
        ("NFTA_BITWISE_XOR", _value(flip)),
    )


def _immediate(data: bytes, register: int) -> Operation:
    return _operation("immediate", ("NFTA_IMMEDIATE_DREG", register), ("NFTA_IMMEDIATE_DATA", _value(data)))


def _payload(base: int, offset: int, length: int) -> Operation:
    return _operation(
        "payload",
        ("NFTA_PAYLOAD_DREG", 1),
        ("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", offset),
        ("NFTA_PAYLOAD_LEN", length),
    )


def _lookup(set_name: str, *, inverted: bool = False) -> Operation:
    attributes: list[tuple[str, Any]] = [("NFTA_LOOKUP_SET", set_name), ("NFTA_LOOKUP_SREG", 1)]
    if inverted:
        attributes.append(("NFTA_LOOKUP_FLAGS", {"NFT_LOOKUP_F_INV"}))
    return _operation("lookup", *attributes)


def _verdict(text: str, code: int, chain: str | None = None) -> Statement:
    verdict: list[tuple[str, Any]] = [("NFTA_VERDICT_CODE", code)]
    if chain is not None:
        verdict.append(("NFTA_VERDICT_CHAIN", chain))
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}
    return Statement(text, (_operation("immediate", ("NFTA_IMMEDIATE_DREG", 0), ("NFTA_IMMEDIATE_DATA", data)),))
