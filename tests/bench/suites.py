"""What ``./run bench relay`` and ``./run bench http`` measure, and the floors that their ratios are held against."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.tools.lab.namespaces import Namespace, network
from tests.bench import contenders as c
from tests.bench.contenders import Contender
from tests.bench.load import Load
from tests.bench.measure import LOAD_CPUS, Sample, measure, warm_up
from tests.bench.origin import origin

KEEP_ALIVE = Load("keep-alive", "/small", 32)
ONE = Load("one connection", "/small", 1)
BULK = Load("bulk", "/large", 4)
NEW = Load("new connections", "/small", 16, close=True)


@dataclass(frozen=True, slots=True)
class Floor:
    """A ratio of two contenders' medians that must be at least (or, with ``at_most``, no more than) ``bound``."""

    name: str
    load: Load
    value: str
    ours: Contender
    theirs: Contender
    bound: float
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Suite:
    """Which loads each contender is given, and the floors."""

    name: str
    plan: tuple[tuple[Contender, tuple[Load, ...]], ...]
    floors: tuple[Floor, ...]


RELAY = Suite(
    "relay",
    plan=(
        (c.PLAIN, (BULK, NEW)),
        (c.HAPROXY_TCP, (BULK, NEW)),
        (c.HAPROXY_SPLICE, (BULK,)),
        (c.MITMPROXY, (BULK,)),
        (c.WEIR, (BULK, NEW)),
        (c.DANTED, (KEEP_ALIVE, BULK, NEW)),
        (c.WEIR_SOCKS, (KEEP_ALIVE, BULK, NEW)),
    ),
    floors=(Floor("bulk vs HAProxy tcp", BULK, "gigabits", c.WEIR, c.HAPROXY_TCP, 1.0),),
)
HTTP = Suite(
    "http",
    plan=(
        (c.PLAIN, (KEEP_ALIVE, ONE)),
        (c.HAPROXY_TCP, (KEEP_ALIVE, ONE)),
        (c.HAPROXY_HTTP, (KEEP_ALIVE, ONE)),
        (c.MITMPROXY, (KEEP_ALIVE, ONE)),
        (c.WEIR, (KEEP_ALIVE, ONE)),
    ),
    floors=(
        Floor("requests/s vs HAProxy http", KEEP_ALIVE, "rate", c.WEIR, c.HAPROXY_HTTP, 0.45),
        Floor("requests/s vs mitmproxy", KEEP_ALIVE, "rate", c.WEIR, c.MITMPROXY, 20.0),
        Floor("added p50 vs HAProxy http", ONE, "p50_us", c.WEIR, c.HAPROXY_HTTP, 1.2, at_most=True),
    ),
)
SUITES = {suite.name: suite for suite in (RELAY, HTTP)}


def run(
    suite: Suite, rounds: int, seconds: int, progress: Callable[[str], None], only: list[str] | None = None
) -> list[Sample]:
    """Every load of every contender, once per round; contenders take turns within a round.

    ``only`` leaves out contenders whose name holds none of these texts.
    """
    samples: list[Sample] = []
    plan = [(who, loads) for who, loads in suite.plan if not only or any(text in who.name for text in only)]
    for number in range(1, rounds + 1):
        for contender, loads in plan:
            home = Path(tempfile.mkdtemp(prefix="weirbench-"))
            home.chmod(0o755)
            try:
                samples += _turn(contender, loads, seconds, number, home)
            finally:
                shutil.rmtree(home, ignore_errors=True)
            progress(f"round {number} of {rounds}: {contender.name}")
    return samples


def _turn(contender: Contender, loads: tuple[Load, ...], seconds: int, number: int, home: Path) -> list[Sample]:
    with (
        network("weirbench") as built,
        origin(built.origin, home / "origin", LOAD_CPUS) as server,
        contender.set_up(built, home) as running,
    ):
        for namespace in built.namespaces:
            _widen_ports(namespace)
        samples = []
        for load in loads:
            warm_up(contender, running, built, server, load, home)
            run_name = f"run{number}{load.name.replace(' ', '')}"
            samples.append(measure(contender, running, built, server, load, seconds, run_name, home))
        return samples


def _widen_ports(namespace: Namespace) -> None:
    # One client address opens every connection: with the usual 28,000 ports all proxies alike would wait for TIME_WAIT.
    def write() -> None:
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535")
        Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")

    namespace.call(write)
