"""What was said in one exchange: heads and bodies, unpacked and decoded as far as they were kept."""

from typing import Any, Literal, NamedTuple
from uuid import UUID

from appliance.dissectors.kit.content import decode
from appliance.record.pack import Damaged, unpack_body, unpack_heads
from appliance.record.queries.reader import Session

Side = Literal["request", "response"]


class Message(NamedTuple):
    """One side of an exchange, as stored (redacted).

    ``body`` is the first ``head`` bytes of the content and, when ``tail`` is not 0, its last ``tail`` bytes after them;
    both count after decoding. ``length`` is what was sent, in bytes, before decoding. ``decoded`` names the content
    codings that were undone, ``problem`` says why one could not be, or what is damaged. ``stored`` is False when the
    exchange has a body that was not kept.
    """

    start_line: str
    headers: list[tuple[str, str]]
    body: bytes
    length: int
    head: int
    tail: int
    stored: bool
    truncated: bool
    redacted: bool
    decoded: str | None
    sha256: str | None
    problem: str | None


_CONTENT = """
    SELECT headers, metadata, request_data, response_data
      FROM traffic_records
     WHERE id = $1
"""

# A body seen before lies in the partition of the day it was first seen; every partition has an index on the hash.
_BODY = """
    SELECT format, data
      FROM bodies
     WHERE hash = $1
     LIMIT 1
"""


async def message(session: Session, id: UUID, side: Side) -> Message | None:
    """One side of an exchange; None when there is no exchange with this id."""
    row = await session.fetchrow(_CONTENT, id)
    if row is None:
        return None
    problem = None
    head = b""
    if row["headers"] is not None:
        try:
            request_head, response_head = unpack_heads(row["headers"])
            head = request_head if side == "request" else response_head
        except Damaged as error:
            problem = str(error)
    hash = row["request_data"] if side == "request" else row["response_data"]
    found = await session.fetchrow(_BODY, hash) if hash is not None else None
    data = b""
    if found is not None:
        try:
            data = unpack_body(found["format"], found["data"])
        except Damaged as error:
            problem = str(error)
    elif hash is not None:
        problem = "the body is not stored any more"
    note = (row["metadata"] or {}).get(f"{side}_body")
    return assemble(head, data, note if isinstance(note, dict) else {}, hash is None or found is not None, problem)


def assemble(head: bytes, data: bytes, note: dict[str, Any], stored: bool, problem: str | None = None) -> Message:
    """Put a message together from what the tables hold. ``note`` is what ``record.redact`` wrote beside the body."""
    start_line, headers = read_head(head)
    tail = min(int(note.get("tail", 0)), len(data))
    kept = data[: len(data) - tail]
    length = int(note.get("length", len(data)))
    codings = ", ".join(value for name, value in headers if name.lower() == "content-encoding")
    decoded: str | None = note.get("decoded")
    truncated = bool(note) and (("decoded" not in note and len(data) < length) or note.get("problem") is not None)
    if decoded is None and codings and kept:
        undone = decode(kept, codings)
        problem = problem or undone.problem
        # What is not in that coding at all is shown as it was sent.
        if undone.content is not kept and (undone.content or undone.complete):
            # The tail of coded content cannot be decoded without what comes before it.
            kept, data, tail, decoded = undone.content, undone.content, 0, codings
            truncated = truncated or not undone.complete
    return Message(
        start_line=start_line,
        headers=headers,
        body=data,
        length=length,
        head=len(kept),
        tail=tail,
        stored=stored,
        truncated=truncated,
        redacted=bool(note.get("redacted")),
        decoded=decoded,
        sha256=note.get("sha256"),
        problem=problem or note.get("problem"),
    )


def read_head(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    """The start line and the headers in their order and case. Bytes above 127 are read as ISO 8859-1."""
    first, *lines = head.decode("latin-1").replace("\r\n", "\n").rstrip("\n").split("\n")
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t") and headers:
            # A folded line continues the value before it (RFC 9112 §5.2).
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {line.strip()}")
        elif line:
            headers.append((name, value.strip(" \t")) if colon else (line, ""))
    return first, headers
