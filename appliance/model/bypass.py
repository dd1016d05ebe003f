"""What the user does not want understood."""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class BypassRule:
    """Servers that are not understood: ``direct_proxy`` is relayed opaque, ``fast_path`` keeps heads only.

    A rule holds when everything it names holds; ``domain`` is exact or ``*.suffix``.
    """

    mode: Literal["direct_proxy", "fast_path"]
    network: Network | None = None
    domain: str | None = None
    port: int | None = None
