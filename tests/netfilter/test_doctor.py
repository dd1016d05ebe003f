"""Break one hop of a healthy gateway at a time: the doctor names that hop, and its fix mends it."""

import errno
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.netfilter import doctor
from appliance.netfilter.doctor import Finding
from appliance.netfilter.errors import RulesetRejected
from appliance.netfilter.interception import Interception
from appliance.netfilter.namespace import Links, Namespace
from tests.netfilter.conftest import bound, do, kernel_state, switch

pytestmark = pytest.mark.netns


async def examine(policy, *, probe=True):
    return await doctor.examine(policy, probe=probe, patience=1.0)


def broken(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if not finding.ok}


@pytest.fixture
async def healthy(lab, interception, policy):
    """A gateway where all is well."""
    await lab.relay()
    await interception.up(policy)
    return lab


async def test_a_healthy_gateway_has_no_findings_and_is_left_as_it_was(healthy, policy):
    before = kernel_state()
    findings = await examine(policy)
    assert broken(findings) == {}
    assert {"live path IPv4", "live path IPv6", "kernel", "routing rule IPv6"} <= {finding.name for finding in findings}
    assert next(f for f in findings if f.name == "live path IPv4").detail.endswith("saw 198.19.255.5")
    after = kernel_state()
    assert {**after, "ruleset": ""} == {**before, "ruleset": ""}  # counters moved


@pytest.mark.parametrize(
    ("sabotage", "hop", "also"),
    [
        ("ip rule del priority 100", "routing rule IPv4", {"live path IPv4"}),
        ("ip -6 rule del priority 100", "routing rule IPv6", {"live path IPv6"}),
        ("ip route flush table 5757", "local route IPv4", {"live path IPv4"}),
        ("ip -6 route flush table 5757", "local route IPv6", {"live path IPv6"}),
        ("sysctl -w net.ipv4.ip_forward=0", "forwarding IPv4", {"forwarded path IPv4"}),
        ("sysctl -w net.ipv6.conf.all.forwarding=0", "forwarding IPv6", {"forwarded path IPv6"}),
        ("ip link set lan0 down", "interface lan0", set()),
        ("sysctl -w net.ipv4.tcp_syncookies=2", "SYN cookies", {"live path IPv4", "live path IPv6"}),
    ],
)
async def test_a_broken_hop_is_named_and_the_printed_fix_mends_it(healthy, policy, sabotage, hop, also):
    do(sabotage)
    found = broken(await examine(policy))
    assert hop in found
    assert set(found) == {hop} | also
    for command in found[hop].fix.split("; "):
        do(command)
    assert broken(await examine(policy)) == {}


async def test_marked_source_validation_with_the_reverse_path_filter_is_named_and_mended(healthy, policy):
    switch("net/ipv4/conf/all/rp_filter", "1")
    switch("net/ipv4/conf/all/src_valid_mark", "1")
    found = broken(await examine(policy))
    assert set(found) == {"reverse path filter lan0", "live path IPv4"}
    assert "reverse path filter lan0" in found["live path IPv4"].detail
    do(found["reverse path filter lan0"].fix)
    assert broken(await examine(policy)) == {}


async def test_the_filter_on_one_interface_alone_breaks_the_path_too(healthy, policy):
    switch("net/ipv4/conf/lan0/rp_filter", "2")
    switch("net/ipv4/conf/lan0/src_valid_mark", "1")
    assert set(broken(await examine(policy))) == {"reverse path filter lan0", "live path IPv4"}


async def test_a_missing_table_is_named(healthy, interception, policy):
    await interception.down()
    found = broken(await examine(policy))
    assert "table inet weir" in found
    assert found["table inet weir"].fix == doctor.START
    assert "no table is in force" in found["live path"].detail


async def test_a_missing_rule_is_named_with_its_chain(lab, policy):
    await lab.relay()
    closed = replace(policy, on_failure="closed")
    left_behind = Interception()
    await left_behind.up(closed)
    left_behind.close()  # killed: the table stays and belongs to nobody, so that it can be damaged
    do("nft flush chain inet weir divert")
    found = broken(await examine(closed))
    assert "'to the listener, IPv4' in chain divert" in found["table inet weir"].detail
    assert "went straight" in found["live path IPv4"].detail
    await lab.close()


async def test_a_listener_that_is_gone_is_named(healthy, policy):
    await healthy.close()
    found = broken(await examine(policy))
    assert set(found) == {"listener IPv4", "listener IPv6", "live path IPv4", "live path IPv6"}
    assert "127.0.0.1:15001" in found["listener IPv4"].detail
    assert "went straight to the server" in found["live path IPv4"].detail


