"""Which clients may connect at all: membership of an address in a list of networks, cheap for long lists."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REMEMBERED = 4096


class AllowList:
    """Networks that may connect. Answers from a table per prefix length, and remembers recent answers."""

    def __init__(self, networks: Iterable[Network]) -> None:
        tables: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            tables.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
        self._tables = tuple((version, shift, frozenset(table)) for (version, shift), table in tables.items())
        self.permits = lru_cache(maxsize=REMEMBERED)(self._permits)

    def _permits(self, host: str) -> bool:
        """Whether the client with this address may connect. An IPv4-mapped address counts as IPv4."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        value, version = int(address), address.version
        return any(v == version and value >> shift in table for v, shift, table in self._tables)
