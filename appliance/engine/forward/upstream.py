"""The server's side of a forwarding connection: reach it, read its responses, say when one is over."""

import asyncio
import ssl
from functools import lru_cache
from typing import Protocol, cast

from appliance.engine.dial import DialFailed, dial
from appliance.engine.forward.body import Body, Chunked, Length, UntilClose
from appliance.engine.forward.head import MAX_HEAD, Malformed, Request, Response, parse_response, tokens
from appliance.engine.forward.rewrite import upgrade_of
from appliance.engine.forward.routing import Destination
from appliance.engine.settings import DialSettings
from appliance.model.connection import End

MAX_INTERIM = 32  # 1xx responses to one request; more is a server gone wrong


class Client(Protocol):
    """What an upstream tells the client's side."""

    def respond(self, response: Response, *, until_close: bool) -> None:
        """A head arrived, interim ones too."""

    def deliver(self, data: bytes) -> None:
        """Bytes of a body, or of a tunnel."""

    def answered(self) -> None:
        """The response is complete."""

    def failed(self, end: End, text: str) -> None:
        """The response will not be completed."""

    def server_ended(self) -> None:
        """The server will say no more on a tunnel."""

    def server_full(self, full: bool) -> None:
        """The server does not read fast enough, or does again."""

    def idle_lost(self) -> None:
        """The server closed the connection between two exchanges."""


def body_of(request: Request, response: Response) -> Body:
    """How the response's body is framed (RFC 9112 §6.3)."""
    if request.method == b"HEAD" or response.status in (204, 304):
        return Length(0)
    if response.chunked:
        return Chunked()
    return UntilClose() if response.length is None else Length(response.length)


class Upstream(asyncio.Protocol):
    """One connection to a server. ``usable``: it may carry another request after this one."""

    def __init__(self, destination: Destination) -> None:
        self.key = (destination.server, destination.use_tls)
        self.usable = True
        self.transport: asyncio.Transport | None = None
        self._client: Client | None = None
        self._request: Request | None = None  # None between exchanges
        self._body: Body | None = None  # None until the response's head is complete
        self._pending = b""
        self._interims = 0
        self._tunnel = False
        self.silent = True  # nothing was heard since the request began

    def begin(self, client: Client, request: Request) -> None:
        """The next response is for this request of this client."""
        self._client, self._request = client, request
        self._body, self._pending, self._interims, self.silent = None, b"", 0, True

    def write(self, data: bytes) -> None:
        """Send to the server."""
        if self.transport is not None:
            self.transport.write(data)

    def end(self) -> None:
        """The client will say no more on a tunnel."""
        if self.transport is not None and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading from the server."""
        if self.transport is None or self.transport.is_closing():
            return
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def leave(self, *, abort: bool = False) -> None:
        """Close; nothing is told to the client any more."""
        self._client, self._request, self.usable = None, None, False
        if self.transport is not None:
            if abort:
                self.transport.abort()
            else:
                self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """The server speaks."""
        client = self._client
        if client is None:
            return
        if self._tunnel:
            client.deliver(data)
            return
        if self._request is None:
            # Nobody asked: such bytes must never become the answer to the next request.
            self.leave(abort=True)
            client.idle_lost()
            return
        self.silent = False
        data = self._pending + data
        self._pending = b""
        while data and self._request is not None and not self._tunnel:
            data = self._read_body(client, data) if self._body is not None else self._read_head(client, data)

    def eof_received(self) -> bool:
        """The server ends."""
        self.usable = False
        client = self._client
        if client is None:
            return False
        if self._tunnel:
            client.server_ended()
            return True
        if isinstance(self._body, UntilClose):
            self._complete(client)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.usable = False
        client, self._client = self._client, None
        if client is None:
            return
        if self._request is None and not self._tunnel:
            client.idle_lost()
        elif self._tunnel and exc is None:
            client.failed(End.CLOSED, "")
        elif exc is not None:
            client.failed(End.SERVER_RESET, f"{self.key[0]} broke the connection: {exc}")
        else:
            client.failed(End.SERVER_RESET, f"{self.key[0]} closed the connection before its response was complete")

    def pause_writing(self) -> None:
        """The server does not read."""
        if self._client is not None:
            self._client.server_full(True)

    def resume_writing(self) -> None:
        """The server reads again."""
        if self._client is not None:
            self._client.server_full(False)

    def _read_head(self, client: Client, data: bytes) -> bytes:
        request = cast(Request, self._request)
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(data) >= MAX_HEAD:
                return self._give_up(client, f"a response head longer than {MAX_HEAD} bytes")
            self._pending = data
            return b""
        response = parse_response(data[:end])
        rest = data[end + 4 :]
        if isinstance(response, Malformed):
            return self._give_up(client, response.text)
        if response.status == 101:
            if not upgrade_of(request):
                return self._give_up(client, "a switch of protocols that nobody asked for")
            self._tunnel, self.usable = True, False
            client.respond(response, until_close=False)
            if rest:
                client.deliver(rest)
            return b""
        if response.status < 200:
            self._interims += 1
            if self._interims > MAX_INTERIM:
                return self._give_up(client, f"more than {MAX_INTERIM} interim responses")
            client.respond(response, until_close=False)
            return rest
        body = self._body = body_of(request, response)
        until_close = isinstance(body, UntilClose)
        if until_close or response.minor == 0 or b"close" in tokens(response.fields, b"connection"):
            self.usable = False
        client.respond(response, until_close=until_close)
        if body.done:
            self._finish(client, rest)
            return b""
        return rest

    def _read_body(self, client: Client, data: bytes) -> bytes:
        body = cast(Body, self._body)
        taken = body.feed(data)
        if body.broken is not None:
            return self._give_up(client, body.broken)
        client.deliver(data[:taken] if taken < len(data) else data)
        if body.done:
            self._finish(client, data[taken:])
        return b""

    def _finish(self, client: Client, rest: bytes) -> None:
        if rest:  # bytes beyond the response: see data_received
            self.usable = False
        self._complete(client)

    def _complete(self, client: Client) -> None:
        self._request = self._body = None
        client.answered()

    def _give_up(self, client: Client, text: str) -> bytes:
        self.leave(abort=True)
        client.failed(End.SERVER_RESET, f"{self.key[0]} sent {text}")
        return b""


async def reach(destination: Destination, settings: DialSettings) -> Upstream:
    """A connected upstream, over TLS when the destination says so. Raises ``DialFailed``."""
    sock = await dial(destination.server, settings)
    upstream = Upstream(destination)
    loop = asyncio.get_running_loop()
    try:
        if destination.use_tls:
            name = destination.domain if destination.route is None else None
            await loop.create_connection(
                lambda: upstream,
                sock=sock,
                ssl=_tls(),
                server_hostname=name or destination.server.host,
                ssl_handshake_timeout=settings.connect_timeout,
            )
        else:
            await loop.create_connection(lambda: upstream, sock=sock)
    except (OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
        upstream.leave(abort=True)
        text = getattr(error, "verify_message", "") or str(error) or type(error).__name__
        how = "no TLS connection: " if destination.use_tls else ""
        raise DialFailed(End.SERVER_RESET, f"{destination.server}: {how}{text}") from error
    except asyncio.CancelledError:
        upstream.leave(abort=True)
        if upstream.transport is None:
            sock.close()
        raise
    return upstream


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
