import pytest

from appliance.engine.listeners.mixed import Mixed
from appliance.model.connection import End


@pytest.mark.parametrize(
    ("first", "listener"), [(b"\x05", "socks5"), (b"\x04", "socks4"), (b"C", "connect"), (b"g", "connect")]
)
def test_the_first_byte_decides(first, listener) -> None:
    handshake = Mixed()
    assert handshake.listener == "mixed"
    assert handshake.receive(b"") == handshake.receive(first)
    assert handshake.listener == listener


@pytest.mark.parametrize("first", [b"\x00", b"\x16\x03\x01", b"\xff", b" ", b"\r\n"])
def test_anything_else_is_refused_at_once(first) -> None:
    step = Mixed().receive(first)
    assert step.failed is End.PROTOCOL_ERROR and step.error
