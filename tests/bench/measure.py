"""One measurement: put load on a contender, and prove that the load went through it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import CLIENT_V4, Namespace, Network
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.product import Weir
from tests.bench.contenders import Contender, Running
from tests.bench.load import Load, put
from tests.bench.origin import Origin

LOAD_CPUS = (0,)
_TICK = os.sysconf("SC_CLK_TCK")
_IDLE = 0.02  # processor seconds of a proxy that did nothing worth mentioning
_DRAIN = 60.0
_STALLED = 3.0  # no new row for so long: what is missing will not come
_STORED = "SELECT count(*) AS n FROM traffic_records WHERE id >= $1::uuid"
_LAST = "SELECT extract(epoch FROM max(written))::float8 AS at FROM ring_positions"
_STORED_IDS = "SELECT request_path FROM traffic_records WHERE id >= $1::uuid"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. ``cpu_seconds`` is of every process in the gateway; ``settle_seconds`` is how long after the last
    byte the last row was there (0 for peers); ``lost`` counts requests of the origin's log that are not stored."""

    contender: str
    load: str
    requests: int
    seconds: float
    bytes: int
    p50_us: float
    p99_us: float
    errors: int
    cpu_seconds: float
    settle_seconds: float = 0.0
    stored: int | None = None
    lost: int = 0

    @property
    def rate(self) -> float:
        """Requests per second, where a request counts once its row is stored."""
        return self.requests / (self.seconds + self.settle_seconds)

    @property
    def relayed_rate(self) -> float:
        """Requests per second as the client saw them, whether stored yet or not."""
        return self.requests / self.seconds

    @property
    def gigabits(self) -> float:
        """Gbit/s of response bytes, by the same clock."""
        return self.bytes * 8e-9 / (self.seconds + self.settle_seconds)

    @property
    def per_cpu_second(self) -> float:
        """Requests per second of the gateway's processor time."""
        return self.requests / self.cpu_seconds if self.cpu_seconds else 0.0


def measure(
    contender: Contender,
    running: Running,
    network: Network,
    origin: Origin,
    load: Load,
    seconds: int,
    run: str,
    home: Path,
) -> Sample:
    """Run one load once. Raises ``LabFailed`` when the traffic demonstrably took another path or failed."""
    since = _lowest_id_now()
    before = cpu_seconds(network.gateway)
    done = put(load, network.client, seconds, run, LOAD_CPUS, contender.socks, home)
    ended = time.time()
    seen = origin.seen(run, done.requests)
    settle, stored, lost = 0.0, None, 0
    if running.weir is not None:
        settle = _settled(running.weir, since, len(seen), ended)
        stored, lost = _compare(running.weir, since, run, {name for _, name in seen})
    used = cpu_seconds(network.gateway) - before
    _took_the_path(contender, done.requests, len(seen), {peer for peer, _ in seen}, used)
    return Sample(
        contender=contender.name,
        load=load.name,
        **done._asdict(),
        cpu_seconds=used,
        settle_seconds=settle,
        stored=stored,
        lost=lost,
    )


def warm_up(contender: Contender, running: Running, network: Network, origin: Origin, load: Load, home: Path) -> None:
    """A second of the same load, which proves nothing: caches, connections and partitions are then as in use."""
    since = _lowest_id_now()
    run = f"warm{load.name.replace(' ', '')}"
    done = put(load, network.client, 1, run, LOAD_CPUS, contender.socks, home)
    if running.weir is not None:
        _settled(running.weir, since, len(origin.seen(run, done.requests)), time.time())


def cpu_seconds(namespace: Namespace) -> float:
    """Processor time, user and system, that the processes of a namespace and their reaped children have used."""
    total = 0
    for pid in namespace.processes():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc_pid_stat(5)
    return total / _TICK


def _settled(weir: Weir, since: str, wanted: int, ended: float) -> float:
    # Counting costs the processors that the inspector wants, so it is done seldom; when the last batch was written
    # is known exactly from the position that was committed with it.
    count, changed = -1, time.monotonic()

    def settled() -> bool:
        nonlocal count, changed
        now = int(weir.sql(_STORED, since)[0]["n"])
        if now != count:
            count, changed = now, time.monotonic()
        return count >= wanted or time.monotonic() - changed > _STALLED

    eventually(settled, _DRAIN, every=0.5)
    return max(0.0, float(weir.sql(_LAST)[0]["at"]) - ended)


def _compare(weir: Weir, since: str, run: str, seen: set[str]) -> tuple[int, int]:
    stored = [
        row["request_path"].partition("id=")[2]
        for row in weir.sql(_STORED_IDS, since)
        if f"id={run}-" in row["request_path"]
    ]
    if len(stored) != len(set(stored)):
        raise LabFailed(f"{len(stored) - len(set(stored))} requests are stored twice", "read the inspector's log")
    return len(stored), len(seen - set(stored))


def _took_the_path(contender: Contender, requests: int, seen: int, peers: set[str], used: float) -> None:
    if not requests or seen < requests:
        raise LabFailed(f"{contender.name}: wrk counted {requests} answers, the origin {seen} requests", "run it again")
    straight = CLIENT_V4 in peers
    if contender.proxies and (straight or used < _IDLE):
        raise LabFailed(f"{contender.name}: the load went past it (peers {peers}, {used:.2f} s of CPU)", "read its log")
    if not contender.proxies and peers != {CLIENT_V4}:
        raise LabFailed(f"{contender.name}: the origin saw {peers}", "something else was in the way")


def _lowest_id_now() -> str:
    # The first id that a row of this run can have: ids are UUIDv7, minted when the request starts.
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-8000-000000000000"
