"""Detection: bytes beat ports, whoever speaks first."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissectors.http1 import SPEC as HTTP1
from appliance.dissectors.kit.detect import MAX_SNIFFED, RAW, UNDECIDED, Detection, Recent
from appliance.dissectors.kit.spec import ProtocolSpec, Sniff
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction


def never_sure(direction: Direction, data: bytes) -> Sniff:
    return Sniff.MORE


def greets(direction: Direction, data: bytes) -> Sniff:
    return Sniff.YES if direction is TO_CLIENT and data.startswith(b"HELLO") else Sniff.NO


VAGUE = replace(HTTP1, name="vague", ports=(7,), sniff=never_sure)
GREETER = replace(HTTP1, name="greeter", ports=(80,), sniff=greets)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (b"GET / HTTP/1.1\r\n", HTTP1),
        (b"\r\nPOST /x HTTP/1.0\r\n", HTTP1),
        (b"WHATEVER /x HTTP/1.1\r\n", HTTP1),
        (b"GET /" + b"a" * MAX_SNIFFED, HTTP1),
        (b"GET / HT", UNDECIDED),
        (b"GE", UNDECIDED),
        (b"PRI * HTTP/2.0\r\n", RAW),
        (b"\x16\x03\x01\x02\x00", RAW),
        (b"SSH-2.0-OpenSSH\r\n", RAW),
        (b"*1\r\n$4\r\nPING\r\n", RAW),
        (b"GET key\r\n", RAW),
        (b"EHLO mail.example\r\n", RAW),
    ],
)
def test_a_clients_first_bytes_decide(said: bytes, verdict: ProtocolSpec | None) -> None:
    assert Detection([HTTP1]).feed(TO_SERVER, said) is verdict


@given(st.integers(1, 15))
def test_a_verdict_does_not_depend_on_how_bytes_were_cut(place: int) -> None:
    detection = Detection([HTTP1])
    assert detection.feed(TO_SERVER, b"GET / HTTP/1.1\r\n"[:place]) in (UNDECIDED, HTTP1)
    assert detection.feed(TO_SERVER, b"GET / HTTP/1.1\r\n"[place:]) is HTTP1


def test_a_server_that_speaks_first_is_judged_by_its_own_words() -> None:
    assert Detection([HTTP1, GREETER]).feed(TO_CLIENT, b"HELLO 1.0") is GREETER
    assert Detection([HTTP1, GREETER]).feed(TO_CLIENT, b"SSH-2.0-") is RAW
    assert Detection([HTTP1]).feed(TO_CLIENT, b"HTTP/1.1 408 Request Timeout\r\n") is HTTP1


def test_bytes_beat_ports_and_hints() -> None:
    assert Detection([GREETER, HTTP1], port=80, hint=GREETER).feed(TO_SERVER, b"GET / HTTP/1.1\r\n") is HTTP1


def test_who_is_never_sure_is_given_up() -> None:
    detection = Detection([VAGUE])
    assert detection.feed(TO_SERVER, b"x" * (MAX_SNIFFED - 1)) is UNDECIDED
    assert detection.feed(TO_SERVER, b"x" * 100) is RAW
    assert detection.seen(TO_SERVER) == MAX_SNIFFED


def test_a_verdict_is_final() -> None:
    detection = Detection([HTTP1])
    detection.feed(TO_SERVER, b"\x00")
    assert detection.feed(TO_SERVER, b"GET / HTTP/1.1\r\n") is RAW


def test_recent_destinations_are_remembered_within_a_bound() -> None:
    recent = Recent(2)
    recent.remember("a", HTTP1)
    recent.remember("b", GREETER)
    assert recent.get("a") is HTTP1
    recent.remember("c", HTTP1)
    assert (len(recent), recent.get("b"), recent.get("a")) == (2, None, HTTP1)
    recent.forget("a")
    assert recent.get("a") is None
