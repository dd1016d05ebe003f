import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.forward.head import Malformed, Request, Response, parse_request, parse_response, tokens

pieces = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"GET ", b"/ ", b"HTTP/1.1", b"\r\n", b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked"]
    ),
)


@given(st.lists(pieces, max_size=12).map(b"".join))
def test_no_bytes_make_the_parsers_raise_and_what_is_accepted_has_one_framing(head: bytes) -> None:
    request = parse_request(head)
    if isinstance(request, Request):
        assert not (request.chunked and request.length is not None)
        assert sum(field.name == b"host" for field in request.fields) <= 1
        assert all(b"\n" not in field.line and b"\r" not in field.line for field in request.fields)
    else:
        assert request.status in (400, 501, 505) and request.text
    response = parse_response(head)
    assert isinstance(response, Response | Malformed)


def test_lines_are_kept_as_sent() -> None:
    request = parse_request(b"POST /p HTTP/1.1\r\nhOST:a\r\nX-A:  1 \t\r\nContent-Length: 7\r\nX-Empty:")
    assert isinstance(request, Request)
    assert [field.line for field in request.fields] == [b"hOST:a", b"X-A:  1 \t", b"Content-Length: 7", b"X-Empty:"]
    assert [field.value for field in request.fields] == [b"a", b"1", b"7", b""]
    assert request.length == 7 and request.has_body


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/2.0\r\nHost: a", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/1.1", 400),
        (b"GET  / HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/1.1 \r\nHost: a", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1", 400),
    ],
)
def test_what_could_be_read_two_ways_is_refused(head: bytes, status: int) -> None:
    malformed = parse_request(head)
    assert isinstance(malformed, Malformed) and malformed.status == status


def test_a_responses_folds_are_joined_and_chunked_beats_content_length() -> None:
    response = parse_response(b"HTTP/1.1 200 \r\nX: a\r\n  b\r\nContent-Length: 5\r\nTransfer-Encoding: Chunked")
    assert isinstance(response, Response)
    assert [field.line for field in response.fields] == [b"X: a b", b"Transfer-Encoding: Chunked"]
    assert response.chunked and response.length is None and response.reason == b""


def test_comma_lists_are_read_over_all_lines() -> None:
    request = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close , x\r\nConnection:,Y")
    assert isinstance(request, Request)
    assert tokens(request.fields, b"connection") == {b"close", b"x", b"y"}
