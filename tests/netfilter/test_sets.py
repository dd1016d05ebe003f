"""Merging covers exactly what was listed, and packing loses nothing."""

from ipaddress import collapse_addresses, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.netfilter.sets import (
    Range,
    difference,
    merge,
    networks_of,
    pack_keys,
    pack_ranges,
    unpack_keys,
    unpack_ranges,
)


@st.composite
def networks(draw, version=4):
    bits = {4: 32, 6: 128}[version]
    # A small corner of the space, so that overlaps and neighbours are common, and both of its ends.
    prefix = draw(st.integers(bits - 8, bits) | st.just(0))
    base = draw(st.sampled_from([0, (1 << bits) - 256]))
    address = (base + draw(st.integers(0, 255))) >> (bits - prefix) << (bits - prefix)
    return ip_network((address, prefix)) if version == 4 else ip_network((address.to_bytes(16, "big"), prefix))


@given(st.lists(networks()) | st.lists(networks(version=6)))
def test_merged_ranges_cover_exactly_the_networks_and_never_touch(listed):
    ranges = merge(listed)
    version = listed[0].version if listed else 4
    assert networks_of(ranges, version) == list(collapse_addresses(listed))
    assert all(left.end < right.first for left, right in pairwise(ranges))


@given(st.lists(networks()), st.lists(networks()))
def test_deleting_then_adding_the_difference_leads_from_one_set_to_the_other(before, after):
    gone, new = difference(merge(before), merge(after))
    assert tuple(sorted((set(merge(before)) - set(gone)) | set(new))) == merge(after)


@given(st.lists(networks()) | st.lists(networks(version=6)))
def test_ranges_survive_packing(listed):
    version = listed[0].version if listed else 4
    assert unpack_ranges(pack_ranges(merge(listed), version), version) == merge(listed)


def test_the_whole_address_space_needs_no_end_element():
    assert merge([ip_network("0.0.0.0/0")]) == (Range(0, 1 << 32),)
    assert unpack_ranges(pack_ranges([Range(0, 1 << 32)], 4), 4) == (Range(0, 1 << 32),)


def test_many_elements_are_cut_into_pieces_that_fit_an_attribute():
    ranges = merge(ip_network((0x0A000000 + 512 * n, 24)) for n in range(10_000))
    pieces = pack_ranges(ranges, 4)
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 65_532
    assert unpack_ranges(pieces, 4) == ranges


@given(st.lists(st.binary(min_size=2, max_size=2)))
def test_keys_survive_packing(keys):
    assert list(unpack_keys(pack_keys(keys))) == keys
