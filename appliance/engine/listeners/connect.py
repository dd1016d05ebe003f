"""HTTP CONNECT (RFC 9110 §9.3.6), and telling it from requests that a proxy forwards one by one.

Only the head of a CONNECT request is read here: what follows it belongs to the tunnel. A request in absolute-form
(RFC 9112 §3.2.2) ends the handshake at its request line with ``forward``; ``engine.forward`` reads it again.
"""

import base64
import binascii
from collections.abc import Mapping

from appliance.engine.listeners.answers import CHALLENGE, answer, status_of
from appliance.engine.listeners.handshake import MORE, Step, authenticated, target_of
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint, parse_endpoint

MAX_HEAD = 64 * 1024
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
HOW_TO = "this is a proxy: ask it with CONNECT host:port, GET http://host/path, or speak SOCKS"


class Connect:
    """One client's handshake. ``users`` maps names to passwords; None asks nobody."""

    listener = "connect"

    def __init__(self, users: Mapping[str, str] | None = None) -> None:
        self._users = users
        self._buffer = bytearray()
        self._tunnel = False  # the request line was read and says CONNECT
        self._searched = 0

    def receive(self, data: bytes) -> Step:
        """Take bytes as they came; see ``handshake.Handshake``."""
        self._buffer += data
        step = self._parse()
        if step is not MORE:
            self._buffer.clear()
        return step

    def accepted(self, bound: Endpoint) -> bytes:
        """The tunnel is open. A 2xx answer to CONNECT has no content and no framing headers."""
        return ESTABLISHED

    def refused(self, end: End, message: str = "", errno: int = 0) -> bytes:
        """A response that says what failed, in its status and in words."""
        return answer(status_of(end), message or f"the server was not reached: {end.replace('_', ' ')}")

    def _parse(self) -> Step:
        buffer = self._buffer
        if not self._tunnel:
            line_end = buffer.find(b"\n", self._searched, MAX_HEAD)
            if line_end < 0:
                self._searched = len(buffer)
                return self._too_long() if len(buffer) >= MAX_HEAD else MORE
            line = bytes(buffer[:line_end])
            method, _, rest = line.partition(b" ")
            if method != b"CONNECT":
                return self._plain(rest)
            # A bare LF ends no line here: two implementations that disagree on where the tunnel starts is how
            # requests get smuggled (RFC 9112 §2.2 allows either).
            if not line.endswith(b"\r"):
                return _bad("malformed CONNECT request: its line does not end in CRLF")
            self._tunnel = True
        # The end may be cut anywhere, so look again at the last three bytes.
        head_end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3), MAX_HEAD)
        if head_end < 0:
            self._searched = len(buffer)
            return self._too_long() if len(buffer) >= MAX_HEAD else MORE
        return self._connect(bytes(buffer[:head_end]), bytes(buffer[head_end + 4 :]))

    def _too_long(self) -> Step:
        text = f"the request head is longer than {MAX_HEAD} bytes"
        return Step(answer(431, text), failed=End.PROTOCOL_ERROR, error=text)

    def _plain(self, after_method: bytes) -> Step:
        scheme, separator, _ = after_method.partition(b"://")
        if separator and scheme.isalnum():
            return Step(rest=bytes(self._buffer), forward=True)
        return Step(
            answer(400, HOW_TO), failed=End.PROTOCOL_ERROR, error="neither CONNECT nor an absolute-form request"
        )

    def _connect(self, head: bytes, rest: bytes) -> Step:
        line, *fields = head.split(b"\r\n")
        words = line.split(b" ")
        stray = any(b"\n" in field or b"\r" in field or b"\0" in field for field in fields)
        if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or stray:
            return _bad("malformed CONNECT request")
        user: str | None = None
        if self._users is not None:
            user = proxy_user(self._users, fields)
            if user is None:
                text = "a user name and password are required"
                return Step(answer(407, text, CHALLENGE), failed=End.DENIED, error=text)
        try:
            host, port = parse_endpoint(words[1].decode("ascii"))
        except ValueError as error:
            return _bad(f"CONNECT needs HOST:PORT: {error}")
        target = target_of(host, port, source="connect", user=user, listener=self.listener)
        if target is None or port == 0:
            return _bad(f"{host!r}, port {port} is nothing to connect to")
        return Step(target=target, rest=rest)


def proxy_user(users: Mapping[str, str], fields: list[bytes]) -> str | None:
    """Who the Proxy-Authorization line among these header lines proves (Basic, RFC 7617), or None."""
    for field in fields:
        name, _, value = field.partition(b":")
        if name.lower() != b"proxy-authorization":
            continue
        scheme, _, token = value.strip().partition(b" ")
        if scheme.lower() != b"basic":
            return None
        try:
            name, _, password = base64.b64decode(token.strip(), validate=True).partition(b":")
        except binascii.Error:
            return None
        return authenticated(users, name, password)
    return None


def _bad(text: str) -> Step:
    return Step(answer(400, text), failed=End.PROTOCOL_ERROR, error=text)
