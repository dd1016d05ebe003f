"""Bodies: what is kept, and what is known about the rest."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from appliance.dissectors.kit import body
from appliance.dissectors.kit.spec import Capture
from appliance.model.exchange import EMPTY

CAPTURE = Capture(body_head=10, body_tail=6)


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_pieces_make_the_same_body_as_the_whole(pieces: list[bytes]) -> None:
    accumulator = body.Accumulator(CAPTURE)
    for piece in pieces:
        accumulator.add(piece)
    assert accumulator.finish() == body.whole(b"".join(pieces), CAPTURE)


@given(st.lists(st.binary(min_size=1, max_size=12) | st.integers(1, 30), max_size=8))
def test_what_was_not_seen_is_counted_and_leaves_no_digest(pieces: list[bytes | int]) -> None:
    accumulator = body.Accumulator(CAPTURE)
    content, missing = b"", 0
    for piece in pieces:
        if isinstance(piece, int):
            accumulator.skip(piece)
            missing += piece
            content += b"?" * piece
        else:
            accumulator.add(piece)
            content += piece
    kept = accumulator.finish()
    assert (kept.length, kept.missing) == (len(content), missing)
    if missing:
        assert kept.digest is None
        assert content.startswith(kept.head) and content.endswith(kept.tail)
    elif content:
        assert kept.digest == hashlib.sha256(content).digest()


def test_a_body_that_fits_into_head_and_tail_is_whole() -> None:
    kept = body.whole(b"x" * 16, CAPTURE)
    assert kept.whole and not kept.tail


def test_no_body_is_the_empty_body() -> None:
    assert body.whole(b"", CAPTURE) is EMPTY
    assert body.Accumulator(CAPTURE).finish() is EMPTY


def test_when_only_sizes_are_wanted_nothing_is_kept() -> None:
    kept = body.whole(b"secret", Capture(headers_only=True))
    assert kept == (6, b"", b"", None, 0)
