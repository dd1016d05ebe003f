import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.forward.body import MAX_LINE, MAX_TRAILERS, Body, Chunked, Length, UntilClose

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


def encoded(body: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    return b"".join(b"%X%b\r\n%b\r\n" % (len(c), extension, c) for c in body) + b"0\r\n" + trailers + b"\r\n"


def feed(body: Body, pieces: list[bytes]) -> int:
    taken = 0
    for piece in pieces:
        took = body.feed(piece)
        taken += took
        if body.done or body.broken:
            break
        assert took == len(piece)
    return taken


def cut(data: st.DataObject, wire: bytes) -> list[bytes]:
    places = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=10)))
    return [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]


@given(chunks, st.sampled_from([b"", b";a=b", b' ;a="b;c"']), st.sampled_from([b"", b"T: v\r\nU:\r\n"]), st.data())
def test_a_chunked_body_ends_where_it_ends_however_it_is_cut(body, extension, trailers, data) -> None:
    wire = encoded(body, extension, trailers)
    framing = Chunked()
    assert feed(framing, cut(data, wire + b"GET / HTTP/1.1")) == len(wire)
    assert framing.done and framing.broken is None


@given(st.binary(max_size=200), st.data())
def test_no_bytes_make_it_raise_and_cuts_never_change_the_verdict(wire, data) -> None:
    whole, pieces = Chunked(), Chunked()
    feed(whole, [wire])
    feed(pieces, cut(data, wire))
    assert (whole.done, whole.broken) == (pieces.done, pieces.broken)


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"0x3\r\n",
        b"3\n",
        b" 3\r\n",
        b"-1\r\n",
        b"3\r\nabcd",
        b"3;a\rb\r\n",
        b"3\r\nabc\n",
        b"0\r\nno trailer\r\n",
    ],
)
def test_what_two_parsers_could_read_differently_is_broken(wire: bytes) -> None:
    body = Chunked()
    body.feed(wire + b"\n")
    assert body.broken and not body.done


@pytest.mark.parametrize(("start", "bound"), [(b"", MAX_LINE), (b"0\r\n", MAX_TRAILERS)])
def test_endless_lines_and_trailers_are_cut_off(start: bytes, bound: int) -> None:
    body = Chunked()
    body.feed(start)
    fed = 0
    while body.broken is None:
        assert fed <= bound + 100
        fed += body.feed(b"1: 2\r\n" if start else b"1")


@given(st.integers(0, 100), st.binary(max_size=150), st.data())
def test_a_length_takes_exactly_its_bytes(length, wire, data) -> None:
    body = Length(length)
    if not body.done:
        assert feed(body, cut(data, wire)) == min(length, len(wire))
    assert body.done is (len(wire) >= length)


def test_until_close_takes_everything_and_is_never_done() -> None:
    body = UntilClose()
    assert body.feed(b"abc") == 3 and not body.done
