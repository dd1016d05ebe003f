"""Namespaces without names: entered and left, wired, and gone afterwards."""

import socket
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from appliance.netfilter.namespace import Link, Links, Namespace
from tests.netfilter.conftest import do, look

pytestmark = pytest.mark.netns


def here():
    return Path("/proc/thread-self/ns/net").readlink()


@pytest.fixture
def namespace():
    made = Namespace()
    yield made
    made.close()


def test_entering_ends_where_it_began_even_when_the_body_fails(namespace):
    home = here()
    with namespace.entered():
        assert here() != home
    assert here() == home
    with pytest.raises(RuntimeError), namespace.entered():
        raise RuntimeError
    assert here() == home


def test_a_new_namespace_has_nothing_but_loopback_and_that_is_up(namespace):
    with namespace.entered():
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        links = Links()
        assert links.all() == {"lo": Link(up=True, bridged=False)}
        links.close()


def test_a_cable_carries_both_families_at_once(namespace):
    far = Namespace()
    with namespace.entered():
        links = Links()
        links.add_veth("near", "far", far)
        links.set_up("near")
        links.add_address("near", ip_interface("192.0.2.1/24"))
        links.add_address("near", ip_interface("2001:db8::1/64"))
        links.close()
    with far.entered():
        links = Links()
        links.set_up("far")
        links.add_address("far", ip_interface("192.0.2.2/24"))
        links.add_address("far", ip_interface("2001:db8::2/64"))
        links.add_default_route(ip_address("192.0.2.1"))
        links.add_default_route(ip_address("2001:db8::1"))
        links.close()
        assert "default via 192.0.2.1" in look("ip", "route")
        assert "default via 2001:db8::1" in look("ip", "-6", "route")
        with socket.create_server(("2001:db8::2", 80), family=socket.AF_INET6) as server, namespace.entered():
            socket.create_connection(("2001:db8::2", 80), timeout=2).close()
            assert server.accept()[1][0] == "2001:db8::1"
    far.close()


def test_interfaces_say_whether_they_are_up_and_bridged(namespace):
    with namespace.entered():
        for command in ("link add br0 type bridge", "link add v0 type veth peer v1", "link set v0 master br0 up"):
            do(f"ip {command}")
        links = Links()
        found = links.all()
        links.remove("v0")
        assert "v1" not in links.all()
        links.close()
    assert found["br0"] == Link(up=False, bridged=True)
    assert found["v0"] == Link(up=True, bridged=True)
    assert found["v1"] == Link(up=False, bridged=False)


def test_no_descriptor_stays_open():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        namespace = Namespace()
        with namespace.entered():
            pass
        namespace.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
