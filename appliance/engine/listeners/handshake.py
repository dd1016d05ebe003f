"""What every listener's handshake looks like: bytes in, a reply and at last a target out.

A handshake is sans-io. The worker feeds it what the client sent, writes ``Step.reply``, and when there is a
``target`` it stops feeding, dials, and answers with ``accepted()`` or ``refused()``. A client's mistakes are data
(``Step.failed``), never exceptions, and no handshake holds more than its named bound of unparsed bytes.
"""

import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

# What may stand in a host name on the wire. Wider than RFC 1123 (underscores and UTF-8 exist), but no white space,
# control characters or delimiters that a resolver or a log could read differently.
_NAME = re.compile(r"[^\x00-\x20\x7f/\\@?#\[\]:%<>\"'`{}|^,;]{1,255}")


class Target(NamedTuple):
    """Where a client wants to go. ``domain`` is the name it said, None for an address; ``user`` is proven."""

    server: Endpoint
    domain: str | None
    domain_source: str | None
    user: str | None
    listener: str


class Step(NamedTuple):
    """What follows from bytes: ``reply`` is always written first.

    ``target``: the handshake is over, dial. ``rest`` is what the client sent beyond it and belongs to the server.
    ``failed``: close after the reply; ``error`` says why in words. ``forward``: plain HTTP for a proxy
    (absolute-form): hand the transport to ``engine.forward`` with ``rest``, which starts at the request line.
    """

    reply: bytes = b""
    target: Target | None = None
    rest: bytes = b""
    failed: End | None = None
    forward: bool = False
    error: str | None = None


MORE = Step()


class Handshake(Protocol):
    """One client's way to a target."""

    @property
    def listener(self) -> str:
        """What was spoken, as records show it: ``socks5``, ``socks4``, ``connect``; ``mixed`` until that is known."""

    def receive(self, data: bytes) -> Step:
        """Take bytes as they came. Not to be called again after a target, a failure or ``forward``."""

    def accepted(self, bound: Endpoint) -> bytes:
        """The server is connected; ``bound`` is our own address on that connection."""

    def refused(self, end: End, message: str = "", errno: int = 0) -> bytes:
        """The server was not reached. ``message`` is for people, ``errno`` (0: unknown) refines protocols' codes."""


def authenticated(users: Mapping[str, str], name: bytes, password: bytes) -> str | None:
    """The user that these credentials prove, or None.

    Takes as long for an unknown name as for a wrong password, so that names cannot be found by timing.
    """
    user = name.decode("utf-8", "surrogateescape")
    expected = users.get(user)
    matches = hmac.compare_digest((expected or "").encode(), password)
    return user if matches and expected is not None else None


def target_of(host: str, port: int, *, source: str, user: str | None, listener: str) -> Target | None:
    """The target for a host as a client wrote it: a name, or the text of an address. None if it can be neither."""
    server = Endpoint(host, port)
    if server.is_literal:
        return Target(server, None, None, user, listener)
    if not _NAME.fullmatch(host):
        return None
    return Target(server, host.rstrip(".").lower(), source, user, listener)
