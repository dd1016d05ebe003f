import errno

import pytest

from appliance.engine.listeners.handshake import Target
from appliance.engine.listeners.socks5 import Socks5
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint


def greeted(users: dict[str, str] | None = None) -> Socks5:
    handshake = Socks5(users)
    assert handshake.receive(b"\x05\x01\x00").reply == b"\x05\x00"
    return handshake


def test_an_ipv4_request_becomes_a_target_and_early_data_is_kept() -> None:
    step = greeted().receive(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50GET /")
    assert step.target == Target(Endpoint("192.0.2.7", 80), None, None, None, "socks5")
    assert step.rest == b"GET /"


def test_an_ipv6_request_becomes_a_target() -> None:
    step = greeted().receive(b"\x05\x01\x00\x04" + bytes.fromhex("20010db8000000000000000000000001") + b"\x01\xbb")
    assert step.target is not None and step.target.server == Endpoint("2001:db8::1", 443)


def test_a_name_is_kept_as_the_domain() -> None:
    step = greeted().receive(b"\x05\x01\x00\x03\x0bExample.org\x00\x50")
    assert step.target == Target(Endpoint("Example.org", 80), "example.org", "socks", None, "socks5")


def test_an_address_sent_as_a_name_is_an_address() -> None:
    step = greeted().receive(b"\x05\x01\x00\x03\x09127.0.0.1\x00\x50")
    assert step.target == Target(Endpoint("127.0.0.1", 80), None, None, None, "socks5")


@pytest.mark.parametrize("name", [b"", b"a b", b"a\0b", b"a\nb", b"a/b", b"[::1", b"-"[:0]])
def test_a_name_that_is_none_gets_a_general_failure(name) -> None:
    step = greeted().receive(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x50")
    assert step.failed is End.PROTOCOL_ERROR and step.reply[1] == 1


@pytest.mark.parametrize("command", [2, 3, 9])
def test_bind_and_udp_associate_are_not_supported(command) -> None:
    step = greeted().receive(bytes((5, command, 0, 1, 0, 0, 0, 0, 0, 0)))
    assert step.reply == b"\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"
    assert step.failed is End.DENIED


def test_an_unknown_address_type_is_named() -> None:
    assert greeted().receive(b"\x05\x01\x00\x02\x00\x00").reply[1] == 8


def test_a_client_that_offers_no_method_we_want_is_told_so() -> None:
    assert Socks5().receive(b"\x05\x01\x02").reply == b"\x05\xff"
    step = Socks5({"dev": "secret"}).receive(b"\x05\x02\x00\x01")
    assert (step.reply, step.failed) == (b"\x05\xff", End.DENIED)


def test_username_and_password_prove_the_user() -> None:
    handshake = Socks5({"dev": "secret"})
    assert handshake.receive(b"\x05\x03\x00\x01\x02").reply == b"\x05\x02"
    assert handshake.receive(b"\x01\x03dev\x06secret").reply == b"\x01\x00"
    step = handshake.receive(b"\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50")
    assert step.target is not None and step.target.user == "dev"


def test_a_wrong_password_is_denied() -> None:
    step = Socks5({"dev": "secret"}).receive(b"\x05\x01\x02\x01\x03dev\x05wrong")
    assert (step.reply, step.failed) == (b"\x05\x02\x01\x01", End.DENIED)


def test_success_names_our_end() -> None:
    assert Socks5().accepted(Endpoint("192.0.2.1", 258)) == b"\x05\x00\x00\x01\xc0\x00\x02\x01\x01\x02"
    assert Socks5().accepted(Endpoint("fe80::1%eth0", 1))[:4] == b"\x05\x00\x00\x04"


@pytest.mark.parametrize(
    ("end", "number", "code"),
    [
        (End.REFUSED, 0, 5),
        (End.UNREACHABLE, errno.EHOSTUNREACH, 4),
        (End.UNREACHABLE, errno.ENETUNREACH, 3),
        (End.CONNECT_TIMEOUT, 0, 4),
        (End.NAME_NOT_FOUND, 0, 4),
        (End.DENIED, 0, 2),
        (End.LIMITED, 0, 2),
        (End.SERVER_RESET, 0, 1),
    ],
)
def test_every_failure_has_the_code_of_rfc_1928(end, number, code) -> None:
    assert Socks5().refused(end, "", number) == bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))
