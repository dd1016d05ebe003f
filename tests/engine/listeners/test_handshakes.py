"""Laws that hold for every handshake: cuts do not matter, garbage never raises, memory is bounded."""

import base64
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.engine.listeners import connect, socks4, socks5
from appliance.engine.listeners.connect import Connect
from appliance.engine.listeners.handshake import Handshake, Step, authenticated
from appliance.engine.listeners.mixed import Mixed
from appliance.engine.listeners.socks4 import Socks4
from appliance.engine.listeners.socks5 import Socks5
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

USERS = {"dev": "secret", "ünïcode": "pässwörd"}
MAKERS: list[Callable[[], Handshake]] = [
    Mixed,
    Socks5,
    Socks4,
    Connect,
    lambda: Mixed(USERS),
    lambda: Socks5(USERS),
    lambda: Socks4(open_to_all=False),
    lambda: Connect(USERS),
]
BOUND = Endpoint("192.0.2.1", 4711)

names = st.from_regex(r"[a-z0-9_]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,10}){1,3}", fullmatch=True)
ports = st.integers(1, 65535)
credentials = st.sampled_from([(u.encode(), p.encode()) for u, p in USERS.items()] + [(b"dev", b"wrong"), (b"", b"")])


@st.composite
def socks5_wires(draw: st.DrawFn) -> bytes:
    methods = draw(st.lists(st.sampled_from([0, 1, 2, 0x80]), max_size=5))
    wire = bytes((5, len(methods), *methods))
    if draw(st.booleans()):
        name, password = draw(credentials)
        wire += bytes((1, len(name))) + name + bytes((len(password),)) + password
    kind = draw(st.sampled_from([1, 3, 4, 7]))
    address = {
        1: lambda: draw(st.binary(min_size=4, max_size=4)),
        3: lambda: (lambda n: bytes((len(n),)) + n)(draw(names).encode()),
        4: lambda: draw(st.binary(min_size=16, max_size=16)),
        7: lambda: b"",
    }[kind]()
    return wire + bytes((5, draw(st.sampled_from([1, 1, 1, 2, 3])), 0, kind)) + address + struct.pack("!H", draw(ports))


@st.composite
def socks4_wires(draw: st.DrawFn) -> bytes:
    name = draw(st.one_of(st.none(), names))
    address = draw(st.binary(min_size=4, max_size=4)) if name is None else b"\0\0\0\x07"
    wire = struct.pack("!BBH", 4, draw(st.sampled_from([1, 1, 1, 2])), draw(ports)) + address
    wire += draw(st.from_regex(rb"[a-z]{0,8}", fullmatch=True)) + b"\0"
    return wire if name is None else wire + name.encode() + b"\0"


@st.composite
def http_wires(draw: st.DrawFn) -> bytes:
    authority = f"{draw(names)}:{draw(ports)}"
    if draw(st.booleans()):
        return f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
    extra = ""
    if draw(st.booleans()):
        name, password = draw(credentials)
        extra = f"Proxy-Authorization: Basic {base64.b64encode(name + b':' + password).decode()}\r\n"
    return f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{extra}\r\n".encode()


wires = st.one_of(socks5_wires(), socks4_wires(), http_wires())


def run(handshake: Handshake, pieces: list[bytes]) -> tuple[bytes, Step, bytes]:
    """Every reply joined, the last step, and what belongs to the server."""
    replies, step = b"", Step()
    for at, piece in enumerate(pieces):
        step = handshake.receive(piece)
        replies += step.reply
        if step.target is not None or step.failed is not None or step.forward:
            return replies, step._replace(reply=b"", rest=b""), step.rest + b"".join(pieces[at + 1 :])
    return replies, step._replace(reply=b""), b""


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12)))
    return [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]


@pytest.mark.parametrize("users", [None, USERS])
@given(wire=wires, early=st.binary(max_size=40), data=st.data())
def test_replies_and_target_do_not_depend_on_how_bytes_were_cut(users, wire, early, data) -> None:
    whole = run(Mixed(users), [wire + early])
    replies, step, rest = run(Mixed(users), cut(data, wire + early))
    assert (replies, step) == whole[:2]
    if step.failed is None:  # after a failure nobody reads on, so what is left over has no meaning
        assert rest == whole[2]
    assert run(Mixed(users), [bytes((b,)) for b in wire + early])[:2] == whole[:2]


@given(wire=wires, early=st.binary(max_size=40))
def test_what_follows_an_accepted_handshake_is_handed_on_untouched(wire, early) -> None:
    _, step, rest = run(Mixed(), [wire + early])
    if step.target is not None:
        assert rest == early
    if step.forward:
        assert rest == wire + early


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=50)
@given(pieces=st.lists(st.one_of(st.binary(max_size=600), wires), max_size=6))
def test_no_bytes_make_a_handshake_raise(make, pieces) -> None:
    handshake = make()
    run(handshake, pieces)
    for end in End:
        handshake.refused(end, "why")
    handshake.accepted(BOUND)
    handshake.accepted(Endpoint("2001:db8::1", 1))


@pytest.mark.parametrize(
    ("make", "start", "bound"),
    [
        (Socks4, b"\x04\x01\x00\x50\x00\x00\x00\x01", 8 + socks4.MAX_USER_ID + 1),
        (Socks4, b"\x04\x01\x00\x50\x00\x00\x00\x01id\0", 11 + socks4.MAX_NAME + 1),
        (Connect, b"GET", connect.MAX_HEAD),
        (Connect, b"CONNECT a:1 HTTP/1.1\r\nX: ", connect.MAX_HEAD),
        (lambda: Socks5(USERS), b"\x05\x01\x02\x01", socks5.MAX_MESSAGE + 3),
    ],
)
def test_a_client_that_never_ends_its_message_is_cut_off(make, start, bound) -> None:
    handshake = make()
    step = handshake.receive(start)
    fed = len(start)
    while step.failed is None and step.target is None:
        assert fed <= bound
        step = handshake.receive(b"a")
        fed += 1
    assert step.failed in (End.PROTOCOL_ERROR, End.DENIED)
    assert step.error


def test_credentials_are_compared_whole_and_unknown_names_prove_nothing() -> None:
    assert authenticated(USERS, b"dev", b"secret") == "dev"
    assert authenticated(USERS, "ünïcode".encode(), "pässwörd".encode()) == "ünïcode"
    for name, password in [(b"dev", b"secre"), (b"dev", b""), (b"nobody", b""), (b"", b""), (b"\xff", b"\xff")]:
        assert authenticated(USERS, name, password) is None


def test_an_empty_password_of_a_known_user_is_still_a_password() -> None:
    assert authenticated({"open": ""}, b"open", b"") == "open"
    assert authenticated({"open": ""}, b"open", b"x") is None
