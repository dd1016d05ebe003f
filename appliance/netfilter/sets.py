"""Set elements: merging what users list, and the bytes of it.

Interval sets refuse overlapping elements, users list overlapping networks. So networks become ranges of numbers, ranges
that overlap or touch become one, and a live change is the difference between two such lists, sent as one transaction.

Elements are packed here by hand instead of by message objects: ten thousand networks take milliseconds, not seconds.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, summarize_address_range
from typing import NamedTuple, cast

from appliance.netfilter.netlink import attribute, attributes
from appliance.netfilter.policy import Network

BITS = {4: 32, 6: 128}

# include/uapi/linux/netfilter/nf_tables.h
_ELEMENT = 1  # NFTA_LIST_ELEM
_KEY = 1  # NFTA_SET_ELEM_KEY
_FLAGS = 3  # NFTA_SET_ELEM_FLAGS
_VALUE = 1  # NFTA_DATA_VALUE
_NESTED = 0x8000
_INTERVAL_END = attribute(_FLAGS, struct.pack(">I", 1))
_MAX_PAYLOAD = 60_000  # an attribute's length is 16 bits wide, header included


class Range(NamedTuple):
    """Addresses from ``first`` up to, and without, ``end``, as numbers."""

    first: int
    end: int


def merge(networks: Iterable[Network]) -> tuple[Range, ...]:
    """The fewest ranges that cover exactly these networks (of one IP version), in ascending order."""
    merged: list[Range] = []
    for first, end in sorted((int(n.network_address), int(n.broadcast_address) + 1) for n in networks):
        if merged and first <= merged[-1].end:
            merged[-1] = Range(merged[-1].first, max(end, merged[-1].end))
        else:
            merged.append(Range(first, end))
    return tuple(merged)


def difference(before: Sequence[Range], after: Sequence[Range]) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """What to delete and what to add so that a set holding ``before`` holds ``after``."""
    old, new = frozenset(before), frozenset(after)
    return tuple(sorted(old - new)), tuple(sorted(new - old))


def networks_of(ranges: Iterable[Range], version: int) -> list[Network]:
    """The networks that make up these ranges."""
    make = {4: IPv4Network, 6: IPv6Network}[version]
    size = BITS[version] // 8
    return [
        cast(Network, make(network))
        for first, end in ranges
        for network in summarize_address_range(
            ip_address(first.to_bytes(size, "big")),
            ip_address((end - 1).to_bytes(size, "big")),
        )
    ]


def pack_keys(keys: Iterable[bytes]) -> list[bytes]:
    """Plain elements, as payloads of NFTA_SET_ELEM_LIST_ELEMENTS, none longer than an attribute can be."""
    return _chunks(_element(key) for key in keys)


def pack_ranges(ranges: Iterable[Range], version: int) -> list[bytes]:
    """Ranges as start and end elements; a range that ends at the last address has no end element."""
    bits = BITS[version]
    size = bits // 8

    def elements() -> Iterator[bytes]:
        for first, end in ranges:
            start = _element(first.to_bytes(size, "big"))
            # Both in one piece, so that no range is cut between two messages.
            yield start if end >> bits else start + _element(end.to_bytes(size, "big"), _INTERVAL_END)

    return _chunks(elements())


def unpack_ranges(payloads: Iterable[bytes], version: int) -> tuple[Range, ...]:
    """What the kernel lists of an interval set, back as ranges."""
    edges = []
    for payload in payloads:
        for kind, element in attributes(payload):
            if kind != _ELEMENT:
                continue
            parts = dict(attributes(element))
            key = int.from_bytes(dict(attributes(parts[_KEY]))[_VALUE], "big")
            is_start = _FLAGS not in parts or not struct.unpack(">I", parts[_FLAGS])[0] & 1
            edges.append((key, is_start))
    edges.sort()  # at the same number, an end comes before the start of the next range
    ranges = []
    for position, (first, is_start) in enumerate(edges):
        if is_start:
            following = edges[position + 1 : position + 2]
            ranges.append(Range(first, following[0][0] if following else 1 << BITS[version]))
    return tuple(ranges)


def unpack_keys(payloads: Iterable[bytes]) -> tuple[bytes, ...]:
    """What the kernel lists of a plain set."""
    return tuple(
        dict(attributes(dict(attributes(element))[_KEY]))[_VALUE]
        for payload in payloads
        for kind, element in attributes(payload)
        if kind == _ELEMENT
    )


def _element(key: bytes, flags: bytes = b"") -> bytes:
    return attribute(_ELEMENT | _NESTED, attribute(_KEY | _NESTED, attribute(_VALUE, key)) + flags)


def _chunks(elements: Iterable[bytes]) -> list[bytes]:
    chunks: list[bytes] = []
    current = bytearray()
    for element in elements:
        if len(current) + len(element) > _MAX_PAYLOAD:
            chunks.append(bytes(current))
            current.clear()
        current += element
    if current:
        chunks.append(bytes(current))
    return chunks
