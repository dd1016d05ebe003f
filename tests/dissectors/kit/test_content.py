"""Content codings are undone, within limits."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissectors.kit.content import Decoded, Limit, decode, format_of

TEXT = b"The river passes and is measured. " * 300


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("coding", CODERS)
def test_each_coding_is_undone(coding: str) -> None:
    assert decode(CODERS[coding](TEXT), coding.upper()) == Decoded(TEXT, True, None)


def test_deflate_without_its_zlib_header_is_undone_too() -> None:
    assert decode(raw_deflate(TEXT), "deflate") == Decoded(TEXT, True, None)


def test_stacked_codings_are_undone_last_first() -> None:
    assert decode(brotli.compress(gzip.compress(TEXT)), "gzip, identity, br") == Decoded(TEXT, True, None)


def test_members_and_frames_may_follow_one_another() -> None:
    assert decode(gzip.compress(b"a") + gzip.compress(b"b"), "gzip").content == b"ab"
    assert decode(zstandard.compress(b"a") + zstandard.compress(b"b"), "zstd") == Decoded(b"ab", True, None)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_many_members_are_found_wherever_they_are_cut_and_too_many_are_refused(coding: str) -> None:
    pieces = [bytes([number % 251]) * (number % 97) for number in range(3000)]
    assert decode(b"".join(map(CODERS[coding], pieces)), coding) == Decoded(b"".join(pieces), True, None)
    # Copying the rest for each of half a million took minutes: one such body stopped an inspector.
    decoded = decode(CODERS[coding](b"") * 500_000, coding)
    assert not decoded.complete and "more than 4096" in str(decoded.problem)


@pytest.mark.parametrize("coding", CODERS)
def test_a_beginning_decodes_as_far_as_it_goes(coding: str) -> None:
    decoded = decode(CODERS[coding](TEXT)[:-5], coding)
    assert not decoded.complete and decoded.problem
    assert TEXT.startswith(decoded.content)


@pytest.mark.parametrize("coding", CODERS)
def test_a_bomb_is_stopped_at_the_limit(coding: str) -> None:
    bomb = CODERS[coding](bytes(20_000_000))
    decoded = decode(bomb, coding, Limit(output=1_000_000, ratio=10_000_000))
    assert (len(decoded.content), decoded.complete) == (1_000_000, False)
    assert decoded.problem and "inflate" in decoded.problem


def test_the_ratio_limits_small_bodies_harder() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(decode(bomb, "gzip", Limit(ratio=10, free=1000)).content) <= 10 * len(bomb)


def test_a_tower_of_codings_is_refused() -> None:
    assert decode(b"x", "gzip, " * 9).problem == "9 stacked content codings (at most 4 are undone)"


def test_an_unknown_coding_is_named_and_the_rest_undone() -> None:
    assert decode(gzip.compress(b"a"), "exi, gzip") == Decoded(b"a", False, "unknown content coding 'exi'")


@given(st.sampled_from(sorted(CODERS)), st.binary(max_size=80))
def test_no_bytes_make_it_raise(coding: str, data: bytes) -> None:
    decode(data, coding)
    decode(CODERS[coding](TEXT)[:20] + data, coding)


@pytest.mark.parametrize(
    ("media_type", "beginning", "kind"),
    [
        ("application/json; charset=utf-8", b"", "json"),
        ("application/problem+json", b"", "json"),
        ("image/svg+xml", b"", "xml"),
        ("text/xml", b"", "xml"),
        ("text/html", b'{"a": 1}', None),
        ("", b' {"a": 1}', "json"),
        ("text/plain", b"[1, 2]", "json"),
        ("application/octet-stream", b"\xef\xbb\xbf<?xml version", "xml"),
        ("", b"{not json", None),
        ("", b"[section]", None),
        ("", b"", None),
    ],
)
def test_json_and_xml_are_recognised(media_type: str, beginning: bytes, kind: str | None) -> None:
    assert format_of(media_type, beginning) == kind
