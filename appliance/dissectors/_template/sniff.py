"""Do first bytes look like this protocol? ``MORE`` only for a prefix of something that could be ours."""

import re
from typing import Final

from appliance.dissectors.kit.spec import Sniff
from appliance.model.direction import TO_SERVER, Direction

_COMMAND: Final = re.compile(rb"TEMPLATE [A-Z]++(?: [ -~]*+)?\r\n")
_BEGINNING: Final = b"TEMPLATE "
_GREETING: Final = b"+TEMPLATE"


def sniff(direction: Direction, data: bytes) -> Sniff:
    """A client must say so; a server that speaks first greets."""
    begins = _BEGINNING if direction is TO_SERVER else _GREETING
    if not data.startswith(begins[: len(data)]):
        return Sniff.NO
    if direction is TO_SERVER:
        return Sniff.YES if _COMMAND.match(data) else Sniff.MORE
    return Sniff.YES if len(data) >= len(_GREETING) else Sniff.MORE
