import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.listeners.allow import AllowList

networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: ipaddress.ip_network(pair, strict=False))


@given(st.lists(networks, max_size=8), st.ip_addresses())
def test_it_agrees_with_ipaddress(allowed, address) -> None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    expected = any(address in network for network in allowed)
    assert AllowList(allowed).permits(str(address)) is expected


def test_mapped_and_scoped_addresses_are_what_they_name() -> None:
    allowed = AllowList([ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("fe80::/10")])
    assert allowed.permits("::ffff:192.0.2.9")
    assert allowed.permits("fe80::1%eth0")
    assert not allowed.permits("not an address")
