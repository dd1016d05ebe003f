"""A policy that cannot work is refused with every reason at once."""

from ipaddress import ip_network

import pytest

from appliance.model.endpoint import Endpoint
from appliance.netfilter.errors import PolicyError
from appliance.netfilter.policy import InterceptPolicy


def problems_of(**settings):
    with pytest.raises(PolicyError) as caught:
        InterceptPolicy(**{"interfaces": ("lan0",), **settings})
    return caught.value.problems


def test_the_defaults_make_a_policy():
    policy = InterceptPolicy(interfaces=("lan0", "br-lan"))
    assert [version for version, _ in policy.listeners] == [4, 6]


def test_every_problem_is_named_at_once():
    problems = problems_of(
        interfaces=("a-name-that-is-too-long", "lo", "eth0", "eth0"),
        ports=(0, 70_000),
        listen4=Endpoint("::1", 15001),
        listen6=None,
        mark=0x100,
        own_mark=0,
        routing_table=254,
        rule_priority=32766,
        table="1weir",
        exclude_macs=("00-11-22-33-44-55",),
    )
    named = " ".join(problems)
    assert len(problems) == 12
    for field in ("ports", "listen4", "mark", "own_mark", "routing_table", "rule_priority", "table", "exclude_macs"):
        assert field in named
    assert "named twice" in named
    assert "set own_traffic" in named


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"interfaces": ()}, "at least one interface"),
        ({"ports": ()}, "intercepts nothing"),
        ({"listen4": None, "listen6": None}, "at least one family"),
        ({"mark": 2, "own_mark": 2}, "must differ"),
        ({"mask": 0}, "mask"),
        ({"bypass": ("192.0.2.0/24",)}, "ip_network"),
        ({"own_addresses": ("192.0.2.1",)}, "ip_address"),
        ({"on_failure": "panic"}, "neither open nor closed"),
        ({"quic": "drop"}, "neither reject nor pass"),
        ({"interfaces": ("eth0 eth1",)}, "no interface name"),
        ({"bypass_ports": (-1,)}, "bypass_ports"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_reason(settings, reason):
    assert any(reason in problem for problem in problems_of(**settings))


def test_own_traffic_alone_needs_no_interface():
    assert InterceptPolicy(interfaces=(), own_traffic=True).own_traffic


def test_networks_of_both_families_are_taken():
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert InterceptPolicy(interfaces=("lan0",), bypass=networks).bypass == networks
