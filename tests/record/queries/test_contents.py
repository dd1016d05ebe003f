"""Putting a message together from what is stored: damaged, cut, coded, or gone."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.record.queries.contents import assemble, read_head

CODED = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\n\r\n"


def test_what_redaction_stored_decoded_is_not_decoded_again() -> None:
    note = {"length": 30, "head": 5, "tail": 0, "decoded": "gzip", "redacted": True}
    message = assemble(CODED, b"clear", note, True)
    assert (message.body, message.decoded, message.redacted, message.truncated) == (b"clear", "gzip", True, False)
    assert message.length == 30


def test_coded_content_that_was_cut_is_decoded_as_far_as_it_goes() -> None:
    whole = gzip.compress(bytes(range(256)) * 400)
    note = {"length": len(whole), "head": 500, "tail": 100}
    message = assemble(CODED, whole[:500] + whole[-100:], note, True)
    assert message.truncated
    assert message.tail == 0
    assert (bytes(range(256)) * 400).startswith(message.body)
    assert message.body


def test_content_that_is_not_what_it_says_is_shown_as_it_is() -> None:
    message = assemble(CODED, b"not gzip at all", {}, True)
    assert message.body == b"not gzip at all"
    assert message.problem


def test_a_body_that_inflates_without_end_is_stopped() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    message = assemble(CODED, bomb, {}, True)
    assert len(message.body) <= 8 * 1024 * 1024 + 1024
    assert message.truncated
    assert message.problem


@pytest.mark.parametrize(("head", "tail"), [(10, 0), (10, 5), (0, 5)])
def test_head_and_tail_are_told_apart(head: int, tail: int) -> None:
    data = b"x" * head + b"y" * tail
    message = assemble(PLAIN, data, {"length": 100, "head": head, "tail": tail}, True)
    assert (message.head, message.tail, message.truncated, message.length) == (head, tail, True, 100)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_as_a_head(data: bytes) -> None:
    start, headers = read_head(data)
    assert isinstance(start, str)
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in headers)


def test_a_head_keeps_what_was_sent() -> None:
    assert read_head(b"GET / HTTP/1.1\r\nHost: x\r\nhOsT:  y \r\n\r\n") == (
        "GET / HTTP/1.1",
        [("Host", "x"), ("hOsT", "y")],
    )
    assert read_head(b"") == ("", [])
