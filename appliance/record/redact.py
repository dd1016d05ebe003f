"""The one choke point: what an exchange may say on its way to storage (and to the live feed).

Nothing of an exchange is stored that did not pass ``Redactor.exchange``. Most heads hold no secret, and most bodies
were seen before; both are told at C speed. A body under a content coding is decoded to be searched, and stored decoded
if it held a secret; where only its beginning can be decoded, only that is stored (docs/adr/0013).
"""

import os
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.dissectors.kit.content import Limit, decode
from appliance.model.connection import ConnectionRecord
from appliance.model.exchange import Body, Exchange, Missing
from appliance.record.secrets import Detectors, Tokens
from appliance.record.settings import RedactionSettings, SettingsError

KEY_BYTES = 32
REMEMBERED_BODIES = 50_000  # verdicts by digest, about 10 MB
NESTING = 16  # of metadata; what lies deeper is not stored
KEY_LENGTH = 39  # of the shortest key with a recognisable beginning that a short text is searched for
REMEMBERED_FORMS = 1_000  # clean forms of bodies that held secrets, each at most SMALL bytes
SMALL = 4096
SAMPLE = 512  # bytes that tell text from binary content where the sender does not


class Content(NamedTuple):
    """What of a body is to be stored.

    ``digest`` is the SHA-256 of ``data`` where it is known; ``note`` goes to the row's metadata when the stored bytes
    are not the body as it was sent.
    """

    data: bytes
    digest: bytes | None
    note: dict[str, Any] | None = None
    truncated: bool = False
    redacted: bool = False


REMEMBERED_METADATA = 1024

_new: Final = tuple.__new__  # a named tuple's own constructor costs a Python frame, and this is per exchange
_REDACTED = int(Missing.REDACTED)  # plain: an IntFlag's operators cost a microsecond

NOTHING = Content(b"", None)


class Redacted(NamedTuple):
    """An exchange's content, fit to be stored. ``missing`` is the exchange's, completed."""

    request_head: bytes
    response_head: bytes
    target: str
    domain: str | None
    error: str | None
    request: Content
    response: Content
    metadata: dict[str, Any] | None
    missing: int


