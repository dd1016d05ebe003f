"""The table as text: the same policy always makes the same one, nft understands it, and the kernel has what it says."""

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from appliance.model.endpoint import Endpoint
from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.ruleset import OWNER, PERSIST, build, render
from tests.netfilter.conftest import do, look

FULL = InterceptPolicy(
    interfaces=("lan0", "br-lan"),
    ports=(443, 80),
    on_failure="closed",
    clients=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
    exclude_clients=(ip_network("192.0.2.9/32"),),
    exclude_macs=("02:00:5e:10:00:01",),
    bypass=(ip_network("198.51.100.0/25"), ip_network("198.51.100.128/25"), ip_network("2001:db8:5::/48")),
    bypass_ports=(22,),
    own_addresses=(ip_address("203.0.113.1"),),
    own_traffic=True,
)

EXPECTED = """\
table inet weir { # flags owner
  comment "made by Weir"
  set interfaces {
    type ifname;
    elements = { "lan0" }
  }
  set bypass_ports {
    type inet_service;
  }
  set bypass4 {
    type ipv4_addr;
    flags interval;
  }
  set own4 {
    type ipv4_addr;
    flags interval;
  }
  set bypass6 {
    type ipv6_addr;
    flags interval;
  }
  set own6 {
    type ipv6_addr;
    flags interval;
  }
  chain select {
    meta mark & 0x000000ff == 0x00000002 accept comment "loop guard: our own sockets"
    ip daddr @own4 accept comment "never intercepted, IPv4"
    ip daddr @bypass4 counter accept comment "bypass, IPv4"
    ip6 daddr @own6 accept comment "never intercepted, IPv6"
    ip6 daddr @bypass6 counter accept comment "bypass, IPv6"
    tcp dport @bypass_ports counter accept comment "bypass, ports"
    fib daddr type local accept comment "the gateway itself"
  }
  chain clients {
  }
  chain divert {
    meta nfproto ipv4 meta l4proto tcp tcp flags syn / fin,syn,rst,ack tproxy ip to 127.0.0.1:15001 \
meta mark set meta mark & 0xffffff00 ^ 0x00000001 counter accept comment "to the listener, IPv4"
    meta nfproto ipv6 meta l4proto tcp tcp flags syn / fin,syn,rst,ack tproxy ip6 to [::1]:15001 \
meta mark set meta mark & 0xffffff00 ^ 0x00000001 counter accept comment "to the listener, IPv6"
  }
  chain prerouting {
    type filter hook prerouting priority -150; policy accept;
    meta l4proto tcp socket transparent 1 meta mark set meta mark & 0xffffff00 ^ 0x00000001 accept \
comment "packets of connections we have"
    iifname "weir-probe" meta l4proto tcp goto divert comment "doctor's probe"
    iifname != @interfaces accept comment "not where clients live"
    meta l4proto tcp jump clients comment "who may be intercepted"
    meta l4proto tcp jump select comment "what may be intercepted"
    meta l4proto tcp goto divert comment "what is left is ours"
  }
  chain forward {
    type filter hook forward priority -150; policy accept;
    iifname != @interfaces accept comment "not where clients live"
    udp dport 443 jump clients comment "whose QUIC"
    udp dport 443 jump select comment "QUIC where to"
    meta nfproto ipv4 udp dport 443 counter reject with icmpx port-unreachable comment "HTTP/3 falls back to TCP, IPv4"
    meta nfproto ipv6 udp dport 443 counter reject with icmpx port-unreachable comment "HTTP/3 falls back to TCP, IPv6"
  }
}
"""


def test_the_default_table_is_this_one():
    assert render(build(InterceptPolicy(interfaces=("lan0",)))) == EXPECTED


def test_the_order_in_which_users_list_things_does_not_matter():
    shuffled = replace(FULL, ports=(80, 443), bypass=FULL.bypass[::-1], clients=FULL.clients[::-1])
    assert render(build(shuffled)) == render(build(FULL))


def test_an_open_table_vanishes_with_its_owner_and_a_closed_one_stays():
    assert build(replace(FULL, on_failure="open")).flags == OWNER
    assert build(FULL).flags == OWNER | PERSIST


def test_neighbouring_networks_become_one():
    assert "elements = { 198.51.100.0/24 }" in render(build(FULL))


def test_one_family_alone_has_no_rule_for_the_other():
    text = render(build(replace(FULL, listen6=None)))
    assert "tproxy ip to" in text
    assert "tproxy ip6" not in text


def test_the_listeners_port_and_the_marks_are_the_policys():
    text = render(build(replace(FULL, listen4=Endpoint("192.0.2.1", 9000), mark=0x100, own_mark=0x200, mask=0xF00)))
    assert "tproxy ip to 192.0.2.1:9000 meta mark set meta mark & 0xfffff0ff ^ 0x00000100" in text
    assert "meta mark & 0x00000f00 == 0x00000200 accept" in text


@pytest.mark.netns
async def test_nft_reads_the_text_and_the_kernel_has_the_same_table(lab, interception, tmp_path):
    policy = replace(FULL, interfaces=("lan0",))
    text = render(build(policy))
    file = tmp_path / "weir.nft"
    file.write_text(text)
    do(f"nft -f {file}")
    from_text = look("nft", "list", "table", "inet", "weir")
    do("nft delete table inet weir")
    await interception.up(policy)
    from_messages = look("nft", "list", "table", "inet", "weir")
    assert interception.rendering() == text
    assert normal(from_messages) == normal(from_text)


def normal(listing):
    """Without the owner, which only a process can have."""
    listing = re.sub(r" # progname \S+\n\tflags \S+( \S+)?\n", "\n", listing)
    return [line.split() for line in listing.splitlines() if line.strip()]
