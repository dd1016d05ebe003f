from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.forward.head import Request, parse_request
from appliance.engine.forward.routing import (
    AbsoluteForm,
    Destination,
    Refusal,
    Reverse,
    bare_host,
    domain_of,
    parse_uri,
    stripped,
)
from appliance.engine.settings import DirectHttpSettings, Route
from appliance.model.endpoint import Endpoint


def to(name: str, **matcher) -> Route:
    return Route(upstream=Endpoint(name, 80), **matcher)


def reverse(*routes: Route, default: Route | None = None, strategy="round_robin") -> Reverse:
    return Reverse(DirectHttpSettings(bind=(), routes=routes, default=default, strategy=strategy))


def request(target: str, host: str = "x.example", method: str = "GET") -> Request:
    parsed = parse_request(f"{method} {target} HTTP/1.1\r\nHost: {host}".encode())
    assert isinstance(parsed, Request)
    return parsed


def chosen(router: Reverse, target: str, host: str = "x.example", client: str = "192.0.2.1") -> str:
    destination = router.route(request(target, host), client)
    assert isinstance(destination, Destination)
    return destination.server.host


SEED = (
    to("backend-api", host="api.example.com"),
    to("api-v1", path_prefix="/v1/"),
    to("api-v2", path_prefix="/v2/", strip_prefix=True),
)


@pytest.mark.parametrize(
    ("target", "host", "upstream"),
    [
        ("/", "api.example.com", "backend-api"),
        ("/v1/users", "api.example.com", "backend-api"),
        ("/v1/users", "API.Example.com.:8080", "backend-api"),
        ("/v1/users", "other", "api-v1"),
        ("/v2/users", "other", "api-v2"),
        ("/v3", "other", "legacy-backend"),
        ("/v1", "other", "legacy-backend"),
        ("http://api.example.com/", "other", "backend-api"),
        ("*", "api.example.com", "backend-api"),
    ],
)
def test_the_seeds_example_routes_as_it_reads(target, host, upstream) -> None:
    assert chosen(reverse(*SEED, default=to("legacy-backend")), target, host) == upstream


ALL = [
    to("exact-long", host="a.b.example", path_prefix="/p/q"),
    to("exact", host="a.b.example"),
    to("wild-long", host="*.b.example"),
    to("wild", host="*.example"),
    to("path-long", path_prefix="/p/q"),
    to("path", path_prefix="/p"),
]


@given(st.permutations(ALL))
def test_the_most_specific_route_wins_in_whatever_order_they_are_written(routes) -> None:
    router = reverse(*routes)
    assert chosen(router, "/p/q/r", "a.b.example") == "exact-long"
    assert chosen(router, "/p", "a.b.example") == "exact"
    assert chosen(router, "/p", "c.b.example") == "wild-long"
    assert chosen(router, "/p", "b.example") == "wild"
    assert chosen(router, "/p/q?r", "c.d") == "path-long"
    assert chosen(router, "/p/qq", "c.d") == "path"
    assert isinstance(router.route(request("/pp", "c.d"), ""), Refusal)
    assert isinstance(router.route(request("/", "example"), ""), Refusal)


@pytest.mark.parametrize(
    ("path", "prefix", "left"),
    [
        (b"/v2/users", "/v2/", b"/users"),
        (b"/v2/users", "/v2", b"/users"),
        (b"/v2/", "/v2/", b"/"),
        (b"/v2", "/v2", b"/"),
        (b"/v2?a=b", "/v2", b"/?a=b"),
        (b"/v2//x", "/v2", b"//x"),
        (b"/x", "/", b"/x"),
    ],
)
def test_a_stripped_path_still_begins_with_a_slash(path, prefix, left) -> None:
    assert stripped(path, prefix) == left


EQUAL = (to("a", host="h"), to("b", host="h"), to("c", host="h"))


def test_round_robin_takes_turns() -> None:
    router = reverse(*EQUAL)
    assert [chosen(router, "/", "h") for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_ip_hash_keeps_a_client_where_it_is_and_spreads_clients() -> None:
    router = reverse(*EQUAL, strategy="ip_hash")
    by_client = {f"192.0.2.{n}": {chosen(router, "/", "h", f"192.0.2.{n}") for _ in range(3)} for n in range(60)}
    assert all(len(seen) == 1 for seen in by_client.values())
    counts = Counter(seen.pop() for seen in by_client.values())
    assert set(counts) == {"a", "b", "c"}


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=60))
def test_least_connections_never_picks_a_busier_upstream(steps) -> None:
    router = reverse(*EQUAL, strategy="least_connections")
    under_way: list[Destination] = []
    for step in steps:
        if step is not None and under_way:
            router.release(under_way.pop(step % len(under_way)))
            continue
        counts = Counter({name: 0 for name in "abc"})
        counts.update(destination.server.host for destination in under_way)
        destination = router.route(request("/", "h"), "192.0.2.1")
        assert isinstance(destination, Destination)
        assert counts[destination.server.host] == min(counts.values())
        under_way.append(destination)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://a.example", ("http", "a.example", 80, b"/")),
        (b"HTTP://a.example:8080/x?y", ("http", "a.example", 8080, b"/x?y")),
        (b"http://[2001:db8::1]?q", ("http", "2001:db8::1", 80, b"/?q")),
        (b"https://a.example/", ("https", "a.example", 443, b"/")),
    ],
)
def test_uris_are_taken_apart(target, expected) -> None:
    uri = parse_uri(target, b"GET")
    assert uri is not None
    assert (uri.scheme, uri.server.host, uri.server.port, uri.path) == expected


@pytest.mark.parametrize(
    "target",
    [b"/", b"ftp://a/", b"http://", b"http:///x", b"http://u:p@a/", b"http://a/#f", b"http://a:b/", b"http://[x]/"],
)
def test_what_is_no_http_uri_is_none(target) -> None:
    assert parse_uri(target, b"GET") is None
    assert isinstance(AbsoluteForm().route(request(target.decode()), ""), Refusal)


@given(st.binary(max_size=30))
def test_no_host_makes_it_raise(authority) -> None:
    bare_host(authority)
    parse_uri(b"http://" + authority + b"/", b"GET")


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"A.Example.:80", "a.example"),
        (b"[2001:DB8::0:1]:80", "2001:db8::1"),
        (b"192.0.2.1:80", "192.0.2.1"),
        (b"", ""),
    ],
)
def test_hosts_are_compared_bare(authority, host) -> None:
    assert bare_host(authority) == host
    assert domain_of(authority) == (host if host.endswith("example") else None)