class Redactor:
    """Replaces the secrets of exchanges by tokens under one key."""

    def __init__(self, settings: RedactionSettings, key: bytes) -> None:
        self._enabled = settings.enabled
        self._bodies = settings.enabled and settings.bodies
        self._limit = Limit(output=settings.scan_limit)
        self._tokens = Tokens(key)
        self._detectors = Detectors(self._tokens, settings.names)
        self._unchanged: dict[bytes, None] = {}  # digests of bodies that were searched and hold nothing
        self._forms: dict[bytes, Content] = {}  # by the digest of what was sent
        self._last_clean: dict[str, Any] | None = None
        self._clean_metadata: dict[tuple[tuple[str, Any], ...], None] = {}

    @property
    def replaced(self) -> int:
        """How many values were replaced so far."""
        return self._tokens.made

    def exchange(self, exchange: Exchange) -> Redacted:
        """Everything of the exchange that may hold a secret, without its secrets."""
        request_head, response_head = exchange.request_head, exchange.response_head
        target, domain, error = exchange.target, exchange.domain, exchange.error
        metadata = exchange.metadata
        missing = exchange.missing
        if self._enabled:
            before = self._tokens.made
            clean = self._detectors.head(request_head)
            if clean is not request_head or target.encode("utf-8", "surrogateescape") not in request_head:
                target = self.text(target)  # else it is part of a head in which nothing was found
                request_head = clean
            response_head = self._detectors.response_head(response_head)
            domain = domain and self.host(domain)
            error = error and self.text(error)
            if metadata:
                metadata = self._whole_metadata(metadata)
            if self._tokens.made != before:
                missing |= _REDACTED
        request = self._body(exchange.request, exchange.request_head) if exchange.request.length else NOTHING
        response = self._body(exchange.response, exchange.response_head) if exchange.response.length else NOTHING
        if request is not NOTHING or response is not NOTHING:
            if request.redacted or response.redacted:
                missing |= Missing.REDACTED
            if request.truncated:
                missing |= Missing.REQUEST_TRUNCATED
            if response.truncated:
                missing |= Missing.RESPONSE_TRUNCATED
            if request.note or response.note:
                metadata = dict(metadata or ())
                if request.note:
                    metadata["request_body"] = request.note
                if response.note:
                    metadata["response_body"] = response.note
        return _new(
            Redacted, (request_head, response_head, target, domain, error, request, response, metadata, missing)
        )

    def connection(self, record: ConnectionRecord) -> ConnectionRecord:
        """The connection's record with the free texts in it clean; usually the very same."""
        connection, closed = record.connection, record.closed
        domain = connection.domain and self.host(connection.domain)
        detail = self.text(connection.detail)
        if domain is not connection.domain or detail is not connection.detail:
            record = replace(record, connection=replace(connection, domain=domain, detail=detail))
        if closed is not None and closed.error is not None:
            error = self.text(closed.error)
            if error is not closed.error:
                record = replace(record, closed=replace(closed, error=error))
        return record

    def text(self, text: str) -> str:
        """A short text such as a target or an error message: URLs, tokens, keys."""
        if not self._enabled or not (
            "=" in text or "@" in text or "eyJ" in text or "%3" in text or len(text) >= KEY_LENGTH
        ):
            return text
        data = text.encode("utf-8", "surrogateescape")
        clean = self._detectors.url(data)
        return text if clean is data else clean.decode("utf-8", "surrogateescape")

    def host(self, text: str) -> str:
        """The name of a server; what stands before an ``@`` is user information (RFC 3986 §3.2.1)."""
        if not self._enabled or "@" not in text:
            return text
        user, _, host = text.rpartition("@")
        token = self._tokens.token("password", user.encode("utf-8", "surrogateescape"))
        return f"{token.decode()}@{host}"

    # Bodies

    def _body(self, body: Body, head: bytes) -> Content:
        digest = body.digest
        whole = len(body.head) == body.length
        if not self._bodies:
            return _as_sent(body, whole)
        if digest is not None:
            # Whatever its type was said to be this time: these very bytes are stored already, or their clean form is.
            if digest in self._unchanged:
                return _as_sent(body, whole)
            if digest in self._forms:
                return self._forms[digest]
        low = head.lower()
        content = self._searched(body, whole, _header(low, b"\ncontent-type:"), _header(low, b"\ncontent-encoding:"))
        if digest is not None:
            if content.data is body.head:
                if len(self._unchanged) >= REMEMBERED_BODIES:
                    self._unchanged.clear()
                self._unchanged[digest] = None
            elif len(content.data) <= SMALL and whole:
                if len(self._forms) >= REMEMBERED_FORMS:
                    self._forms.clear()
                self._forms[digest] = content
        return content

    def _searched(self, body: Body, whole: bool, media: bytes, coding: bytes) -> Content:
        if coding not in (b"", b"identity"):
            return self._coded(body, whole, media, coding)
        if not _textual(media, body.head):
            return _as_sent(body, whole)
        is_json = b"json" in media or body.head[:1] in (b"{", b"[")
        head = self._detectors.text(body.head, is_json=is_json)
        tail = self._detectors.text(body.tail, is_json=is_json) if body.tail else body.tail
        if head is body.head and tail is body.tail:
            return _as_sent(body, whole)
        data = head + tail
        note = {**_sizes(body), "head": len(head), "tail": len(tail), "redacted": True}
        return Content(data, None, note, truncated=not whole, redacted=True)

    def _coded(self, body: Body, whole: bool, media: bytes, coding: bytes) -> Content:
        decoded = decode(body.head, coding.decode("latin-1"), self._limit)
        content = decoded.content
        if not content or content is body.head:  # no such coding, or broken from the start: search what was sent
            return self._searched(body, whole, media, b"")
        if not _textual(media, content):
            return _as_sent(body, whole)
        is_json = b"json" in media or content[:1] in (b"{", b"[")
        clean = self._detectors.text(content, is_json=is_json)
        if clean is content and decoded.complete and whole:
            return _as_sent(body, whole)
        # What could not be decoded could not be searched, so it is not stored: neither a tail whose middle is missing
        # nor what lies beyond the limit.
        note = {**_sizes(body), "head": len(clean), "tail": 0, "decoded": coding.decode("latin-1")}
        if clean is not content:
            note["redacted"] = True
        if decoded.problem:
            note["problem"] = decoded.problem
        truncated = not (whole and decoded.complete)
        return Content(clean, None, note, truncated=truncated, redacted=clean is not content)

    # Metadata

    def _whole_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """An exchange's metadata. Most of it says what it said before, and was clean."""
        if metadata is self._last_clean:  # dissectors share it between exchanges
            return metadata
        try:
            items = tuple(metadata.items())
            if items in self._clean_metadata:
                self._last_clean = metadata
                return metadata
        except TypeError:  # it holds lists
            return self._mapping(metadata, 0)
        clean = self._mapping(metadata, 0)
        if clean == metadata:
            if len(self._clean_metadata) >= REMEMBERED_METADATA:
                self._clean_metadata.clear()
            self._clean_metadata[items] = None
        return clean

    def _mapping(self, mapping: dict[str, Any], depth: int) -> dict[str, Any]:
        clean = {}
        for name, value in mapping.items():
            kind = self._detectors.kind(name.encode("utf-8", "replace"))
            if kind is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
                clean[name] = self._tokens.token(kind, str(value).encode("utf-8", "replace")).decode()
            else:
                clean[name] = self._metadata(value, depth + 1)
        return clean

    def _metadata(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if depth > NESTING:
            return None
        if isinstance(value, dict):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple):
            return [self._metadata(item, depth + 1) for item in value]
        return value


