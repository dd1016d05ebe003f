"""What the API obeys. Built by ``app``, passed in."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from appliance.model.endpoint import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """One API process.

    ``bind`` is where it listens; ``tokens`` are the bearer tokens that may use it (none are needed when it listens on
    loopback only and has none); ``dsn`` is the database, ``live_socket`` where inspectors bring what they see.
    """

    bind: tuple[Endpoint, ...]
    dsn: str
    live_socket: Path
    tokens: tuple[str, ...] = ()
    live_history: int = 2000  # events kept for clients that come back
    live_queue: int = 1000  # events that wait for one slow client

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return all(is_loopback(endpoint.host) for endpoint in self.bind)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback (also written as a v4-mapped address)."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
