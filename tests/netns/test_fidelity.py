"""The bytes arrive untouched: by every road, in both directions, past readers that stall, with ends and resets as sent.

32 MiB a transfer; with ``WEIR_TEST_FULL=1`` in the environment 200 MiB.
"""

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tools.lab import processes, product
from appliance.tools.lab.clients import REVERSE_PORT
from appliance.tools.lab.namespaces import ORIGIN_V4, Namespace, Network
from appliance.tools.lab.product import Weir
from tests.netns import bulk, roads, vitals
from tests.netns.bulk import BulkOrigin, Transfer
from tests.netns.conftest import make_place
from tests.netns.load import until
from tests.netns.roads import ROADS, Road
from tests.netns.vitals import MIB

FULL = os.environ.get("WEIR_TEST_FULL") == "1"
TOTAL = (200 if FULL else 32) * MIB
STALL_AT = TOTAL // 4
QUIET = 0.3  # seconds without a byte are a stall
BUFFERS = "4096 131072 1048576"  # of the kernel, per socket, so that it cannot hold the whole transfer by itself
IN_FLIGHT = 10 * MIB  # what four sockets and the relay may hold between the two ends; the kernel counts doubly
GROWTH = 4 * MIB

LOSSY = b"""
table inet lossy {
    chain in {
        type filter hook input priority 0
        numgen random mod 4 == 0 counter drop
    }
}
"""

by_every_road = pytest.mark.parametrize("road", ROADS, ids=[road.name for road in ROADS])
by_tunnels = pytest.mark.parametrize("road", ROADS[:5], ids=[road.name for road in ROADS[:5]])


@pytest.fixture(scope="module")
def weir(network: Network, home: Path, hosts: Path, cluster: Path) -> Iterator[Weir]:
    place = make_place(home / "fidelity", cluster)
    document = product.configuration(place / "state")
    for namespace in network.namespaces:
        namespace.call(_small_buffers)
    document["proxy"]["direct_http"] = {
        "bind_address": f"0.0.0.0:{REVERSE_PORT}",
        "default_upstream": {"upstream": f"{ORIGIN_V4}:{bulk.PORT}"},
    }
    with product.weir(network.gateway, place, document, hosts=hosts) as running:
        yield running


def _small_buffers() -> None:
    for name in ("tcp_rmem", "tcp_wmem"):
        Path("/proc/sys/net/ipv4", name).write_text(BUFFERS)


@pytest.fixture(scope="module")
def origin(network: Network) -> Iterator[BulkOrigin]:
    with bulk.bulk_origin(network.origin) as running:
        yield running


def stalls(transfer: Transfer) -> bool:
    """Whether a sender does not get rid of a byte for a while."""
    before = transfer.bytes
    time.sleep(QUIET)
    return transfer.bytes == before


@by_every_road
def test_a_download_is_the_same_at_both_ends_while_its_reader_stalls(
    road: Road, network: Network, weir: Weir, origin: BulkOrigin
) -> None:
    since = vitals.now()
    relay = vitals.pid_of(weir, "relay-0")
    before = vitals.anonymous_bytes(relay)
    name = f"down-{road.name}"
    transfer = Transfer(TOTAL, stall_at=STALL_AT)
    counted: list[int] = []
    with road.open(network.client, road.host, bulk.PORT) as sock:
        sock.settimeout(60)
        port = sock.getsockname()[1]
        target = f"{road.prefix(bulk.PORT)}/{name}"
        thread = threading.Thread(
            target=lambda: counted.append(bulk.download(sock, target, road.host, transfer, seed=1))
        )
        thread.start()
        try:
            assert transfer.stalled.wait(30)
            sent = origin.transfers[name]
            until(lambda: stalls(sent), "the server is not held back by a client that does not read")
            assert sent.bytes - transfer.bytes < IN_FLIGHT
            assert vitals.anonymous_bytes(relay) - before < GROWTH
        finally:
            transfer.go_on.set()
            thread.join(60)
    assert transfer.sha256 is not None
    assert transfer.sha256 == sent.sha256
    row = vitals.row_of(weir, port, since)
    assert (row["listener"], row["bytes_out"], row["missing_bytes"]) == (road.listener, counted[0], 0)
    exchange = weir.sql("SELECT * FROM traffic_records WHERE request_path LIKE $1", f"%/{name}?%")
    assert [one["response_bytes"] for one in exchange] == counted


@by_every_road
def test_an_upload_is_the_same_at_both_ends_while_its_reader_stalls(
    road: Road, network: Network, weir: Weir, origin: BulkOrigin
) -> None:
    since = vitals.now()
    relay = vitals.pid_of(weir, "relay-0")
    before = vitals.anonymous_bytes(relay)
    name = f"up-{road.name}"
    transfer = Transfer(TOTAL)
    counted: list[int] = []
    with road.open(network.client, road.host, bulk.PORT) as sock:
        sock.settimeout(60)
        port = sock.getsockname()[1]
        target = f"{road.prefix(bulk.PORT)}/{name}"
        thread = threading.Thread(
            target=lambda: counted.append(bulk.upload(sock, target, road.host, transfer, seed=2, stall_at=STALL_AT))
        )
        thread.start()
        until(lambda: name in origin.transfers, "the server heard of no upload")
        received = origin.transfers[name]
        try:
            assert received.stalled.wait(30)
            until(lambda: stalls(transfer), "the client is not held back by a server that does not read")
            assert transfer.bytes - received.bytes < IN_FLIGHT
            assert vitals.anonymous_bytes(relay) - before < GROWTH
        finally:
            received.go_on.set()
            thread.join(60)
    assert received.sha256 is not None
    assert received.sha256 == transfer.sha256
    row = vitals.row_of(weir, port, since)
    assert (row["listener"], row["bytes_in"], row["missing_bytes"]) == (road.listener, counted[0], 0)
    exchange = weir.sql("SELECT * FROM traffic_records WHERE request_path LIKE $1", f"%/{name}?%")
    assert [one["request_bytes"] for one in exchange] == counted


