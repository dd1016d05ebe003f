"""What breaks, and what must not break with it. Every stored row is held against the origin's own log, id by id.

Faults last for a few seconds; with ``WEIR_TEST_FULL=1`` in the environment for as long as the promises say.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tools.lab import product
from appliance.tools.lab.namespaces import ORIGIN_V4, Network
from appliance.tools.lab.origins import BANNER, ECHO_PORT, EchoOrigin, HttpOrigin
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.product import Weir
from tests.netns import load, roads, vitals
from tests.netns.conftest import make_place
from tests.netns.load import assert_each_is_stored_once, until

FULL = os.environ.get("WEIR_TEST_FULL") == "1"
DATABASE_AWAY = 20.0 if FULL else 4.0
BASELINE = 5.0 if FULL else 2.0
INSPECTOR_KILLS = 8 if FULL else 3

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def weir(network: Network, home: Path, hosts: Path, cluster: Path) -> Iterator[Weir]:
    """Two relays and two inspectors, which go through everything below."""
    place = make_place(home / "faults", cluster)
    document = product.configuration(place / "state") | {"engine": {"workers": 2, "inspectors": 2}}
    with product.weir(network.gateway, place, document, hosts=hosts) as running:
        yield running


def talk(network: Network) -> socket.socket:
    """A connection through Weir to the echo server, its banner read."""
    sock = network.client.connect(ORIGIN_V4, ECHO_PORT)
    assert roads.exactly(sock, len(BANNER)) == BANNER
    return sock


def echoes(sock: socket.socket, word: bytes = b"are you there") -> bool:
    try:
        sock.sendall(word)
        return roads.exactly(sock, len(word)) == word
    except OSError:
        return False


def test_a_database_that_is_kept_down_costs_no_row_and_no_time(network: Network, http: HttpOrigin, weir: Weir) -> None:
    with load.load(network.client, "nodb", rate=200) as running:
        running.more(20)
        began = time.monotonic()
        assert eventually(lambda: time.monotonic() - began > BASELINE, BASELINE + 5)
        with vitals.database_held_down(weir) as hit:
            gone = time.monotonic()
            assert eventually(lambda: time.monotonic() - gone > DATABASE_AWAY, DATABASE_AWAY + 5)
            ready = weir.get("/ready")
        back = time.monotonic()
        running.more(50)
    assert running.failed == []
    assert len(hit) > 1, "the supervisor did not start it again"
    assert "spooled" in ready["checks"]["store"]["detail"]
    count = assert_each_is_stored_once(weir, http, "nodb", timeout=60)
    before, during = running.p99(began, gone), running.p99(gone, back)
    log.info("%d exchanges; p99 %.1f ms before, %.1f ms while the database was away", count, before * 1e3, during * 1e3)
    assert during < 3 * before + 0.03
    assert vitals.total(weir, "weir_rows_spooled_total") > 0
    assert vitals.total(weir, "weir_rows_lost_total") == 0


def test_an_inspector_killed_again_and_again_costs_neither_a_connection_nor_a_row(
    network: Network, http: HttpOrigin, echo: EchoOrigin, weir: Weir
) -> None:
    with talk(network) as long_lived, load.load(network.client, "noinspector", rate=300) as running:
        for number in range(INSPECTOR_KILLS):
            running.more(100)
            vitals.kill(weir, f"inspector-{number % 2}")
        running.more(50)
        assert echoes(long_lived)
    assert running.failed == []
    assert_each_is_stored_once(weir, http, "noinspector")


def test_an_inspector_and_the_database_killed_at_once_cost_no_row(
    network: Network, http: HttpOrigin, weir: Weir
) -> None:
    with load.load(network.client, "both", rate=400, connections=16) as running:
        running.more(200)
        pids = [vitals.pid_of(weir, name) for name in ("inspector-0", "inspector-1")]
        with vitals.database_held_down(weir):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            running.more(200)
            assert not {vitals.pid_of(weir, name) for name in ("inspector-0", "inspector-1")} & set(pids)
            running.more(100)
    assert running.failed == []
    assert_each_is_stored_once(weir, http, "both", timeout=60)


def test_an_api_that_dies_comes_back_and_nobody_else_notices(network: Network, http: HttpOrigin, weir: Weir) -> None:
    with load.load(network.client, "noapi", rate=200) as running:
        running.more(50)
        vitals.kill(weir, "api")
        running.more(50)
    assert running.failed == []
    assert weir.get("/ready")["ready"] is True
    assert_each_is_stored_once(weir, http, "noapi")
    assert weir.exchanges("id=noapi-")


def test_a_relay_that_dies_takes_only_its_own_connections(
    network: Network, http: HttpOrigin, echo: EchoOrigin, weir: Weir
) -> None:
    with contextlib.ExitStack() as stack:
        open_now = [stack.enter_context(talk(network)) for _ in range(16)]
        running = stack.enter_context(load.load(network.client, "norelay", connections=4, rate=100))
        running.more(50)
        new = vitals.kill(weir, "relay-0")
        alive = [sock for sock in open_now if echoes(sock)]
        dead = [sock for sock in open_now if sock not in alive]
        assert alive and dead
        again = [stack.enter_context(talk(network)) for _ in range(16)]
        assert all(map(echoes, again))
        running.more(50)
        ports = {sock.getsockname()[1] for sock in dead}
        living_ports = {sock.getsockname()[1] for sock in alive}
        running.stop()
    assert new == vitals.pid_of(weir, "relay-0")

    def ends() -> dict[int, str | None]:
        rows = weir.sql("SELECT source_port, end_reason FROM traffic_logs WHERE dest_port = $1", ECHO_PORT)
        return {row["source_port"]: row["end_reason"] for row in rows}

    until(lambda: ports | living_ports <= {port for port, end in ends().items() if end}, "rows are missing")
    ended = ends()
    assert {ended[port] for port in ports} == {"lost"}
    assert {ended[port] for port in living_ports} == {"closed"}
    answered = {one.id for one in running.told if one.status == 200}
    assert len(running.failed) <= 4, "more failed than there were connections"
    until(lambda: answered <= load.stored(weir, "norelay").keys(), "answered requests are not stored")
    stored = load.stored(weir, "norelay")
    assert set(stored.values()) == {1}
    assert stored.keys() <= load.seen(http, "norelay").keys()
