"""Who listens, and whether TPROXY may deliver to it."""

import pytest

from appliance.model.endpoint import Endpoint
from appliance.netfilter.listening import Listener, listeners
from tests.netfilter.conftest import bound

pytestmark = pytest.mark.netns


@pytest.mark.parametrize(("version", "host"), [(4, "127.0.0.1"), (6, "::1")])
def test_listeners_are_found_with_their_kind(lab, version, host):
    at = Endpoint(host, 15001)
    assert listeners(at) == []
    with bound(version, host, 15001, transparent=True), bound(version, host, 15002):
        assert listeners(at) == [Listener(host, True)]
        assert listeners(at._replace(port=15002)) == [Listener(host, False)]


def test_a_listener_on_every_address_counts_and_one_on_another_does_not(lab):
    with bound(4, "0.0.0.0", 15001), bound(4, "127.0.0.2", 15003):
        assert listeners(Endpoint("127.0.0.1", 15001)) == [Listener("0.0.0.0", False)]
        assert listeners(Endpoint("127.0.0.1", 15003)) == []
