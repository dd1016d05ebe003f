"""SOCKS4, 4a, 5 and HTTP on one port: the first byte decides."""

from collections.abc import Mapping

from appliance.engine.listeners import socks4, socks5
from appliance.engine.listeners.connect import Connect
from appliance.engine.listeners.handshake import MORE, Handshake, Step
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class Mixed:
    """One client's handshake, whichever it speaks. ``users`` maps names to passwords; None asks nobody."""

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        self._users = users
        self._spoken: Handshake | None = None

    @property
    def listener(self) -> str:
        """What the client speaks; ``mixed`` until its first byte."""
        return self._spoken.listener if self._spoken is not None else "mixed"

    def receive(self, data: bytes) -> Step:
        """Take bytes as they came; see ``handshake.Handshake``."""
        if self._spoken is None:
            if not data:
                return MORE
            first = data[0]
            if first == socks5.VERSION:
                self._spoken = socks5.Socks5(self._users)
            elif first == socks4.VERSION:
                self._spoken = socks4.Socks4(open_to_all=self._users is None)
            elif first in _TOKEN:
                self._spoken = Connect(self._users)
            elif first == 0x16:
                error = "the client speaks TLS to this proxy port, which expects SOCKS or plain HTTP"
                return Step(failed=End.PROTOCOL_ERROR, error=error)
            else:
                return Step(failed=End.PROTOCOL_ERROR, error=f"first byte 0x{first:02x} is neither SOCKS nor HTTP")
        return self._spoken.receive(data)

    def accepted(self, bound: Endpoint) -> bytes:
        """The server is connected, said in the client's protocol."""
        return self._spoken.accepted(bound) if self._spoken is not None else b""

    def refused(self, end: End, message: str = "", errno: int = 0) -> bytes:
        """The server was not reached, said in the client's protocol; nothing before its first byte."""
        return self._spoken.refused(end, message, errno) if self._spoken is not None else b""
