"""When the copy cannot keep up: what is lost is counted to the byte and shown, what must not be lost is not."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from appliance.tools.lab import product
from appliance.tools.lab.namespaces import ORIGIN_V4, Network
from appliance.tools.lab.origins import BANNER, ECHO_PORT, EchoOrigin, HttpOrigin
from appliance.tools.lab.processes import eventually
from tests.netns import load, roads, vitals
from tests.netns.conftest import StartWeir, make_place
from tests.netns.load import assert_each_is_stored_once, until
from tests.netns.vitals import MIB

RING = 1 * MIB
WORD = 32 * 1024
WORDS = 200  # there and back 12.5 MiB, in turns too short to be cut
SMALL_RING = {
    "engine": {"workers": 1, "inspectors": 1, "tap": {"ring_size": RING, "turn_head": 256 * 1024}},
}


class Talk:
    """A conversation of words that come back, in a thread of its own."""

    def __init__(self, network: Network) -> None:
        self.since = vitals.now()
        self.sock = network.client.connect(ORIGIN_V4, ECHO_PORT, timeout=30)
        self.port = self.sock.getsockname()[1]
        self.said = 0
        self.returned = 0
        self.faithful = True
        assert roads.exactly(self.sock, len(BANNER)) == BANNER
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def finish(self) -> None:
        self.thread.join(60)
        self.sock.close()
        assert not self.thread.is_alive()

    def _run(self) -> None:
        for _ in range(WORDS):
            word = os.urandom(WORD)
            self.sock.sendall(word)
            self.said += WORD
            back = roads.exactly(self.sock, WORD)
            self.returned += len(back)
            self.faithful = self.faithful and back == word


def test_a_full_ring_never_slows_traffic_and_says_how_many_bytes_are_missing(
    network: Network, http: HttpOrigin, echo: EchoOrigin, start_weir: StartWeir
) -> None:
    weir = start_weir(**SMALL_RING, recording={"on_overload": "gap"})
    with vitals.stopped(vitals.pid_of(weir, "inspector-0")):
        talk = Talk(network)
        talk.finish()
        with load.load(network.client, "gap", rate=200) as running:
            running.more(100)
        assert running.failed == []
    assert talk.faithful and talk.returned == WORDS * WORD
    row = vitals.row_of(weir, talk.port, talk.since)
    relayed = 2 * WORDS * WORD + len(BANNER)
    assert row["bytes_in"] + row["bytes_out"] == relayed
    assert relayed - RING <= row["missing_bytes"] < relayed
    assert row["completeness"] != 0

    def missing() -> int:
        return int(weir.sql("SELECT coalesce(sum(missing_bytes), 0) AS bytes FROM traffic_logs")[0]["bytes"])

    until(lambda: vitals.total(weir, "weir_ring_gap_bytes_total") == missing(), "rows and metrics do not agree")
    assert vitals.total(weir, "weir_connections_active") == 0
    with load.load(network.client, "later", rate=200) as running:
        running.more(50)
    assert_each_is_stored_once(weir, http, "later")


def test_pausing_loses_no_byte_and_goes_on_when_there_is_room(
    network: Network, http: HttpOrigin, echo: EchoOrigin, start_weir: StartWeir
) -> None:
    weir = start_weir(**SMALL_RING, recording={"on_overload": "pause"})
    relay = vitals.pid_of(weir, "relay-0")
    before = vitals.anonymous_bytes(relay)
    with load.load(network.client, "pause", rate=100) as running:
        running.more(20)
        with vitals.stopped(vitals.pid_of(weir, "inspector-0")):
            talk = Talk(network)
            until(lambda: _still(talk), "traffic is not paused by a full ring")
            assert 0 < talk.returned < WORDS * WORD
            assert vitals.anonymous_bytes(relay) - before < 8 * MIB
        talk.finish()
        running.more(20)
    assert talk.faithful and talk.returned == WORDS * WORD
    assert running.failed == []
    assert vitals.row_of(weir, talk.port, talk.since)["missing_bytes"] == 0
    assert_each_is_stored_once(weir, http, "pause")
    assert vitals.total(weir, "weir_ring_gap_bytes_total") == 0


def _still(talk: Talk) -> bool:
    before = talk.returned
    return not eventually(lambda: talk.returned != before, 0.5)


@contextlib.contextmanager
def tiny_disk(directory: Path, mib: int) -> Iterator[None]:
    """A file system of so many MiB on a directory, until left."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "weir-test", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_spool_directory_costs_rows_that_are_counted_and_never_traffic(
    network: Network, http: HttpOrigin, home: Path, hosts: Path, cluster: Path
) -> None:
    place = make_place(home / "full-spool", cluster)
    with tiny_disk(place / "state" / "spool", 1), product.weir(network.gateway, place, hosts=hosts) as weir:
        with load.load(network.client, "full", rate=150, body_bytes=8192) as running:
            running.more(20)
            with vitals.database_held_down(weir):
                until(lambda: vitals.total(weir, "weir_rows_lost_total") > 0, "nothing was lost on a full disk", 20.0)
                running.more(100)
                status = weir.get("/api/v1/status")
            until(lambda: "up" in weir.get("/api/v1/status")["checks"]["store"]["detail"], "no database", 30.0)
            running.more(50)
        assert running.failed == []
        assert "lost" in status["checks"]["store"]["detail"]
        assert status["ready"] is False
        until(lambda: vitals.total(weir, "weir_rows_pending") == 0, "rows are pending")
        seen = load.seen(http, "full")
        last = max(running.told, key=lambda one: one.began).id
        until(lambda: last in load.stored(weir, "full"), "the newest row is not stored")
        stored = load.stored(weir, "full")
        assert set(stored.values()) == {1}
        missing = (seen - stored).total()
        assert not stored - seen
        connections = len({one.connection for one in http.seen() if one.id.startswith("full-")})
        lost = vitals.total(weir, "weir_rows_lost_total")
        assert 0 < missing <= lost <= missing + 2 * connections
