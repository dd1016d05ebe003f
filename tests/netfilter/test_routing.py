"""Rules and routes: ours are recognised, replaced and removed; others' are seen and left alone."""

import pytest

from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.routing import Routing, wanted
from tests.netfilter.conftest import do, look

pytestmark = pytest.mark.netns

POLICY = InterceptPolicy(interfaces=("lan0",), mark=0x10, own_mark=0x20, mask=0xF0, routing_table=70_000)


@pytest.fixture
def routing(lab):
    made = Routing()
    yield made
    made.close()


def test_what_is_installed_is_listed_and_can_be_installed_again(routing):
    assert routing.missing(POLICY)
    for _ in range(2):
        routing.install(POLICY)
        assert (routing.rules(), routing.routes()) == wanted(POLICY, routing.loopback)
        assert not routing.missing(POLICY)
    assert "fwmark 0x10/0xf0 lookup 70000 proto 87" in look("ip", "-6", "rule")
    assert "local default dev lo proto 87 scope host" in look("ip", "route", "show", "table", "70000")


def test_others_are_seen_only_when_asked_for(routing):
    do("ip rule add fwmark 0x1 lookup 200 priority 50")
    do("ip route add local default dev lo table 200")
    routing.install(POLICY)
    assert {rule.table for rule in routing.rules()} == {70_000}
    assert {rule.table for rule in routing.rules(foreign=True)} == {200, 70_000}
    assert {route.table for route in routing.routes(foreign=True)} == {200, 70_000}
    routing.remove()
    assert {rule.table for rule in routing.rules(foreign=True)} == {200}


def test_one_family_alone_is_installed_alone(routing):
    routing.install(InterceptPolicy(interfaces=("lan0",), listen4=None))
    assert {rule.version for rule in routing.rules()} == {route.version for route in routing.routes()} == {6}


def test_removing_what_is_gone_already_is_no_error(routing):
    routing.remove()
    routing.install(POLICY)
    do("ip rule del fwmark 0x10/0xf0")
    routing.remove()
    assert routing.rules() == routing.routes() == []
