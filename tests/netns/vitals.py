"""Look at Weir's processes from outside: who they are, how much memory they hold, and how to hit one of them."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.tools.lab import LabFailed
from appliance.tools.lab.processes import wait_until
from appliance.tools.lab.product import Weir

MIB = 1 << 20
RESTART = 30.0  # seconds; the back-off of what was killed several times is long
_DATABASE_SAYS = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ [A-Z]+ \[\d+\] ")


def processes(weir: Weir) -> dict[str, dict[str, Any]]:
    """What the supervisor tells of its children, by name."""
    told = weir.get("/api/v1/status")["engine"]
    return {child["name"]: child for child in told["processes"]}


def pid_of(weir: Weir, name: str) -> int:
    """The process id of a child that is ready."""
    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(LabFailed, KeyError):  # an API that is just being started again
            child = processes(weir)[name]
            if child["state"] == "ready" and child["pid"] is not None:  # dead, and not noticed yet
                found.append(int(child["pid"]))
        return bool(found)

    wait_until(look, f"{name} was not ready", RESTART)
    return found[0]


def kill(weir: Weir, name: str) -> int:
    """SIGKILL to a child; returns once another one is ready in its place, with the new process id."""
    before = pid_of(weir, name)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(weir, name) != before, f"{name} was not started again", RESTART)
    return pid_of(weir, name)


def anonymous_bytes(pid: int) -> int:
    """Memory that is the process's own: neither files nor the shared ring."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {pid} has no memory")


def now() -> datetime:
    """The time, as rows have it. Client ports come again, so rows are looked up by port and time."""
    return datetime.now(UTC)


def rows_of(weir: Weir, ports: Collection[int], since: datetime) -> list[dict[str, Any]]:
    """The rows of connections from these client ports once all have ended; exactly one for each."""
    statement = "SELECT * FROM traffic_logs WHERE source_port = ANY($1) AND timestamp >= $2 AND duration_ms IS NOT NULL"
    found: list[dict[str, Any]] = []

    def all_ended() -> bool:
        found[:] = weir.sql(statement, list(ports), since)
        return len(found) >= len(ports)

    wait_until(all_ended, f"{len(ports)} connections had no finished rows", 15.0)
    assert sorted(row["source_port"] for row in found) == sorted(ports)
    return found


def row_of(weir: Weir, port: int, since: datetime) -> dict[str, Any]:
    """The row of the connection from this client port once it has ended."""
    return rows_of(weir, [port], since)[0]


def total(weir: Weir, name: str) -> float:
    """A metric, summed over processes and labels."""
    return sum(value for sample, value in weir.metrics().items() if sample.partition("{")[0] == name)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """SIGSTOP now, SIGCONT when left."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def database_held_down(weir: Weir) -> Iterator[list[int]]:
    """SIGKILL to the database server, and to each that is started in its place, until left. Yields who was hit.

    The supervisor goes on trying, as it does when a machine's disk or memory keeps killing its database.
    """
    over = threading.Event()
    hit: list[int] = []

    def hunt() -> None:
        while not over.is_set():
            for pid in _postmasters(weir):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hit.append(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=hunt, name="postgres hunter")
    thread.start()
    try:
        wait_until(lambda: bool(hit), "there was no database to hit")
        yield hit
    finally:
        over.set()
        thread.join()


def _postmasters(weir: Weir) -> list[int]:
    """Database servers that are direct children of the supervisor."""
    found = []
    for pid in weir.namespace.processes():
        with contextlib.suppress(OSError):
            name, rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
            state, parent = rest.split()[:2]
            if name.endswith("(postgres") and state != "Z" and int(parent) == weir.process.pid:
                found.append(pid)
    return found


def said(weir: Weir, *levels: str) -> list[dict[str, Any]]:
    """Weir's log lines, of these levels only if any are named. Raises ``ValueError`` for a line that is no JSON.

    The database's own lines, which go the same way, are left out.
    """
    text = weir.process.log.read_text().splitlines()
    lines = [json.loads(line) for line in text if not _DATABASE_SAYS.match(line)]
    return [line for line in lines if not levels or line["level"] in levels]
