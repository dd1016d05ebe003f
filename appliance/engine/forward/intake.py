"""What a client sent and nobody consumed yet: whole heads come out, body bytes are taken as they are asked for."""

from typing import NamedTuple

from appliance.engine.forward.body import Body
from appliance.engine.forward.head import MAX_HEAD, Malformed, Request, parse_request


class Head(NamedTuple):
    """A request head that is complete: what it says, and the bytes that said it (empty lines before it included)."""

    request: Request
    sent: bytes


class Intake:
    """Bytes of one client, in order. Holds at most a head and one read of the socket; callers stop reading beyond."""

    __slots__ = ("_searched", "pending")

    def __init__(self) -> None:
        self.pending = b""
        self._searched = 0  # so many bytes are known to hold no end of a head

    @property
    def begun(self) -> bool:
        """Whether a head was looked for among these bytes already, in vain."""
        return self._searched > 0

    def add(self, data: bytes) -> None:
        """The client sent this."""
        self.pending = self.pending + data if self.pending else data

    def head(self) -> Head | Malformed | None:
        """The next request head, None while it is incomplete. After ``Malformed`` nothing can be read any more."""
        data = self.pending
        start = 0
        while data.startswith(b"\r\n", start):  # RFC 9112 §2.2
            start += 2
        # The end may be cut anywhere, so look again at the last three bytes.
        end = data.find(b"\r\n\r\n", max(start, self._searched - 3), start + MAX_HEAD)
        if end < 0:
            if len(data) >= MAX_HEAD:
                return Malformed(431, f"the request head is longer than {MAX_HEAD} bytes")
            if b"\n\n" in data:
                return Malformed(400, "lines that end in a bare LF")
            self._searched = len(data)
            return None
        request = parse_request(data[start:end])
        if isinstance(request, Malformed):
            return request
        self.pending, self._searched = data[end + 4 :], 0
        return Head(request, data[: end + 4])

    def body(self, body: Body) -> bytes:
        """What is here of the body. Nothing when it turns out to be broken: then it is not to be forwarded."""
        data = self.pending
        if not data or body.done:
            return b""
        taken = body.feed(data)
        if body.broken is not None:
            return b""
        self.pending = data[taken:]
        return data[:taken]

    def rest(self) -> bytes:
        """Everything that is left, whatever it is."""
        data, self.pending, self._searched = self.pending, b"", 0
        return data
