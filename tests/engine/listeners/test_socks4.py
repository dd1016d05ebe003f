from appliance.engine.listeners.handshake import Target
from appliance.engine.listeners.socks4 import Socks4
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint


def test_the_memos_example_is_understood() -> None:
    step = Socks4().receive(b"\x04\x01\x00\x17\xc0\x00\x02\x07fred\0rest")
    assert step.target == Target(Endpoint("192.0.2.7", 23), None, None, None, "socks4")
    assert step.rest == b"rest"


def test_4a_carries_a_name() -> None:
    step = Socks4().receive(b"\x04\x01\x00\x50\x00\x00\x00\x01\0Example.org\0")
    assert step.target == Target(Endpoint("Example.org", 80), "example.org", "socks", None, "socks4")


def test_bind_is_refused() -> None:
    step = Socks4().receive(b"\x04\x02\x00\x50\xc0\x00\x02\x07\0")
    assert (step.reply, step.failed) == (b"\0\x5b\0\0\0\0\0\0", End.DENIED)


def test_where_users_are_configured_socks4_is_refused() -> None:
    step = Socks4(open_to_all=False).receive(b"\x04\x01\x00\x50\xc0\x00\x02\x07dev\0")
    assert (step.reply, step.failed) == (b"\0\x5d\0\0\0\0\0\0", End.DENIED)


def test_granted_and_rejected() -> None:
    assert Socks4().accepted(Endpoint("192.0.2.1", 258)) == b"\0\x5a\x01\x02\xc0\0\x02\x01"
    assert Socks4().accepted(Endpoint("::1", 258)) == b"\0\x5a\x01\x02\0\0\0\0"
    assert Socks4().refused(End.REFUSED) == b"\0\x5b\0\0\0\0\0\0"
