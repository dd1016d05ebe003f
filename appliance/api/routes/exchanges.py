"""Exchanges: a row each, and what was said, decoded as far as it was kept."""

import base64
from dataclasses import dataclass
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.openapi.spec import OpenAPIMediaType, Operation, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import PathParameter, QueryParameter

from appliance.api.parameters import Cursor, End, Limit, Query, Start, TheReader, wanted
from appliance.api.problems import NotFound, documented
from appliance.record.queries import contents, lists
from appliance.record.queries.documents import Exchange, ExchangeDetail
from appliance.record.queries.reader import Reader
from appliance.rules.filter import EXCHANGES

_TAG = "traffic"

Id = Annotated[UUID, PathParameter(description="The exchange's id")]
Raw = Annotated[
    bool, QueryParameter(description="The decoded body itself, as a download, in place of the document", required=False)
]


class Exchanges(msgspec.Struct, frozen=True):
    """A page, newest first. ``next`` is the cursor of the page after, null on the last."""

    items: list[Exchange]
    next: str | None


class Header(msgspec.Struct, frozen=True):
    """One header field, in the order and case it was sent in."""

    name: str
    value: str


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A body, redacted, decoded as far as it was kept.

    ``data`` is text or base64, as ``encoding`` says: the first ``head`` bytes of the content and, where its middle was
    left out, its last ``tail`` bytes after them. ``length`` is what was sent, in bytes, before decoding; ``decoded``
    names the content codings undone; ``sha256`` is that of all bytes sent, where known; ``stored`` is false when the
    body is not there (any more); ``problem`` says what could not be undone.
    """

    encoding: Literal["text", "base64"]
    data: str
    length: int
    head: int
    tail: int
    stored: bool
    truncated: bool
    redacted: bool
    decoded: str | None
    sha256: str | None
    problem: str | None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One side of an exchange: start line, header fields in order, body. Secrets are tokens."""

    start_line: str
    headers: list[Header]
    body: Content


@get("/api/v1/exchanges", tags=[_TAG], responses=documented(400, 503))
async def exchanges(
    reader: TheReader, q: Query = "", start: Start = None, end: End = None, limit: Limit = 100, cursor: Cursor = None
) -> Exchanges:
    """List exchanges, newest first."""
    asked = wanted(EXCHANGES, q, start, end, limit, cursor)
    async with reader.session() as session:
        page = await lists.exchanges(session, asked)
    return Exchanges(page.items, page.next)


@get("/api/v1/exchanges/{id:uuid}", tags=[_TAG], responses=documented(400, 404, 503))
async def exchange(reader: TheReader, id: Id) -> ExchangeDetail:
    """Get one exchange with everything its protocol added."""
    async with reader.session() as session:
        found = await lists.exchange(session, id)
    if found is None:
        raise NotFound(f"no exchange {id} is recorded")
    return found


@dataclass
class _OrRaw(Operation):
    """Documents the second form of the answer, which Litestar cannot tell from the signature."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        content = getattr(answer, "content", None)
        if content is not None:
            content["application/octet-stream"] = OpenAPIMediaType(
                schema=Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
            )


@get("/api/v1/exchanges/{id:uuid}/request", tags=[_TAG], operation_class=_OrRaw, responses=documented(400, 404, 503))
async def request_of(reader: TheReader, id: Id, raw: Raw = False) -> Response[Message]:
    """Get what the client said: start line, headers and decoded body."""
    return await _message(reader, id, "request", raw)


@get("/api/v1/exchanges/{id:uuid}/response", tags=[_TAG], operation_class=_OrRaw, responses=documented(400, 404, 503))
async def response_of(reader: TheReader, id: Id, raw: Raw = False) -> Response[Message]:
    """Get what the server said: start line, headers and decoded body."""
    return await _message(reader, id, "response", raw)


async def _message(reader: Reader, id: UUID, side: contents.Side, raw: bool) -> Response[Message]:
    async with reader.session() as session:
        found = await contents.message(session, id, side)
    if found is None:
        raise NotFound(f"no exchange {id} is recorded")
    return _download(found, id, side) if raw else Response(_shown(found))


def _download(found: contents.Message, id: UUID, side: contents.Side) -> Response[Message]:
    """Bytes of strangers: a browser may save them, but neither show nor run them, whatever they call themselves."""
    headers = {
        "Content-Disposition": f'attachment; filename="{id}-{side}.bin"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    download: Response[bytes] = Response(found.body, media_type="application/octet-stream", headers=headers)
    return download  # type: ignore[return-value]  # documented by _OrRaw


def _shown(found: contents.Message) -> Message:
    text = _text(found)
    return Message(
        start_line=found.start_line,
        headers=[Header(name, value) for name, value in found.headers],
        body=Content(
            encoding="base64" if text is None else "text",
            data=base64.b64encode(found.body).decode() if text is None else text,
            length=found.length,
            head=found.head,
            tail=found.tail,
            stored=found.stored,
            truncated=found.truncated,
            redacted=found.redacted,
            decoded=found.decoded,
            sha256=found.sha256,
            problem=found.problem,
        ),
    )


def _text(found: contents.Message) -> str | None:
    """The body as text, if it is: by what was said about it, else by whether it reads as UTF-8 without controls."""
    said = next((value for name, value in found.headers if name.lower() == "content-type"), "")
    for charset in ("iso-8859-1", "latin-1", "windows-1252"):
        if f"charset={charset}" in said.lower().replace('"', ""):
            return found.body.decode("cp1252", "replace")
    try:
        # A cut may go through a character: of a truncated body the torn ends are replaced.
        text = found.body.decode("utf-8", "replace" if found.truncated and b"\0" not in found.body else "strict")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
