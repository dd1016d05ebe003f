"""The protocol one starts from: a client says lines, a server answers each with a line. Copied by new-dissector."""

from typing import Final

from appliance.dissectors._template.encode import encode
from appliance.dissectors._template.events import Command, Reply
from appliance.dissectors._template.exchange import PROTOCOL, Fold
from appliance.dissectors._template.machine import Machine
from appliance.dissectors._template.sniff import sniff
from appliance.dissectors.kit.spec import ProtocolSpec

SPEC: Final = ProtocolSpec(
    name=PROTOCOL,
    ports=(),
    alpn=(),
    sniff=sniff,
    new=Machine,
    fold=Fold,
    encode=encode,
)

__all__ = ["SPEC", "Command", "Reply"]
