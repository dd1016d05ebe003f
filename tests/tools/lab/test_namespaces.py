import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tools.lab import LabFailed, namespaces
from appliance.tools.lab.footprint import footprint, processes_in
from appliance.tools.lab.namespaces import ORIGIN_V4, ORIGIN_V6, SPARE_V4, Network
from appliance.tools.lab.processes import eventually, run, start

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root: sudo ./run test"),
]
PREFIX = "weirtoolstest"


@pytest.fixture
def network() -> Iterator[Network]:
    with namespaces.network(PREFIX) as built:
        yield built


@pytest.mark.parametrize("address", [ORIGIN_V4, ORIGIN_V6])
def test_the_client_reaches_the_origin_through_the_gateway_at_once(network: Network, address: str) -> None:
    listener = network.origin.listen(address, 0)
    with listener, network.client.connect(address, listener.getsockname()[1], 1.0) as client:
        accepted, peer = listener.accept()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            assert peer[0] == client.getsockname()[0]


def test_what_a_function_inside_raises_is_raised_outside(network: Network) -> None:
    with pytest.raises(OSError, match="refused"):
        network.client.connect(ORIGIN_V4, 1, 1.0)


def test_addresses_inside_are_not_the_hosts(network: Network) -> None:
    with pytest.raises(OSError, match="assign"), socket.create_server((SPARE_V4, 0)):
        pass


def test_leaving_ends_processes_that_hid_in_a_session_of_their_own(tmp_path: Path) -> None:
    before = footprint()
    with namespaces.network(PREFIX) as built:
        inode = frozenset({built.gateway.path.stat().st_ino})
        stubborn = "trap '' TERM HUP; setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' & wait"
        process = start(built.gateway, ["sh", "-c", stubborn], log=tmp_path / "log")
        assert eventually(lambda: len(built.gateway.processes()) >= 3)
        process.signal(signal.SIGKILL)
        process.wait(5)
        assert processes_in(inode)
    assert processes_in(inode) == []
    assert footprint().difference(before, built.run) == []


def test_a_failure_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), namespaces.network(PREFIX) as built:
        start(built.client, ["sleep", "1000"], log=tmp_path / "log")
        raise ZeroDivisionError
    assert not any(one.name.startswith(built.run) for one in namespaces.leftovers(PREFIX))


def test_networks_stand_side_by_side(network: Network) -> None:
    with namespaces.network(PREFIX) as second:
        assert {one.name for one in second.namespaces}.isdisjoint(one.name for one in network.namespaces)


def test_names_of_the_lab_resolve_inside_and_only_there(network: Network, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("203.0.113.9 only.lab\n")
    inside = run(network.client, ["getent", "hosts", "only.lab"], hosts=hosts)
    assert inside.out.split() == [b"203.0.113.9", b"only.lab"]
    assert "only.lab" not in Path("/etc/hosts").read_text()


def test_a_program_that_overstays_is_stopped(network: Network) -> None:
    assert run(network.client, ["sleep", "100"], timeout=0.2).code == 124
    assert network.client.processes() == []


def test_a_table_or_rule_that_stays_on_the_host_would_be_noticed(network: Network) -> None:
    before = network.client.call(footprint)
    assert run(network.client, ["nft", "add", "table", "inet", "left"]).code == 0
    assert run(network.client, ["ip", "rule", "add", "fwmark", "7", "lookup", "107"]).code == 0
    after = network.client.call(footprint)
    assert len(after.difference(before, "nothing")) == 2


def test_without_root_it_says_so_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabFailed, match="root") as failure, namespaces.network(PREFIX):
        pass
    assert failure.value.code == 4
