"""Peers that stop or crawl: each costs itself, nobody else."""

import contextlib
import hashlib
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.tools.lab import processes, product
from appliance.tools.lab.clients import REVERSE_PORT
from appliance.tools.lab.namespaces import GATEWAY_V4, ORIGIN_V4, SPARE_V4, Network
from appliance.tools.lab.origins import HTTP_PORT, HttpOrigin
from appliance.tools.lab.processes import Process
from appliance.tools.lab.product import Weir
from tests.netns import bulk, load, roads, vitals
from tests.netns.conftest import make_place
from tests.netns.load import assert_each_is_stored_once, until
from tests.netns.vitals import MIB

CONNECT, HANDSHAKE, IDLE = 1, 2, 3  # seconds
SLOW_CLIENTS = 500

# Sends a stream that follows from its place in it to everybody who connects; takes two at a time.
STREAM = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1)
def serve(sock):
    with sock:
        try:
            for number in range(int(sys.argv[3])):
                sock.sendall(number.to_bytes(4, "big") * 16384)
        except OSError:
            pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
STREAM_PORT, STREAM_PIECES = 7009, 400
STREAM_SHA256 = hashlib.sha256(b"".join(n.to_bytes(4, "big") * 16384 for n in range(STREAM_PIECES))).hexdigest()


@pytest.fixture(scope="module")
def weir(network: Network, home: Path, hosts: Path, cluster: Path) -> Iterator[Weir]:
    """Impatient, and open to any number of clients from one address."""
    place = make_place(home / "peers", cluster)
    document = product.configuration(place / "state")
    document["limits"] = {"per_source_rate": None, "per_source_connections": None}
    document["engine"] |= {"timeouts": {"connect": CONNECT, "handshake": HANDSHAKE, "idle": IDLE}}
    with product.weir(network.gateway, place, document, hosts=hosts) as running:
        yield running


@pytest.fixture
def stream(network: Network, tmp_path: Path) -> Iterator[Process]:
    argv = [sys.executable, "-c", STREAM, SPARE_V4, str(STREAM_PORT), str(STREAM_PIECES)]
    process = processes.start(network.origin, argv, log=tmp_path / "stream.log")
    listening = ["ss", "-Hltn", f"sport = :{STREAM_PORT}"]
    until(lambda: bool(processes.run(network.origin, listening).out), "the origin does not listen")
    try:
        yield process
    finally:
        process.signal(signal.SIGCONT)
        process.stop()


def ends_of(weir: Weir, port: int) -> list[dict[str, Any]]:
    """Rows of connections to this server port that have ended, oldest first."""
    return weir.sql(
        "SELECT * FROM traffic_logs WHERE dest_port = $1 AND duration_ms IS NOT NULL ORDER BY timestamp", port
    )


def test_a_stopped_origin_holds_up_only_its_own_clients_and_goes_on_with_the_same_bytes(
    network: Network, http: HttpOrigin, weir: Weir, stream: Process
) -> None:
    with load.load(network.client, "stopped", rate=200) as running:
        running.more(200)
        began = time.monotonic()
        digest, count = hashlib.sha256(), 0
        with network.client.connect(SPARE_V4, STREAM_PORT) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, bulk.STALL_BUFFER)
            first = roads.exactly(sock, MIB)
            digest.update(first)
            count += len(first)
            with vitals.stopped(stream.pid):
                sock.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    while data := sock.recv(65536):
                        digest.update(data)
                        count += len(data)
                assert count < STREAM_PIECES * 65536, "the origin was not stopped in the middle"
            sock.settimeout(10)
            while data := sock.recv(65536):
                digest.update(data)
        assert digest.hexdigest() == STREAM_SHA256
        over = time.monotonic()
        running.more(100)
    assert running.failed == []
    assert running.p99(began, over) < 3 * running.p99(0, began) + 0.05
    assert_each_is_stored_once(weir, http, "stopped")


def test_a_stopped_origin_is_given_up_when_the_time_is_over(network: Network, weir: Weir, stream: Process) -> None:
    before = len(ends_of(weir, STREAM_PORT))
    with contextlib.ExitStack() as stack:
        talking = stack.enter_context(network.client.connect(SPARE_V4, STREAM_PORT))
        roads.exactly(talking, MIB)
        stack.enter_context(vitals.stopped(stream.pid))
        queued = [stack.enter_context(network.client.connect(SPARE_V4, STREAM_PORT)) for _ in range(6)]
        for sock in (talking, *queued):
            sock.settimeout(IDLE + 5)
            with pytest.raises(ConnectionResetError):
                while sock.recv(1 << 20):
                    pass
        until(lambda: len(ends_of(weir, STREAM_PORT)) == before + 7, "rows are missing")
    rows = ends_of(weir, STREAM_PORT)[before:]
    ends = {row["source_port"]: row["end_reason"] for row in rows}
    assert rows[0]["end_reason"] == "idle_timeout"
    # The kernel of a stopped origin still shakes as many hands as its backlog holds.
    assert set(ends.values()) == {"idle_timeout", "connect_timeout"}
    for row in rows:
        limit = CONNECT if row["end_reason"] == "connect_timeout" else IDLE
        assert row["duration_ms"] < (limit + 4) * 1000


def slow_clients(network: Network, url: str, directory: Path) -> Process:
    """slowhttptest: so many clients, each of which says a bit of its head now and then."""
    argv = ["slowhttptest", "-c", str(SLOW_CLIENTS), "-H", "-i", "10", "-r", "250", "-l", "9", "-p", "3", "-u", url]
    return processes.start(network.client, argv, log=directory / "slow.log")


@pytest.mark.parametrize(
    ("url", "end"),
    [
        (f"http://{GATEWAY_V4}:{REVERSE_PORT}/", "handshake_timeout"),
        (f"http://{ORIGIN_V4}:{HTTP_PORT}/", "idle_timeout"),
    ],
    ids=["reverse", "transparent"],
)
def test_slow_clients_by_the_hundred_are_ended_and_nobody_waits_for_them(
    url: str, end: str, network: Network, http: HttpOrigin, weir: Weir, tmp_path: Path
) -> None:
    relay = vitals.pid_of(weir, "relay-0")
    memory = vitals.anonymous_bytes(relay)
    marker = f"slow{end[0]}"
    ended = f"SELECT count(*) AS n FROM traffic_logs WHERE end_reason = '{end}'"
    before = weir.sql(ended)[0]["n"]
    with load.load(network.client, marker, rate=100) as running:
        running.more(100)
        began = time.monotonic()
        slow = slow_clients(network, url, tmp_path)
        try:
            open_now = 0.0

            def all_open() -> bool:
                nonlocal open_now
                open_now = max(open_now, vitals.total(weir, "weir_connections_active"))
                return open_now > SLOW_CLIENTS * 0.8

            until(all_open, "the slow clients did not come")
            assert vitals.anonymous_bytes(relay) - memory < 32 * MIB
            until(lambda: weir.sql(ended)[0]["n"] >= before + SLOW_CLIENTS, f"slow clients end by no {end}", 15)
            over = time.monotonic()
        finally:
            slow.stop(3)
    assert running.failed == []
    assert running.p99(began, over) < 3 * running.p99(0, began) + 0.1
    assert_each_is_stored_once(weir, http, marker)
