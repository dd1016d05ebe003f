from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.forward.body import Chunked, Length
from appliance.engine.forward.head import MAX_HEAD, Malformed
from appliance.engine.forward.intake import Head, Intake

ONE = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
TWO = b"\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
THREE = b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"


def read(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Every request's head as sent and its body."""
    intake, seen = Intake(), []
    body: Length | Chunked = Length(0)
    for piece in pieces:
        intake.add(piece)
        while True:
            if body.done:
                head = intake.head()
                assert not isinstance(head, Malformed)
                if head is None:
                    break
                body = Chunked() if head.request.chunked else Length(head.request.length or 0)
                seen.append((head.sent, b""))
            data = intake.body(body)
            seen[-1] = (seen[-1][0], seen[-1][1] + data)
            if not data and not body.done:
                break
    return seen


@given(st.lists(st.sampled_from([ONE, TWO, THREE]), max_size=5), st.data())
def test_requests_do_not_depend_on_how_bytes_were_cut(requests: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(requests)
    places = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]
    assert read(pieces) == read([wire])
    assert [head + body for head, body in read(pieces)] == requests


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_no_bytes_make_it_raise(pieces: list[bytes]) -> None:
    intake = Intake()
    for piece in pieces:
        intake.add(piece)
        head = intake.head()
        assert head is None or isinstance(head, Malformed | Head)
        if isinstance(head, Malformed):
            break


def test_a_head_without_an_end_is_given_up_at_its_bound() -> None:
    intake = Intake()
    intake.add(b"GET / HTTP/1.1\r\nX: ")
    while (head := intake.head()) is None:
        assert len(intake.pending) <= MAX_HEAD
        intake.add(b"y" * 1000)
    assert isinstance(head, Malformed) and head.status == 431


def test_broken_bodies_are_not_forwarded() -> None:
    intake, body = Intake(), Chunked()
    intake.add(b"zz\r\nsmuggled")
    assert intake.body(body) == b"" and body.broken
