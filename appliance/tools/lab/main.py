"""Run the lab: build it, do the main job in it, tell what came of it, take it down.

``weir lab`` (and ``./run lab``) call ``run`` and ``down``. A run leaves nothing behind however it ends; for one that
was killed with SIGKILL there is ``down``, which finds namespaces, processes and files by the lab's prefix.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from appliance.tools.lab import LabFailed
from appliance.tools.lab.checks import perform
from appliance.tools.lab.clients import REVERSE_PORT, SOCKS_PORT
from appliance.tools.lab.doorway import doorway
from appliance.tools.lab.footprint import footprint, processes_in
from appliance.tools.lab.namespaces import GATEWAY_V4, ORIGIN_V4, ORIGIN_V6, PREFIX, Network, leftovers, network
from appliance.tools.lab.origins import NAME, echo_origin, http_origin
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.product import API_HOST, API_PORT, LiveFeed, Weir, weir
from appliance.tools.lab.report import Report, Result
from appliance.tools.lab.scene import Check, Scene

LOST = ("weir_ring_gap_chunks_total", "weir_rows_lost_total")
_PID_FILE = "lab.pid"


def run(*, once: bool = False, output: str = "table", prefix: str = PREFIX) -> int:
    """Run the lab and return the exit code: 0 when every check holds, 1 when one does not, 4 without root.

    ``once``: do not stay up afterwards. ``output``: ``json`` prints one document (contract §2), anything else a list.
    ``prefix`` begins the names of its namespaces and files, by which ``down`` finds them.
    """
    report = Report(output)
    try:
        with _interruptible():
            return _run(report, not once, prefix)
    except KeyboardInterrupt:
        return 130
    except LabFailed as failure:
        return _complain(failure)


def down(prefix: str = PREFIX) -> int:
    """Stop every lab on this machine and remove what killed ones left behind; 0 when nothing is left."""
    if os.geteuid() != 0:
        return _complain(LabFailed("taking namespaces down needs root", "run it with sudo", 4))
    for home in _homes(prefix):
        _stop_runner(home)
    for namespace in leftovers(prefix):
        namespace.end_processes()
        namespace.remove()
    for home in _homes(prefix):
        shutil.rmtree(home, ignore_errors=True)
    return 1 if leftovers(prefix) or _homes(prefix) else 0


def _complain(failure: LabFailed) -> int:
    sys.stderr.write(f"weir lab: {failure.cause}\n  try: {failure.fix}\n")
    return failure.code


def _run(report: Report, stay: bool, prefix: str) -> int:
    started = time.monotonic()
    before = footprint()
    run_name, inodes = "", frozenset[int]()
    with _home(prefix) as home:
        with network(prefix) as built:
            run_name = built.run
            inodes = frozenset(namespace.path.stat().st_ino for namespace in built.namespaces)
            report.say(f"[bold]{built.run}[/]: client – gateway – origin, in network namespaces of this machine")
            result = _main_job(built, home, report, started, stay)
        left = footprint().difference(before, run_name) + [f"process {one}" for one in processes_in(inodes)]
    left += [str(home)] if home.exists() else []
    clean = Check(
        "nothing is left behind", not left, "; ".join(left) or "namespaces, rules, nft tables, processes, files"
    )
    if stay:
        report.check(clean)
    result = Result(
        ok=result.ok and clean.ok,
        checks=(*result.checks, clean),
        recorded=result.recorded,
        dropped=result.dropped,
        seconds=round(time.monotonic() - started, 2),
    )
    if not stay:
        report.check(clean)
        report.result(result)
    return 0 if result.ok else 1


def _main_job(built: Network, home: Path, report: Report, started: float, stay: bool) -> Result:
    hosts = home / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {os.uname().nodename}\n{ORIGIN_V4} {NAME}\n{ORIGIN_V6} {NAME}\n")
    with (
        http_origin(built.origin, home / "origin") as http,
        echo_origin(built.origin) as echo,
        weir(built.gateway, home, hosts=hosts) as running,
    ):
        report.say(
            f"Weir is ready after {running.ready_after:.1f} s\n\n[bold]Exchanges[/], as the live feed tells them"
        )
        live = LiveFeed(running, report.event)
        try:
            scene = Scene(built, http, echo, running, live, hosts)
            verdicts: list[Check] = []
            checks = perform(scene, verdicts.append)
            report.say("\n[bold]Checks[/], by the origin's own log and the stored rows")
            for check in checks:
                report.check(check)
            recorded, dropped = _totals(running)
            checks.append(Check("nothing was dropped", dropped == 0, f"{dropped} chunks or rows lost"))
            report.check(checks[-1])
            result = Result(all(check.ok for check in checks), tuple(checks), recorded, dropped, 0.0)
            if not result.ok:
                sys.stderr.write(f"the end of Weir's log:\n{running.process.tail(20)}\n")
            if stay:
                seconds = time.monotonic() - started
                report.result(Result(result.ok, result.checks, recorded, dropped, seconds))
                _stay(built, running, hosts, report)
        finally:
            live.close()
        code = running.stop()
        stopped = Check("SIGTERM stops Weir cleanly", code == 0, f"exit code {code}")
        report.check(stopped)
    return Result(result.ok and stopped.ok, (*result.checks, stopped), recorded, dropped, 0.0)


def _totals(running: Weir) -> tuple[dict[str, int], int]:
    rows = running.sql("SELECT protocol, count(*) AS n FROM traffic_records GROUP BY protocol")
    raw = running.sql("SELECT count(*) AS n FROM traffic_logs WHERE protocol = 'tcp'")
    recorded = {row["protocol"]: row["n"] for row in rows} | {"tcp": raw[0]["n"]}
    dropped = sum(value for name, value in running.metrics().items() if name.partition("{")[0] in LOST)
    return recorded, int(dropped)


def _stay(built: Network, running: Weir, hosts: Path, report: Report) -> None:
    inside = (
        f"nsenter --net={built.client.path} unshare --mount sh -c 'mount --bind {hosts} /etc/hosts; exec \"$@\"' sh"
    )
    with doorway(built.gateway, API_HOST, API_PORT) as port:
        api = f"http://127.0.0.1:{port}"
        report.say(
            f"""
