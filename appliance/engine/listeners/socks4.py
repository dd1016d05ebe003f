"""SOCKS version 4 and 4a (the SOCKS 4 protocol memo by Ying-Da Lee; 4a adds a name after the user id).

The user id is unproven: it is recorded by nobody and opens nothing. Where users are configured, SOCKS4 is refused.
"""

import ipaddress

from appliance.engine.listeners.handshake import MORE, Step, target_of
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

VERSION = 4
CONNECT = 1
GRANTED, REJECTED, USER_ID_MISMATCH = 0x5A, 0x5B, 0x5D

MAX_USER_ID = 512
MAX_NAME = 255


class Socks4:
    """One client's handshake. ``open_to_all`` is False where users are configured: SOCKS4 cannot prove one."""

    listener = "socks4"

    def __init__(self, *, open_to_all: bool = True) -> None:
        self._open = open_to_all
        self._buffer = b""

    def receive(self, data: bytes) -> Step:
        """Take bytes as they came; see ``handshake.Handshake``."""
        self._buffer += data
        step = self._parse(self._buffer)
        if step.target is not None or step.failed is not None:
            self._buffer = b""
        return step

    def accepted(self, bound: Endpoint) -> bytes:
        """Granted. DSTPORT and DSTIP mean nothing for CONNECT, but our end is told where it fits (IPv4)."""
        address = ipaddress.ip_address(bound.host.partition("%")[0])
        packed = address.packed if address.version == 4 else bytes(4)
        return bytes((0, GRANTED)) + bound.port.to_bytes(2, "big") + packed

    def refused(self, end: End, message: str = "", errno: int = 0) -> bytes:
        """SOCKS4 has one code for every failure."""
        return _reply(REJECTED)

    def _parse(self, buffer: bytes) -> Step:
        if buffer and buffer[0] != VERSION:
            return Step(_reply(REJECTED), failed=End.PROTOCOL_ERROR, error=f"SOCKS version {buffer[0]}, not 4")
        if len(buffer) < 8:
            return MORE
        if buffer[1] != CONNECT:
            return _failed(End.DENIED, f"SOCKS4 command {buffer[1]} is not supported, only CONNECT")
        user_end = buffer.find(b"\0", 8, 8 + MAX_USER_ID + 1)
        if user_end < 0:
            if len(buffer) > 8 + MAX_USER_ID:
                return _failed(End.PROTOCOL_ERROR, f"SOCKS4 user id longer than {MAX_USER_ID} bytes")
            return MORE
        if not self._open:
            return Step(
                _reply(USER_ID_MISMATCH),
                failed=End.DENIED,
                error="SOCKS4 carries no password and this listener asks for one: use SOCKS5 or HTTP",
            )
        port = int.from_bytes(buffer[2:4], "big")
        end = user_end + 1
        # 4a: an address of the form 0.0.0.x with x not 0 means that a name follows.
        if buffer[4:7] != b"\0\0\0" or buffer[7] == 0:
            host = str(ipaddress.IPv4Address(buffer[4:8]))
        else:
            name_end = buffer.find(b"\0", end, end + MAX_NAME + 1)
            if name_end < 0:
                if len(buffer) > end + MAX_NAME:
                    return _failed(End.PROTOCOL_ERROR, f"SOCKS4a name longer than {MAX_NAME} bytes")
                return MORE
            host = buffer[end:name_end].decode("utf-8", "replace")
            end = name_end + 1
        target = target_of(host, port, source="socks", user=None, listener=self.listener)
        if target is None:
            return _failed(End.PROTOCOL_ERROR, f"{host!r} is neither a host name nor an address")
        return Step(target=target, rest=buffer[end:])


def _failed(end: End, error: str) -> Step:
    return Step(_reply(REJECTED), failed=end, error=error)


def _reply(code: int) -> bytes:
    return bytes((0, code, 0, 0, 0, 0, 0, 0))
