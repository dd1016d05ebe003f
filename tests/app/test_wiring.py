from ipaddress import ip_network
from pathlib import Path

from appliance.app import wiring
from appliance.app.config import Document, check, load
from appliance.model.bypass import BypassRule
from appliance.model.endpoint import Endpoint

FIXTURES = Path(__file__).parent / "config" / "fixtures"


def document(**sections: object) -> Document:
    return Document.model_validate(sections)


def mission(mode: str) -> Document:
    found = load([FIXTURES / "mission-proxy.yaml"], settings=[f"proxy.mode={mode}"], environ={}).document
    assert found is not None
    return found


def test_the_mission_s_reverse_listener_becomes_routes_in_order() -> None:
    settings = wiring.relay(mission("hybrid")).direct_http
    assert settings is not None
    assert [(route.host, route.path_prefix, str(route.upstream), route.strip_prefix) for route in settings.routes] == [
        ("api.example.com", None, "backend-api:3000", False),
        (None, "/v1/", "api-v1:8080", False),
        (None, "/v2/", "api-v2:8080", True),
    ]
    assert settings.default is not None and settings.default.upstream == Endpoint("legacy-backend", 80)
    assert settings.headers.add_request[0] == ("X-Forwarded-For", "$remote_addr")
    assert settings.headers.remove_request == ("X-Internal-Header",)


def test_the_mission_s_bypass_rules_are_addresses_names_and_ports() -> None:
    assert wiring.bypass(mission("socks")) == (
        BypassRule(mode="direct_proxy", network=ip_network("127.0.0.1/32"), port=6379),
        BypassRule(mode="direct_proxy", domain="*.monitoring.internal"),
        BypassRule(mode="fast_path", port=9200),
    )


def test_the_largest_body_decides_what_is_copied_and_kept() -> None:
    found = mission("socks")
    relay, inspect = wiring.relay(found), wiring.inspect(found)
    assert relay.tap is not None
    assert relay.tap.turn_head == (10 << 20) + check.HEAD_SLACK
    assert inspect.body_head + inspect.body_tail == 10 << 20
    small = document(protocols={"http": {"max_body_size": "1KB"}})
    assert wiring.inspect(small).body_head == 768 and wiring.inspect(small).body_tail == 256


def test_the_mission_s_sampling_and_compression_reach_the_recorder() -> None:
    record = wiring.record(mission("socks"))
    assert record.sampling.rules == (("/health", 0.01), ("/metrics", 0.0))
    assert record.compression.min_size == 1024


def test_modes_choose_the_listeners() -> None:
    sections = {"direct_http": {"default_upstream": {"upstream": "a:1"}}, "transparent": {"interfaces": ["lan0"]}}
    for mode, expected in {
        "socks": (True, False, False),
        "direct_http": (False, True, False),
        "transparent": (False, False, True),
        "hybrid": (True, True, True),
    }.items():
        relay = wiring.relay(document(proxy={"mode": mode, **sections}))
        assert (relay.socks is not None, relay.direct_http is not None, relay.transparent is not None) == expected
        assert (relay.dial.mark is not None) == expected[2]


def test_interception_covers_both_families_and_lets_whole_addresses_and_ports_pass_in_the_kernel() -> None:
    rules = [
        {"address": "192.0.2.0/24"},
        {"address": "2001:db8::1"},
        {"address": "192.0.2.9:80"},
        {"address": "*.example.com"},
        {"port": 22},
        {"port": 9200, "mode": "fast_path"},
    ]
    found = document(
        proxy={"mode": "transparent", "transparent": {"interfaces": ["lan0"], "ports": [80, 443]}},
        protocols={"bypass_rules": rules},
    )
    policy = wiring.intercept(found)
    assert policy is not None
    assert (policy.listen4, policy.listen6) == (Endpoint("127.0.0.1", 15001), Endpoint("::1", 15001))
    assert policy.bypass == (ip_network("192.0.2.0/24"), ip_network("2001:db8::1/128"))
    assert policy.bypass_ports == (22,) and policy.ports == (80, 443)
    assert wiring.intercept(document()) is None
    assert len(wiring.relay(found).bypass) == len(rules)


def test_no_client_reaches_our_own_listeners_through_us() -> None:
    found = document(proxy={"bind_address": ["0.0.0.0:1080", "[::]:1080"]}, api={"bind_address": "127.0.0.1:8088"})
    assert wiring.own_addresses(found) == {
        Endpoint("0.0.0.0", 1080),
        Endpoint("::", 1080),
        Endpoint("127.0.0.1", 8088),
    }


def test_no_client_reaches_the_transparent_listener_by_either_loopback_it_would_dial_itself_for_ever() -> None:
    found = document(proxy={"mode": "hybrid", "transparent": {"interfaces": ["lan0"]}}, api={"enabled": False})
    bound = wiring.relay(found).transparent
    assert bound is not None and set(bound.bind) == {Endpoint("127.0.0.1", 15001), Endpoint("::1", 15001)}
    assert wiring.own_addresses(found) == {Endpoint("127.0.0.1", 1080), *bound.bind}


def test_the_global_limit_is_shared_among_relays_and_rings_are_powers_of_two() -> None:
    found = document(limits={"max_connections": 10}, engine={"workers": 4, "tap": {"ring_size": "100MB"}})
    relay = wiring.relay(found)
    assert relay.limits.max_connections == 3
    assert relay.tap is not None and relay.tap.ring_bytes == 128 << 20


def test_users_count_only_when_clients_are_asked() -> None:
    users = [{"username": "dev", "password": "hush"}]
    asked = wiring.relay(document(proxy={"socks": {"auth_method": "username_password", "users": users}})).socks
    free = wiring.relay(document()).socks
    assert asked is not None and asked.users == {"dev": "hush"}
    assert free is not None and free.users is None


def test_the_state_directory_holds_everything() -> None:
    found = document(state_dir="/srv/weir")
    assert wiring.record(found).spool.directory == Path("/srv/weir/spool")
    cluster = wiring.embedded(found, "weir")
    assert cluster is not None and cluster.directory == Path("/srv/weir/postgres")
    assert wiring.api(found).dsn == wiring.record(found).dsn == cluster.dsn
    assert wiring.embedded(document(storage={"dsn": "postgresql://db/x"}), "weir") is None
