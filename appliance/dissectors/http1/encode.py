"""Messages back to bytes, for the rewriting path and for replay.

Heads go out as they came in: order, case and spacing kept. A chunked body goes out as one chunk; a body of which
only part was kept goes out as that part, so whoever replays must look at ``missing`` first.
"""

from appliance.dissectors.http1.events import Request, Response
from appliance.dissectors.kit.spec import Event


def encode(event: Event) -> bytes:
    """The bytes of a request or response; nothing for any other event."""
    if not isinstance(event, Request | Response) or not event.head:
        return b""
    content = event.body.head + event.body.tail
    if not event.chunked:
        return b"%b\r\n%b" % (event.head, content)
    chunk = b"%x\r\n%b\r\n" % (len(content), content) if content else b""
    return b"%b\r\n%b0\r\n%b\r\n" % (event.head, chunk, event.trailers)