@contextlib.contextmanager
def relayed(road: Road, network: Network) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's socket and the server's, with nothing but the road between them."""
    with network.origin.listen(road.host, 0) as listener:
        listener.settimeout(10)
        with road.open(network.client, road.host, listener.getsockname()[1]) as client:
            server, _ = listener.accept()
            with server:
                client.settimeout(10)
                server.settimeout(10)
                yield client, server


@by_tunnels
def test_a_client_that_has_finished_still_hears_its_server(road: Road, network: Network, weir: Weir) -> None:
    since = vitals.now()
    with relayed(road, network) as (client, server):
        client.sendall(b"all that I have to say")
        client.shutdown(socket.SHUT_WR)
        assert roads.exactly(server, 1000) == b"all that I have to say"
        server.sendall(b"x" * 100_000)
        server.close()
        assert len(roads.exactly(client, 200_000)) == 100_000
        row = vitals.row_of(weir, client.getsockname()[1], since)
    assert (row["bytes_in"], row["bytes_out"], row["end_reason"]) == (22, 100_000, "closed")


@by_tunnels
def test_a_server_that_has_finished_still_hears_its_client(road: Road, network: Network, weir: Weir) -> None:
    since = vitals.now()
    with relayed(road, network) as (client, server):
        server.sendall(b"goodbye")
        server.shutdown(socket.SHUT_WR)
        assert roads.exactly(client, 1000) == b"goodbye"
        client.sendall(b"y" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert len(roads.exactly(server, 200_000)) == 100_000
        row = vitals.row_of(weir, client.getsockname()[1], since)
    assert (row["bytes_in"], row["bytes_out"], row["end_reason"]) == (100_000, 7, "closed")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@by_tunnels
def test_a_clients_reset_is_a_reset_for_the_server(road: Road, network: Network, weir: Weir) -> None:
    since = vitals.now()
    with relayed(road, network) as (client, server):
        client.sendall(b"hello")
        assert roads.exactly(server, 5) == b"hello"
        port = client.getsockname()[1]
        reset(client)
        with pytest.raises(ConnectionResetError):
            server.recv(1)
    assert vitals.row_of(weir, port, since)["end_reason"] == "client_reset"


@by_tunnels
def test_a_servers_reset_is_a_reset_for_the_client(road: Road, network: Network, weir: Weir) -> None:
    since = vitals.now()
    with relayed(road, network) as (client, server):
        server.sendall(b"hello")
        assert roads.exactly(client, 5) == b"hello"
        port = client.getsockname()[1]
        reset(server)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert vitals.row_of(weir, port, since)["end_reason"] == "server_reset"


def test_the_last_bytes_before_a_reset_reach_the_other_side(network: Network, weir: Weir) -> None:
    with relayed(ROADS[0], network) as (client, server):
        client.sendall(b"z" * 50_000)
        assert len(roads.exactly(server, 50_000)) == 50_000
        server.sendall(b"the last word")
        assert roads.exactly(client, 13) == b"the last word"
        reset(client)
        with pytest.raises(ConnectionResetError):
            server.recv(1)


@contextlib.contextmanager
def a_quarter_lost(*namespaces: Namespace) -> Iterator[None]:
    """Every fourth packet that comes in is dropped, at random."""
    for namespace in namespaces:
        assert processes.run(namespace, ["nft", "-f", "-"], stdin=LOSSY).code == 0
    try:
        yield
        for namespace in namespaces:
            listed = processes.run(namespace, ["nft", "list", "table", "inet", "lossy"]).out.decode()
            dropped = re.search(r"counter packets (\d+)", listed)
            assert dropped is not None and int(dropped[1]) > 0, "nothing was dropped"
    finally:
        for namespace in namespaces:
            processes.run(namespace, ["nft", "delete", "table", "inet", "lossy"])


@pytest.mark.parametrize("road", [ROADS[0], ROADS[3]], ids=["transparent", "socks5"])
def test_bytes_are_the_same_when_a_quarter_of_the_packets_is_lost(
    road: Road, network: Network, weir: Weir, origin: BulkOrigin
) -> None:
    total = (2 if FULL else 1) * MIB
    with a_quarter_lost(network.client, network.origin):
        down, up = Transfer(total), Transfer(total)
        with road.open(network.client, road.host, bulk.PORT) as sock:
            sock.settimeout(60)
            bulk.download(sock, f"/lossy-down-{road.name}", road.host, down, seed=3)
            bulk.upload(sock, f"/lossy-up-{road.name}", road.host, up, seed=4, stall_at=total)
    assert down.sha256 is not None and up.sha256 is not None
    assert down.sha256 == origin.transfers[f"lossy-down-{road.name}"].sha256
    assert up.sha256 == origin.transfers[f"lossy-up-{road.name}"].sha256
