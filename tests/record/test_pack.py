import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.record.pack import BodyPacker, Damaged, Format, pack_heads, unpack_body, unpack_heads
from appliance.record.settings import CompressionSettings

REQUEST = b"GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 22 Nov 2026 15:00:00 GMT\r\nContent-Length: 5\r\n\r\n"


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_heads_come_back_as_they_were_packed(request_head: bytes, response_head: bytes) -> None:
    assert unpack_heads(pack_heads(request_head, response_head)) == (request_head, response_head)


def test_usual_heads_shrink_to_less_than_half() -> None:
    assert len(pack_heads(REQUEST, RESPONSE)) < (len(REQUEST) + len(RESPONSE)) / 2


@given(st.binary(max_size=400))
def test_damaged_heads_are_named_and_never_crash(noise: bytes) -> None:
    try:
        unpack_heads(noise)
    except Damaged as error:
        assert str(error)


@given(st.integers(0, 5), st.binary(max_size=400))
def test_damaged_bodies_are_named_and_never_crash(form: int, noise: bytes) -> None:
    try:
        unpack_body(form, noise)
    except Damaged as error:
        assert str(error)


@given(st.binary(max_size=200), st.integers(1, 1000))
def test_bodies_come_back_as_they_were_packed(piece: bytes, times: int) -> None:
    body = piece * times
    assert unpack_body(*BodyPacker(CompressionSettings()).pack(body)) == body


@pytest.mark.parametrize(
    ("body", "form"),
    [
        (b"a" * 1023, Format.NONE),
        (b"a" * 1024, Format.LZ4),
        (b"a" * 32 * 1024, Format.ZSTD),
        (os.urandom(4096), Format.NONE),
    ],
)
def test_the_size_and_the_gain_choose_the_format(body: bytes, form: Format) -> None:
    assert BodyPacker(CompressionSettings()).pack(body)[0] == form


def test_an_algorithm_that_is_not_configured_is_not_used() -> None:
    assert BodyPacker(CompressionSettings(algorithms=("zstd",))).pack(b"a" * 2000)[0] == Format.ZSTD
    assert BodyPacker(CompressionSettings(algorithms=("lz4",))).pack(b"a" * 90_000)[0] == Format.LZ4
    assert BodyPacker(CompressionSettings(enabled=False)).pack(b"a" * 90_000)[0] == Format.NONE