async def test_a_listener_that_is_not_transparent_is_named(healthy, policy):
    await healthy.close()
    with bound(4, "127.0.0.1", 15001), bound(6, "::1", 15001):
        found = broken(await examine(policy))
    assert "is not transparent" in found["listener IPv4"].detail
    assert "live path IPv4" in found


async def test_an_engine_that_does_not_dial_is_told_from_a_broken_path(healthy, policy):
    await healthy.close()
    await healthy.listen()
    found = broken(await examine(policy))
    assert set(found) == {"live path IPv4", "live path IPv6"}
    assert "did not arrive at its original destination" in found["live path IPv6"].detail


async def test_another_firewall_that_drops_is_told_from_our_own_hops(healthy, policy):
    do("nft add table inet others")
    do("nft add chain inet others forward { type filter hook forward priority 0 ; policy drop ; }")
    found = broken(await examine(policy))
    assert set(found) == {"forwarded path IPv4", "forwarded path IPv6"}
    do("nft add chain inet others early { type filter hook prerouting priority -200 ; policy drop ; }")
    found = broken(await examine(policy))
    assert "another firewall" in found["live path IPv4"].detail


async def test_a_firewall_that_protects_the_gateway_is_named_with_the_rule_that_lets_intercepted_packets_in(
    healthy, policy
):
    do("nft add table inet filter")
    do("nft add chain inet filter input { type filter hook input priority 0 ; policy drop ; }")
    do("nft add rule inet filter input ct state established,related accept")
    do("nft add rule inet filter input meta l4proto ipv6-icmp accept")
    found = broken(await examine(policy))
    assert set(found) == {"live path IPv4", "live path IPv6"}
    assert "hook input" in found["live path IPv4"].detail
    rule = found["live path IPv4"].fix.rpartition("CHAIN ")[2]
    do(f"nft insert rule inet filter input {rule}")
    assert broken(await examine(policy)) == {}


async def test_an_interface_that_does_not_exist_is_named(healthy, policy):
    found = broken(await examine(replace(policy, interfaces=("lan0", "lan7")), probe=False))
    assert found["interface lan7"].detail == "does not exist"
    assert "lan7" in found["table inet weir"].detail


async def test_bridged_clients_with_bridge_netfilter_are_named(healthy, policy, monkeypatch):
    values = {"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "0"}
    real = doctor.sysctl.read
    monkeypatch.setattr(doctor.sysctl, "read", lambda name: values.get(name) or real(name))
    assert broken(await examine(policy, probe=False)) == {}
    do("ip link add br0 type bridge")
    do("ip link set lan0 master br0")
    found = broken(await examine(policy, probe=False))
    assert found["bridge netfilter"].fix == "sysctl -w net.bridge.bridge-nf-call-iptables=0"


async def test_two_doctors_at_once_do_not_disturb_each_other(healthy, policy):
    far = Namespace()
    links = Links()
    links.add_veth("weir-probe", "eth0", far)
    try:
        found = broken(await examine(policy))
        assert "under way" in found["live path"].detail
        assert "weir-probe" in dict(map(reversed, socket.if_nameindex()))
    finally:
        links.remove("weir-probe")
        links.close()
        far.close()


async def test_a_kernel_that_lacks_a_feature_is_told_from_a_gateway_set_up_wrongly(healthy, policy, monkeypatch):
    async def refuse(policy, patience):
        raise RulesetRejected("rule 'to the listener, IPv4' of chain divert", errno.ENOENT, "")

    monkeypatch.setattr(doctor, "try_sandbox", refuse)
    found = broken(await examine(policy))
    assert set(found) == {"kernel"}
    assert "'to the listener, IPv4'" in found["kernel"].detail
    assert found["kernel"].fix.startswith("modprobe")


async def test_one_family_alone_is_examined_alone(lab, interception, policy):
    await lab.relay()
    only4 = replace(policy, listen6=None)
    await interception.up(only4)
    findings = await examine(only4)
    assert broken(findings) == {}
    assert not [finding for finding in findings if "IPv6" in finding.name]


def test_without_privileges_only_that_is_said(lab):
    script = """
import asyncio
from appliance.netfilter.doctor import examine
from appliance.netfilter.policy import InterceptPolicy
for finding in asyncio.run(examine(InterceptPolicy(interfaces=("lan0",)))):
    print(finding.name, finding.ok, finding.detail, finding.fix)
"""
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=20)
    assert ran.stdout.startswith("privileges False missing: CAP_NET_ADMIN")
    assert len(ran.stdout.splitlines()) == 1