def load_key(path: Path) -> bytes:
    """The redaction key, made on first use. Readable by its owner only; whoever has it can test guesses.

    Several processes may start at once: one of them makes it, all read the same. Raises ``SettingsError``.
    """
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            "redaction key file", str(path), f"readable and writable by us ({error.strerror})"
        ) from error
    if len(key) < KEY_BYTES:
        raise SettingsError("redaction key file", str(path), f"at least {KEY_BYTES} bytes long, it has {len(key)}")
    return key[:64]  # the longest key that BLAKE2b takes


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".redaction-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first
            os.link(name, path)
    finally:
        Path(name).unlink()


def _as_sent(body: Body, whole: bool) -> Content:
    if whole:
        return _new(Content, (body.head, body.digest, None, False, False))
    return Content(body.head + body.tail, None, _sizes(body), truncated=len(body.head) + len(body.tail) < body.length)


def _sizes(body: Body) -> dict[str, Any]:
    note: dict[str, Any] = {"length": body.length, "head": len(body.head), "tail": len(body.tail)}
    if body.missing:
        note["missing"] = body.missing
    if body.digest is not None:
        note["sha256"] = body.digest.hex()
    return note


def _header(low: bytes, name: bytes) -> bytes:
    """The value of a header in a lower-cased head; ``name`` with its line feed and colon. Repeated ones are joined."""
    start = low.find(name)
    if start < 0:
        return b""
    values = []
    while start >= 0:
        start += len(name)
        end = low.find(b"\n", start)
        values.append(low[start : end if end >= 0 else len(low)].strip())
        start = low.find(name, start)
    return b",".join(values)


def _textual(media: bytes, beginning: bytes) -> bool:
    if _TEXT.match(media):
        return True
    if _BINARY.match(media):
        return False
    sample = beginning[:SAMPLE]
    # Random bytes hold no NUL in one sample of eight, and searching 64 KiB of them takes 4 ms: an eighth of them are
    # control characters, of which text has hardly any.
    return b"\0" not in sample and len(sample) - len(sample.translate(None, _CONTROLS)) <= len(sample) // 32


_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\f\r\x1b")
_TEXT = re.compile(rb"text/|multipart/form-data|[^;]*(?:json|xml|javascript|x-www-form-urlencoded|graphql|yaml)")
_BINARY = re.compile(rb"image/(?!svg)|audio/|video/|font/|application/(?:zip|gzip|pdf|wasm|x-protobuf|grpc)")
