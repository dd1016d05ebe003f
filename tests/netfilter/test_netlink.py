"""The conversation: verdicts, the kernel's words, and attributes."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from appliance.netfilter.netlink import NETLINK_ROUTE, NetlinkSocket, Refused, attribute, attributes


@pytest.fixture
def netlink():
    made = NetlinkSocket(NETLINK_ROUTE)
    yield made
    made.close()


def link_request(kind, name="nobody0"):
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    message["header"]["type"] = kind
    message["header"]["flags"] = 0
    return message


def test_a_refusal_carries_the_error_and_the_socket_works_on(netlink):
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            netlink.ask(link_request(RTM_GETLINK))
        assert caught.value.errno == errno.ENODEV
    (answer,) = netlink.ask(link_request(RTM_GETLINK, "lo"))
    assert answer.type == RTM_NEWLINK


def test_the_first_refusal_of_several_messages_is_named_by_its_place(netlink):
    fine, wrong = link_request(RTM_GETLINK, "lo"), link_request(RTM_GETLINK)
    for message in (fine, wrong):
        message["header"]["flags"] = 5  # NLM_F_REQUEST | NLM_F_ACK
    with pytest.raises(Refused) as caught:
        netlink.exchange([fine, wrong])
    assert caught.value.index == 1


def test_the_kernels_own_words_are_kept(netlink):
    message = ifinfmsg()
    message["header"]["type"] = RTM_GETLINK
    message["header"]["flags"] = 0
    message["index"] = 0
    with pytest.raises(Refused) as caught:
        netlink.ask(message)
    assert caught.value.errno == errno.EINVAL
    assert "No valid device" in caught.value.explanation or not caught.value.explanation


def test_a_dump_returns_every_object(netlink):
    request = ifinfmsg()
    request["header"]["type"] = RTM_GETLINK
    names = set()
    for answer in netlink.dump(request):
        message = ifinfmsg(answer.data)
        message.decode()
        names.add(message.get_attr("IFLA_IFNAME"))
    assert "lo" in names


def test_children_do_not_inherit_the_socket(netlink):
    assert not os.get_inheritable(netlink.fileno())


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_survive_packing(listed):
    assert list(attributes(b"".join(attribute(kind, payload) for kind, payload in listed))) == listed


@given(st.binary(max_size=64))
def test_no_bytes_make_the_attribute_reader_fail(data):
    assert all(len(payload) <= len(data) for _, payload in attributes(data))
