"""Weir's own ends and changes under traffic: stopped, killed, started again, told something else."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.tools.lab import product
from appliance.tools.lab.footprint import footprint
from appliance.tools.lab.namespaces import CLIENT_V4, ORIGIN_V4, OUTSIDE_V4, Network
from appliance.tools.lab.origins import BANNER, ECHO_PORT, EchoOrigin, HttpOrigin
from appliance.tools.lab.product import Weir
from tests.netns import bulk, load, roads, vitals
from tests.netns.bulk import BulkOrigin, Transfer
from tests.netns.conftest import StartWeir, make_place
from tests.netns.load import assert_each_is_stored_once, until
from tests.netns.vitals import MIB

ENGINE = {"workers": 1, "inspectors": 1, "timeouts": {"drain": 10}}


@pytest.fixture(scope="module")
def origin(network: Network) -> Iterator[BulkOrigin]:
    with bulk.bulk_origin(network.origin) as running:
        yield running


def talk(network: Network) -> socket.socket:
    """A connection to the echo server, its banner read."""
    sock = network.client.connect(ORIGIN_V4, ECHO_PORT)
    assert roads.exactly(sock, len(BANNER)) == BANNER
    return sock


def peer_of_a_new_connection(network: Network, echo: EchoOrigin) -> str:
    """Whom the echo server sees when the client connects now."""
    before = len(echo.connections)
    talk(network).close()
    until(lambda: len(echo.connections) > before, "the origin saw no connection")
    return echo.connections[before][0]


def tables(network: Network) -> frozenset[str]:
    return network.gateway.call(footprint).tables


def configure(weir: Weir, **sections: Any) -> None:
    """Rewrite the file that Weir was started with, and send SIGHUP."""
    file = weir.process.log.parent / "weir.yaml"
    file.write_text(json.dumps(json.loads(file.read_text()) | sections, indent=2))
    weir.process.signal(signal.SIGHUP)


def test_a_supervisor_that_is_killed_leaves_an_open_road_and_the_next_one_finds_its_rows(
    network: Network, http: HttpOrigin, echo: EchoOrigin, home: Path, hosts: Path, cluster: Path
) -> None:
    place = make_place(home / "killed", cluster)
    document = product.configuration(place / "state") | {"engine": ENGINE | {"timeouts": {"drain": 1}}}
    untouched = tables(network)
    with product.weir(network.gateway, place, document, hosts=hosts) as weir:
        assert peer_of_a_new_connection(network, echo) == OUTSIDE_V4
        with load.load(network.client, "before", rate=300) as running:
            running.more(100)
            inspector = vitals.pid_of(weir, "inspector-0")
            with vitals.stopped(inspector):
                running.more(100)  # these are in the ring only
                running.stop()
                os.kill(inspector, signal.SIGKILL)
                weir.process.signal(signal.SIGKILL)
        assert running.failed == []
        until(lambda: tables(network) == untouched, "the kernel kept the table of a dead supervisor")
        assert peer_of_a_new_connection(network, echo) == CLIENT_V4
        until(lambda: network.gateway.processes() == [], "processes outlive their supervisor", 20)
    with product.weir(network.gateway, place, document, hosts=hosts) as weir:
        assert_each_is_stored_once(weir, http, "before")
        assert peer_of_a_new_connection(network, echo) == OUTSIDE_V4
        until(lambda: len(list((weir.state / "rings").glob("*.ring"))) == 1, "rings of before are left over")
    assert tables(network) == untouched
    assert network.gateway.processes() == []


def test_stopping_under_load_lets_what_is_under_way_finish_and_keeps_every_row(
    network: Network, http: HttpOrigin, echo: EchoOrigin, origin: BulkOrigin, home: Path, hosts: Path, cluster: Path
) -> None:
    place = make_place(home / "stopping", cluster)
    document = product.configuration(place / "state") | {"engine": ENGINE}
    total = 32 * MIB
    with contextlib.ExitStack() as stack:
        weir = stack.enter_context(product.weir(network.gateway, place, document, hosts=hosts))
        running = stack.enter_context(load.load(network.client, "drained", rate=200))
        running.more(50)
        transfer = Transfer(total, stall_at=MIB)
        sock = stack.enter_context(network.client.connect(ORIGIN_V4, bulk.PORT))
        sock.settimeout(30)
        port = sock.getsockname()[1]
        download = threading.Thread(target=lambda: bulk.download(sock, "/drained", ORIGIN_V4, transfer, seed=5))
        download.start()
        assert transfer.stalled.wait(10)
        weir.process.signal(signal.SIGTERM)
        # No new connection is taken, so new ones go straight; those that are open go on.
        until(lambda: peer_of_a_new_connection(network, echo) == CLIENT_V4, "still intercepting")
        running.more(50)
        transfer.go_on.set()
        download.join(30)
        sock.close()
        assert transfer.sha256 == origin.transfers["drained"].sha256
        running.stop()
        assert weir.process.wait(30) == 0
        assert running.failed == []
    with product.weir(network.gateway, place, document, hosts=hosts) as weir:
        assert_each_is_stored_once(weir, http, "drained")
        (row,) = weir.sql("SELECT * FROM traffic_logs WHERE source_port = $1 AND dest_port = $2", port, bulk.PORT)
        assert row["bytes_out"] > total
        assert row["end_reason"] == "closed"


def test_connections_that_do_not_end_in_time_are_drained_and_say_so(
    network: Network, echo: EchoOrigin, home: Path, hosts: Path, cluster: Path
) -> None:
    place = make_place(home / "overdue", cluster)
    document = product.configuration(place / "state") | {"engine": ENGINE | {"timeouts": {"drain": 1}}}
    with product.weir(network.gateway, place, document, hosts=hosts) as weir, talk(network) as sock:
        port = sock.getsockname()[1]
        weir.process.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert weir.process.wait(30) == 0
    with product.weir(network.gateway, place, document, hosts=hosts) as weir:
        rows = weir.sql("SELECT end_reason FROM traffic_logs WHERE source_port = $1", port)
    assert [row["end_reason"] for row in rows] == ["drained"]


def test_a_reload_changes_what_new_connections_meet_and_a_broken_one_nothing(
    network: Network, http: HttpOrigin, echo: EchoOrigin, start_weir: StartWeir
) -> None:
    weir = start_weir()
    sound = json.loads((weir.process.log.parent / "weir.yaml").read_text())
    done = 'weir_reloads_total{process="supervisor",result="done"}'
    refused = done.replace("done", "refused")

    def reloads(which: str) -> float:
        return weir.metrics().get(which, 0.0)

    with load.load(network.client, "reload", rate=200) as running, talk(network) as old:
        running.more(50)
        assert peer_of_a_new_connection(network, echo) == OUTSIDE_V4
        configure(weir, protocols={"bypass_rules": [{"address": ORIGIN_V4, "mode": "direct_proxy"}]})
        until(lambda: reloads(done) == 1, "nothing was reloaded")
        assert peer_of_a_new_connection(network, echo) == CLIENT_V4
        old.sendall(b"as before")
        assert roads.exactly(old, 9) == b"as before"

        configure(weir, protocols={"bypass_rules": []}, limits={"per_source_connections": 12})
        until(lambda: reloads(done) == 2, "nothing was reloaded")
        with contextlib.ExitStack() as stack:
            assert peer_of_a_new_connection(network, echo) == OUTSIDE_V4
            for _ in range(3):  # eight of the load, and the old one: twelve
                stack.enter_context(talk(network))
            with pytest.raises(OSError), network.client.connect(ORIGIN_V4, ECHO_PORT) as beyond:
                if not beyond.recv(100):
                    raise ConnectionResetError
        file = weir.process.log.parent / "weir.yaml"
        file.write_text(json.dumps(sound | {"proxi": {}, "limits": {"per_source_connections": "many"}}))
        weir.process.signal(signal.SIGHUP)
        until(lambda: reloads(refused) == 1, "a broken configuration was not refused")
        running.more(50)
        assert peer_of_a_new_connection(network, echo) == OUTSIDE_V4
    (error,) = vitals.said(weir, "error")
    text = "\n".join(error["errors"])
    assert "proxi" in text and "did you mean 'proxy'" in text and "limits.per_source_connections" in text
    assert running.failed == []
    assert reloads(done) == 2
    assert_each_is_stored_once(weir, http, "reload")
