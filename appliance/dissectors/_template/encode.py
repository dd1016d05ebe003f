"""Events back to bytes, for the rewriting path and for replay."""

from appliance.dissectors._template.events import Command, Reply
from appliance.dissectors.kit.spec import Event


def encode(event: Event) -> bytes:
    """The bytes of a command or reply; nothing for any other event."""
    if isinstance(event, Command):
        return b"%b %b\r\n" % (event.word, event.rest) if event.rest else event.word + b"\r\n"
    if isinstance(event, Reply):
        return (b"+" if event.ok else b"-") + event.rest + b"\r\n"
    return b""
