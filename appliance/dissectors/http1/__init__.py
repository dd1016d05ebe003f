"""HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112)."""

from typing import Final

from appliance.dissectors.http1.encode import encode
from appliance.dissectors.http1.events import Request, Response
from appliance.dissectors.http1.exchange import PROTOCOL, Fold
from appliance.dissectors.http1.fast import FastMachine
from appliance.dissectors.http1.sniff import sniff
from appliance.dissectors.kit.spec import ProtocolSpec

SPEC: Final = ProtocolSpec(
    name=PROTOCOL,
    ports=(80, 8080, 8000, 3128),
    alpn=("http/1.1", "http/1.0"),
    sniff=sniff,
    new=FastMachine,
    fold=Fold,
    encode=encode,
)

__all__ = ["SPEC", "Request", "Response"]
