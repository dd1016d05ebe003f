"""Who may use the API, and the headers that every answer carries. Plain ASGI around the whole application.

Bound to loopback without tokens, the API trusts whoever is on this machine. A browser on this machine is, and pages of
other sites run in it: so the Host must be ours (a name could have been rebound to us), and an Origin must be the Host
(CORS does not hold back WebSockets and simple POSTs).
"""

import hmac
import ipaddress
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from appliance.api import docs
from appliance.api.problems import MEDIA_TYPE, problem
from appliance.api.settings import ApiSettings, is_loopback
from appliance.observe.logging import get_logger

log = get_logger("audit")

_READS = frozenset({"GET", "HEAD", "OPTIONS"})  # everything else is audited (contract §5), refused or not

# What monitoring on this machine may ask without a token (contract §5).
_OPEN = frozenset({"/health", "/ready", "/metrics"})

# What we show was sent by strangers: nothing of it may run, be sniffed, framed, cached or referred to.
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_DOCS_HEADERS = ((b"content-security-policy", docs.CONTENT_SECURITY_POLICY.encode()), *_HEADERS[:1], *_HEADERS[2:])


class Access:
    """Lets a request through to ``app``, or answers 401 or 403 in its place."""

    def __init__(
        self, app: ASGIApp, settings: ApiSettings, answered: Callable[[int], None] = lambda status: None
    ) -> None:
        self._app = app
        self._answered = answered
        self.obey(settings)

    def obey(self, settings: ApiSettings) -> None:
        """Take over the tokens of new settings. Where we listen cannot change while we run."""
        self._tokens = tuple(token.encode() for token in settings.tokens)
        self._free = settings.on_loopback and not settings.tokens

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        # The page of documentation has a style sheet; everything else needs nothing at all.
        fixed = _DOCS_HEADERS if scope["path"] == "/api/docs" else _HEADERS

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                given = {name.lower() for name, _ in headers}
                message["headers"] = headers + [pair for pair in fixed if pair[0] not in given]
                self._answered(message["status"])
                if scope["method"] not in _READS:
                    client = (scope.get("client") or ("unknown",))[0]
                    path = scope["path"][:200]
                    log.info("api write", method=scope["method"], path=path, client=client, status=message["status"])
            await send(message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            # The server leaves the body out; for the routes a HEAD is a GET (RFC 9110 §9.3.2).
            scope = {**scope, "method": "GET"}
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_safely)
        elif scope["type"] == "websocket":
            # Closed before it was accepted: the client sees 403.
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:120]})
        else:
            await _answer(send_safely, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        client = scope.get("client")
        if scope["path"] in _OPEN and (client is None or is_loopback(client[0])):
            return None
        if not self._free:
            return self._without_token(scope["headers"])
        host = _header(scope["headers"], b"host")
        if host is not None and not _is_ours(host):
            return 403, f"{host!r} is not a name of this API: use its address or localhost, or configure api.tokens"
        origin = _header(scope["headers"], b"origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "requests of other web sites are refused: configure api.tokens to allow them by token"
        return None

    def _without_token(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        if not self._tokens:
            return 401, "this API is reachable from elsewhere but has no tokens: configure api.tokens"
        scheme, _, token = (_header(headers, b"authorization") or "").partition(" ")
        given = token.strip().encode("latin-1")
        # All are compared, each in constant time: how long it takes says nothing.
        known = [hmac.compare_digest(given, one) for one in self._tokens]
        if scheme.lower() == "bearer" and any(known):
            return None
        return 401, "send `Authorization: Bearer TOKEN` with one of api.tokens"


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def _is_ours(host: str) -> bool:
    """An address or localhost: nothing that a name server of others could point at us."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, detail: str) -> None:
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="weir"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(problem(status, detail)), "more_body": False})
