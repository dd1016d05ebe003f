"""What an exchange's metadata tells: credentials by kind, content by format; never a value."""

from appliance.dissectors.http1 import SPEC
from appliance.dissectors.kit.spec import Capture
from appliance.model.direction import TO_CLIENT, TO_SERVER
from appliance.model.exchange import Exchange


def exchange(request_fields: bytes, response_fields: bytes, body: bytes = b"") -> Exchange:
    machine, fold = SPEC.new(Capture()), SPEC.fold()
    request = b"GET / HTTP/1.1\r\nHost: a\r\n" + request_fields + b"\r\n"
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body) + response_fields + b"\r\n" + body
    events = [*machine.receive(TO_SERVER, request, 1), *machine.receive(TO_CLIENT, response, 2)]
    [only] = [exchange for event in events for exchange in fold.add(event)]
    return only


def test_credentials_are_named_by_kind_and_never_by_value() -> None:
    fields = (
        b"Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2VjcmV0\r\n"
        b"Cookie: sid=s3cret; theme=dark\r\nX-API-Key: s3cret\r\nproxy-authorization: Basic czNjcmV0\r\n"
    )
    metadata = exchange(fields, b"Set-Cookie: sid=s3cret; HttpOnly\r\nset-cookie: b=c\r\n").metadata
    assert metadata == {
        "auth": "bearer",
        "auth_kind": "jwt",
        "cookies": ("sid", "theme"),
        "api_keys": ("x-api-key",),
        "proxy_auth": "basic",
        "set_cookies": ("sid", "b"),
    }


def test_an_authorization_without_a_scheme_is_not_mistaken_for_one() -> None:
    assert exchange(b"Authorization: s3cret\r\n", b"").metadata == {"auth": "unknown"}


def test_content_is_named_by_media_type_coding_and_format() -> None:
    metadata = exchange(b"", b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", b"\x1f\x8b").metadata
    assert metadata == {
        "response_type": "application/json",
        "response_format": "json",
        "response_encoding": "gzip",
    }


def test_bytes_tell_where_the_media_type_does_not() -> None:
    assert exchange(b"", b"", b'{"a": 1}').metadata == {"response_format": "json"}
    assert exchange(b"", b"Content-Type: text/html\r\n", b'{"a": 1}').metadata == {"response_type": "text/html"}


def test_repeated_field_blocks_do_not_share_what_is_added_to_one() -> None:
    first = exchange(b"Cookie: a=b\r\n", b"", b'{"a": 1}')
    second = exchange(b"Cookie: a=b\r\n", b"")
    assert first.metadata == {"cookies": ("a",), "response_format": "json"}
    assert second.metadata == {"cookies": ("a",)}
