"""The real clients of the lab: curl, told in as many ways as there are roads to the origin.

Every request carries an id of its own in the query and in a header, so that it can be found again in the origin's log
and in the stored rows.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.tools.lab.namespaces import GATEWAY_V4, GATEWAY_V6, ORIGIN_V6, Namespace
from appliance.tools.lab.origins import NAME
from appliance.tools.lab.processes import run

SOCKS_PORT, REVERSE_PORT = 1080, 8080
PROXY = f"{GATEWAY_V4}:{SOCKS_PORT}"


@dataclass(frozen=True, slots=True)
class Way:
    """One road from the client to the origin, and what the stored row must say about it."""

    name: str
    listener: str
    base: str = f"http://{NAME}"
    options: tuple[str, ...] = ()
    domain: str | None = NAME
    family: int | None = None  # 4 or 6 when only one will do
    client_family: int = 4


WAYS = (
    Way("TPROXY, IPv4", "transparent", options=("-4",), family=4),
    Way("TPROXY, IPv6", "transparent", options=("-6",), family=6, client_family=6),
    Way("SOCKS4", "socks4", options=("--socks4", PROXY), family=4),
    Way("SOCKS4a", "socks4", options=("--socks4a", PROXY)),
    Way("SOCKS5, IPv4", "socks5", options=("-4", "--socks5", PROXY), family=4),
    Way("SOCKS5, IPv6", "socks5", options=("--resolve", f"{NAME}:80:{ORIGIN_V6}", "--socks5", PROXY), family=6),
    Way("SOCKS5, name resolved by the gateway", "socks5", options=("--socks5-hostname", PROXY)),
    Way("HTTP CONNECT", "connect", options=("--proxytunnel", "--proxy", f"http://{PROXY}")),
    Way("HTTP proxy, absolute form", "forward", options=("--proxy", f"http://{PROXY}")),
    Way("reverse listener, by host", "direct_http", base=f"http://{GATEWAY_V4}:{REVERSE_PORT}",
        options=("--header", "Host: shop.lab"), domain="shop.lab"),
    Way("reverse listener, by path, IPv6", "direct_http", base=f"http://[{GATEWAY_V6}]:{REVERSE_PORT}",
        options=("--header", "Host: elsewhere.lab"), domain="elsewhere.lab", client_family=6),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fetched:
    """What curl came back with."""

    id: str
    exit_code: int
    status: int
    sha256: str
    length: int
    milliseconds: float
    error: str
    port: int


def curl(
    namespace: Namespace,
    url: str,
    request_id: str,
    *options: str,
    hosts: Path | None = None,
    timeout: float = 15.0,
    stdin: bytes = b"",
) -> Fetched:
    """Fetch ``url?id=…`` with the lab's header; the body is hashed, not kept."""
    argv: Sequence[str] = (
        "curl", "--silent", "--show-error", "--max-time", str(timeout), "--noproxy", "",
        "--header", f"X-Lab-Id: {request_id}", "--write-out", "%{stderr}\n%{json}", *options, f"{url}?id={request_id}",
    )  # fmt: skip
    ran = run(namespace, argv, timeout=timeout + 5, hosts=hosts, stdin=stdin)
    error, _, document = ran.err.rpartition("\n")
    try:
        facts = json.loads(document)
    except ValueError:
        error, facts = ran.err, {}
    return Fetched(
        id=request_id,
        exit_code=ran.code,
        status=int(facts.get("http_code", 0)),
        sha256=hashlib.sha256(ran.out).hexdigest(),
        length=len(ran.out),
        milliseconds=float(facts.get("time_total", 0.0)) * 1000,
        error=error.strip(),
        port=int(facts.get("local_port", 0)),
    )
