"""Who is measured: plain routing, HAProxy, danted, mitmproxy and Weir, each set up as its own manual says.

A contender is a context manager that makes the gateway do its work and takes it away again. Peers' firewall rules go
in by ``nft`` and routes by ``ip``, so that nothing of Weir's is part of a peer's result.
"""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import LAN, WAN, Namespace, Network
from appliance.tools.lab.processes import Process, eventually, run, start
from appliance.tools.lab.product import API_HOST, API_PORT, Weir, weir

PORT, SOCKS = 15001, 1080

_TPROXY = f"""
table inet bench {{
    chain prerouting {{
        type filter hook prerouting priority mangle;
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
        iifname {LAN} tcp dport 80 tproxy ip to 127.0.0.1:{PORT} meta mark set 1 accept
    }}
}}
"""
_REDIRECT = f"""
table ip bench {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        iifname {LAN} tcp dport 80 redirect to :{PORT}
    }}
}}
"""
# `option transparent` without a server: connect to where the client wanted to go, as Weir does.
_HAPROXY = """
global
    nbthread 1
    maxconn 4096
    stats socket {home}/haproxy.sock
defaults
    mode {mode}
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    {extra}
listen everything
    bind 127.0.0.1:{port} transparent
    option transparent
"""
_DANTED = f"""
logoutput: /dev/null
internal: {LAN} port = {SOCKS}
external: {WAN}
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A contender at work: its Weir when it is one."""

    weir: Weir | None = None


SetUp = Callable[[Network, Path], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A name for tables, how to set it up, and the port of its SOCKS server when that is how it is reached."""

    name: str
    set_up: SetUp
    socks: int | None = None
    proxies: bool = True


@contextlib.contextmanager
def _plain(network: Network, home: Path) -> Iterator[Running]:
    yield Running()


@contextlib.contextmanager
def _haproxy(network: Network, home: Path, *, mode: str, extra: str = "") -> Iterator[Running]:
    file = home / "haproxy.cfg"
    file.write_text(_HAPROXY.format(mode=mode, extra=extra, port=PORT, home=home))
    with _tproxy(network.gateway), _program(network.gateway, ["haproxy", "-db", "-f", str(file)], home, PORT):
        yield Running()


@contextlib.contextmanager
def _danted(network: Network, home: Path) -> Iterator[Running]:
    file = home / "danted.conf"
    file.write_text(_DANTED)
    with _program(network.gateway, ["danted", "-f", str(file), "-p", str(home / "danted.pid")], home, SOCKS):
        yield Running()


@contextlib.contextmanager
def _mitmproxy(network: Network, home: Path) -> Iterator[Running]:
    _must(network.gateway, ["nft", "-f", "-"], _REDIRECT)
    flows = home / "flows"
    options = ["--mode", "transparent", "--listen-port", str(PORT), "--set", f"confdir={home}/mitm", "-q"]
    with _program(network.gateway, [str(mitmdump()), *options, "-w", str(flows)], home, PORT):
        yield Running()
    if not flows.exists() or not flows.stat().st_size:
        raise LabFailed("mitmproxy wrote no flows", "run mitmdump by hand in a namespace")


@contextlib.contextmanager
def _weir(network: Network, home: Path) -> Iterator[Running]:
    state = home / "state"
    document: dict[str, Any] = {
        "state_dir": str(state),
        "proxy": {"mode": "hybrid", "bind_address": f"0.0.0.0:{SOCKS}", "transparent": {"interfaces": [LAN]}},
        "storage": {"dsn": "embedded"},
        "api": {"bind_address": f"{API_HOST}:{API_PORT}"},
        "engine": {"workers": 1, "inspectors": 1},
        # Every exchange is to be stored: rather slow the traffic than lose a record of it.
        "recording": {"on_overload": "pause"},
        # One client address makes all the load: the limits per source would refuse it, as they should.
        "limits": {"max_connections": 10000, "per_source_connections": 10000, "per_source_rate": "1000000/s"},
    }
    with weir(network.gateway, home, document) as running:
        yield Running(running)


@contextlib.contextmanager
def _tproxy(gateway: Namespace) -> Iterator[None]:
    _must(gateway, ["nft", "-f", "-"], _TPROXY)
    _must(gateway, ["ip", "rule", "add", "fwmark", "1", "lookup", "100"])
    _must(gateway, ["ip", "route", "add", "local", "default", "dev", "lo", "table", "100"])
    yield  # the namespace takes them with it


@contextlib.contextmanager
def _program(gateway: Namespace, argv: list[str], home: Path, port: int) -> Iterator[Process]:
    process = start(gateway, argv, log=home / f"{Path(argv[0]).name}.log")
    try:
        if not eventually(lambda: not process.running or _listens(gateway, port), 20.0) or not process.running:
            raise LabFailed(f"{argv[0]} did not start: {process.tail(3)}", "./run bench installs it; run it by hand")
        yield process
    finally:
        process.stop(5.0)


def _listens(gateway: Namespace, port: int) -> bool:
    # The table of listening sockets (state 0A) rather than a connection: a transparent proxy would dial itself.
    wanted = f":{port:04X}"
    tables = gateway.call(lambda: "".join(Path("/proc/thread-self/net", name).read_text() for name in ("tcp", "tcp6")))
    return any(
        line.split()[1].endswith(wanted) and line.split()[3] == "0A" for line in tables.splitlines() if ":" in line
    )


def _must(gateway: Namespace, argv: list[str], stdin: str = "") -> None:
    ran = run(gateway, argv, stdin=stdin.encode())
    if ran.code:
        raise LabFailed(
            f"{' '.join(argv)}: {ran.err.strip()}", "is the package installed, and does the kernel have it?"
        )


@functools.cache
def mitmdump() -> Path:
    """The newest mitmproxy that installs, in a virtual environment of its own outside of the checkout."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weir-bench" / "mitmproxy"
    program = cache / "bin" / "mitmdump"
    if not program.exists():
        for argv in (
            [sys.executable, "-m", "venv", str(cache)],
            [str(cache / "bin" / "pip"), "install", "-q", "mitmproxy"],
        ):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabFailed(f"{' '.join(argv)}: {done.stderr.strip()[-300:]}", "check the network")
    return program


def versions() -> dict[str, str]:
    """What each contender says it is."""
    return {
        "haproxy": _first_line("haproxy", "-v"),
        "danted": _first_line("danted", "-v"),
        "mitmproxy": _first_line(str(mitmdump()), "--version"),
        "nginx": _first_line("nginx", "-v"),
        "wrk": _first_line("wrk", "-v"),
    }


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


PLAIN = Contender("plain routing", _plain, proxies=False)
HAPROXY_TCP = Contender("HAProxy tcp", functools.partial(_haproxy, mode="tcp"))
HAPROXY_SPLICE = Contender("HAProxy tcp, splice", functools.partial(_haproxy, mode="tcp", extra="option splice-auto"))
HAPROXY_HTTP = Contender("HAProxy http", functools.partial(_haproxy, mode="http"))
MITMPROXY = Contender("mitmproxy, flows written", _mitmproxy)
WEIR = Contender("Weir, recorded", _weir)
DANTED = Contender("danted", _danted, socks=SOCKS)
WEIR_SOCKS = Contender("Weir SOCKS5, recorded", _weir, socks=SOCKS)
