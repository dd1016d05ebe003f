"""Put load on the origin with wrk, straight or through a SOCKS server."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import GATEWAY_V4, ORIGIN_V4, Namespace
from appliance.tools.lab.processes import run

_SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the origin: one wrk thread, so many connections, kept alive or new for every request."""

    name: str
    path: str
    connections: int
    close: bool = False


class Done(NamedTuple):
    """What wrk counted; times in seconds and microseconds. Bytes are of responses, heads included."""

    requests: int
    seconds: float
    bytes: int
    p50_us: float
    p99_us: float
    errors: int


def put(
    load: Load, namespace: Namespace, seconds: int, run_name: str, cpus: tuple[int, ...], socks: int | None, home: Path
) -> Done:
    """Run wrk for so many seconds; ``socks`` is the port of the gateway's SOCKS5 server, None for none."""
    argv = ["wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT)]
    argv += [f"http://{ORIGIN_V4}/", "--", load.path, run_name, *(["close"] if load.close else [])]
    if socks is not None:
        chain = home / "proxychains.conf"
        chain.write_text(f"strict_chain\nquiet_mode\n[ProxyList]\nsocks5 {GATEWAY_V4} {socks}\n")
        argv = ["proxychains4", "-q", "-f", str(chain), *argv]
    ran = run(namespace, argv, timeout=seconds + 30, cpus=cpus)
    try:
        return Done(**json.loads(ran.out.splitlines()[-1]))
    except (ValueError, IndexError, TypeError) as error:
        said = ran.err.strip() or ran.out.decode(errors="replace")
        raise LabFailed(f"wrk ended with {ran.code}: {said[-300:]}", "wrk --version") from error
