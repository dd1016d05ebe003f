import base64

import pytest

from appliance.engine.listeners.connect import Connect
from appliance.engine.listeners.handshake import Target
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

USERS = {"dev": "sec:ret"}


def request(target: str, *lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (f"CONNECT {target} HTTP/1.1", f"Host: {target}", *lines, "")).encode()


def basic(text: str) -> str:
    return "Proxy-Authorization: Basic " + base64.b64encode(text.encode()).decode()


def test_connect_becomes_a_target_and_what_follows_belongs_to_the_tunnel() -> None:
    step = Connect().receive(request("Example.org:443") + b"\x16\x03\x01")
    assert step.target == Target(Endpoint("Example.org", 443), "example.org", "connect", None, "connect")
    assert step.rest == b"\x16\x03\x01"


def test_connect_to_an_address_has_no_domain() -> None:
    step = Connect().receive(request("[2001:db8::1]:443"))
    assert step.target == Target(Endpoint("2001:db8::1", 443), None, None, None, "connect")


@pytest.mark.parametrize(
    "target", ["example.org", "example.org:", "example.org:http", "a:99999", ":443", "a:0", "[x]:1"]
)
def test_a_target_without_host_and_port_is_a_bad_request(target) -> None:
    step = Connect().receive(request(target))
    assert step.failed is End.PROTOCOL_ERROR
    assert step.reply.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "wire", [b"CONNECT a:1 HTTP/1.1\n\n", b"CONNECT a:1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nA: 1\nB: 2\r\n\r\n"]
)
def test_a_head_that_could_be_read_two_ways_is_a_bad_request(wire) -> None:
    assert Connect().receive(wire).reply.startswith(b"HTTP/1.1 400 ")


def test_the_right_password_opens_and_is_recorded_as_the_user() -> None:
    step = Connect(USERS).receive(request("a.example:1", basic("dev:sec:ret")))
    assert step.target is not None and step.target.user == "dev"


@pytest.mark.parametrize(
    "lines", [[], [basic("dev:wrong")], ["Proxy-Authorization: Basic ???"], ["Proxy-Authorization: Bearer x"]]
)
def test_without_it_the_client_is_asked_for_one(lines) -> None:
    step = Connect(USERS).receive(request("a.example:1", *lines))
    assert step.failed is End.DENIED
    assert step.reply.startswith(b"HTTP/1.1 407 ")
    assert b'\r\nProxy-Authenticate: Basic realm="weir"' in step.reply


def test_an_absolute_form_request_is_handed_to_the_forwarder_from_its_first_byte() -> None:
    wire = b"GET http://example.org/ HTTP/1.1\r\nHost: exa"
    step = Connect().receive(wire)
    assert step.forward and step.rest == wire


def test_an_origin_form_request_is_told_what_this_port_is() -> None:
    step = Connect().receive(b"GET / HTTP/1.1\r\n")
    assert step.reply.startswith(b"HTTP/1.1 400 ") and b"this is a proxy" in step.reply


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (End.REFUSED, 502),
        (End.UNREACHABLE, 502),
        (End.NAME_NOT_FOUND, 502),
        (End.CONNECT_TIMEOUT, 504),
        (End.DENIED, 403),
        (End.LIMITED, 503),
    ],
)
def test_failures_are_statuses_with_words(end, status) -> None:
    reply = Connect().refused(end, "192.0.2.1:80 answered nothing")
    assert reply.startswith(b"HTTP/1.1 %d " % status)
    assert reply.endswith(b"192.0.2.1:80 answered nothing\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
