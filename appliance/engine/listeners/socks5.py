"""SOCKS version 5 (RFC 1928) with user name and password (RFC 1929). CONNECT only: the rest is refused politely."""

import errno as os_errno
import ipaddress
import struct
from collections.abc import Mapping
from enum import Enum, auto
from typing import ClassVar

from appliance.engine.listeners.handshake import MORE, Step, authenticated, target_of
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

VERSION = 5
NO_AUTHENTICATION, USERNAME_PASSWORD, NONE_ACCEPTABLE = 0, 2, 0xFF
CONNECT = 1
IPV4, DOMAIN, IPV6 = 1, 3, 4
ADDRESS_LENGTHS = {IPV4: 4, IPV6: 16}

# RFC 1928 §6
SUCCEEDED, GENERAL_FAILURE, NOT_ALLOWED, NETWORK_UNREACHABLE, HOST_UNREACHABLE, REFUSED = range(6)
COMMAND_NOT_SUPPORTED, ADDRESS_TYPE_NOT_SUPPORTED = 7, 8

REPLIES = {
    End.REFUSED: REFUSED,
    End.UNREACHABLE: HOST_UNREACHABLE,
    # There is no code for a timeout; to the client the host did not answer. 6 (TTL expired) would name a routing loop.
    End.CONNECT_TIMEOUT: HOST_UNREACHABLE,
    End.NAME_NOT_FOUND: HOST_UNREACHABLE,
    End.DENIED: NOT_ALLOWED,
    End.LIMITED: NOT_ALLOWED,
}

# The longest message of the handshake is RFC 1929's: version, two lengths, two strings of 255 bytes.
MAX_MESSAGE = 513


class State(Enum):
    """What is expected next."""

    GREETING = auto()
    CREDENTIALS = auto()
    REQUEST = auto()


class Socks5:
    """One client's handshake. ``users`` maps names to passwords; None asks nobody."""

    listener = "socks5"

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        self._users = users
        self._user: str | None = None
        self._state = State.GREETING
        self._buffer = b""

    def receive(self, data: bytes) -> Step:
        """Take bytes as they came; see ``handshake.Handshake``."""
        self._buffer += data
        reply = b""
        while True:
            state = self._state
            step = self._steps[state](self)
            reply += step.reply
            if step.target is not None or step.failed is not None:
                self._buffer = b""
                return step._replace(reply=reply)
            if self._state is state:
                return Step(reply) if reply else MORE

    def accepted(self, bound: Endpoint) -> bytes:
        """Connected: BND.ADDR and BND.PORT are our end toward the server."""
        return _reply(SUCCEEDED, bound)

    def refused(self, end: End, message: str = "", errno: int = 0) -> bytes:
        """The reply code that says most precisely what failed."""
        if end is End.UNREACHABLE and errno == os_errno.ENETUNREACH:
            return _reply(NETWORK_UNREACHABLE)
        return _reply(REPLIES.get(end, GENERAL_FAILURE))

    def _greeting(self) -> Step:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            return Step(failed=End.PROTOCOL_ERROR, error=f"SOCKS version {buffer[0]}, not 5")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return MORE
        methods = buffer[2 : 2 + buffer[1]]
        self._buffer = buffer[2 + buffer[1] :]
        wanted = NO_AUTHENTICATION if self._users is None else USERNAME_PASSWORD
        if wanted not in methods:
            asked = "user name and password" if self._users is not None else "no authentication"
            return Step(
                bytes((VERSION, NONE_ACCEPTABLE)),
                failed=End.DENIED,
                error=f"the client offers SOCKS5 methods {list(methods)}, this listener wants {asked} ({wanted})",
            )
        self._state = State.REQUEST if self._users is None else State.CREDENTIALS
        return Step(bytes((VERSION, wanted)))

    def _credentials(self) -> Step:
        buffer = self._buffer
        if buffer and buffer[0] != 1:
            return Step(failed=End.PROTOCOL_ERROR, error=f"user/password negotiation version {buffer[0]}, not 1")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return MORE
        middle = 2 + buffer[1]
        end = middle + 1 + buffer[middle]
        if len(buffer) < end:
            return MORE
        name, password = buffer[2:middle], buffer[middle + 1 : end]
        self._buffer = buffer[end:]
        self._user = authenticated(self._users or {}, name, password)
        if self._user is None:
            return Step(b"\x01\x01", failed=End.DENIED, error="wrong user name or password")
        self._state = State.REQUEST
        return Step(b"\x01\x00")

    def _request(self) -> Step:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            return _failed(GENERAL_FAILURE, End.PROTOCOL_ERROR, f"request of SOCKS version {buffer[0]}, not 5")
        if len(buffer) < 5:
            return MORE
        command, kind = buffer[1], buffer[3]
        if command != CONNECT:
            return _failed(
                COMMAND_NOT_SUPPORTED, End.DENIED, f"SOCKS5 command {command} is not supported, only CONNECT"
            )
        if kind == DOMAIN:
            start, length = 5, buffer[4]
        elif kind in ADDRESS_LENGTHS:
            start, length = 4, ADDRESS_LENGTHS[kind]
        else:
            return _failed(ADDRESS_TYPE_NOT_SUPPORTED, End.PROTOCOL_ERROR, f"SOCKS5 address type {kind} does not exist")
        end = start + length
        if len(buffer) < end + 2:
            return MORE
        raw = buffer[start:end]
        host = raw.decode("utf-8", "replace") if kind == DOMAIN else str(ipaddress.ip_address(raw))
        port = int.from_bytes(buffer[end : end + 2], "big")
        target = target_of(host, port, source="socks", user=self._user, listener=self.listener)
        if target is None:
            return _failed(GENERAL_FAILURE, End.PROTOCOL_ERROR, f"{host!r} is neither a host name nor an address")
        return Step(target=target, rest=buffer[end + 2 :])

    _steps: ClassVar = {State.GREETING: _greeting, State.CREDENTIALS: _credentials, State.REQUEST: _request}


def _failed(code: int, end: End, error: str) -> Step:
    return Step(_reply(code), failed=end, error=error)


def _reply(code: int, bound: Endpoint | None = None) -> bytes:
    if bound is None:
        return bytes((VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0))
    address = ipaddress.ip_address(bound.host.partition("%")[0])
    kind = IPV4 if address.version == 4 else IPV6
    return bytes((VERSION, code, 0, kind)) + address.packed + struct.pack("!H", bound.port)