[bold]The lab stays up.[/] Look further, as root, from another terminal:
  browse  {api}/api/docs          {api}/api/v1/exchanges?limit=5
  ask     curl -s '{api}/stats/top-domains'          ./run weir flows tail --api {api}
  send    {inside} curl -s http://{NAME}/hello.txt
          {inside} curl -s --socks5-hostname {GATEWAY_V4}:{SOCKS_PORT} http://{NAME}/api/x
          {inside} curl -s -H 'Host: shop.lab' http://{GATEWAY_V4}:{REVERSE_PORT}/hello.txt
  logs    tail -f {running.process.log}
  stop    Ctrl-C here, or ./run lab down
""",
        )
        with contextlib.suppress(KeyboardInterrupt):
            while running.process.wait(1.0) is None:
                pass
        report.say("stopping")


@contextlib.contextmanager
def _home(prefix: str) -> Iterator[Path]:
    """A directory for everything that a run writes; the service user may enter it."""
    home = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
    try:
        home.chmod(0o755)
        (home / _PID_FILE).write_text(f"{os.getpid()} {_started(os.getpid())}")
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the lab as Ctrl-C does, once; while it tidies up, further ones are not heard."""

    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # pyroute2 enters namespaces in a forked child, which inherits this handler, and ends it by SIGTERM: it
            # must die there and not tidy up our lab.
            os._exit(0)
        for signum in kept:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in kept:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _homes(prefix: str) -> list[Path]:
    return sorted(path for path in Path(tempfile.gettempdir()).glob(f"{prefix}-*") if path.is_dir())


def _stop_runner(home: Path) -> None:
    try:
        pid, started = (home / _PID_FILE).read_text().split()
        alive = _started(int(pid)) == started
    except (OSError, ValueError):
        return
    if alive:
        os.kill(int(pid), signal.SIGTERM)
        eventually(lambda: not home.exists(), 30.0)


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot: with its id the only name that is never used again."""
    # Field 22 of proc_pid_stat(5), counted after the command's closing parenthesis.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
