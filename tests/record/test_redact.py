import gzip
import json
import re
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.exchange import Body, Exchange, Missing
from appliance.record.redact import Redacted, Redactor, load_key
from appliance.record.secrets import luhn
from appliance.record.settings import RedactionSettings, SettingsError
from tests.record.samples import exchange, whole

KEY = b"k" * 32
TOKEN = re.compile(rb"\[redacted:([a-z]+):([0-9a-f]{16})\]")
JWT = b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
GITHUB_LIKE = b"ghp_" + b"0123456789abcdef" * 2 + b"0123"
VALUES = st.from_regex(rb"[A-Za-z0-9._~+/-]{8,40}", fullmatch=True)


def redactor(**changes: Any) -> Redactor:
    return Redactor(RedactionSettings(key_file=Path("/unused"), **changes), KEY)


def clean(one: Redactor | None = None, **changes: Any) -> Redacted:
    return (one or redactor()).exchange(exchange(**changes))


def head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def request_head(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return clean(request_head=head(*lines, first=first)).request_head


def response(data: bytes, media: bytes = b"application/json", *more: bytes, body: Body | None = None) -> Redacted:
    lines = head(b"Content-Type: " + media, *more, first=b"HTTP/1.1 200 OK")
    return clean(response_head=lines, response=body or whole(data))


def blanked(text: bytes) -> bytes:
    return TOKEN.sub(b"<>", text)


@given(VALUES)
def test_of_a_header_only_the_secret_is_replaced(secret: bytes) -> None:
    before = head(b"hOST: a", b"AUTHORIZATION:\t Bearer  " + secret + b" ", b"x-last:  spaced  ")
    after = clean(request_head=before).request_head
    assert blanked(after) == before.replace(b" " + secret, b"<>").replace(b"Bearer ", b"Bearer ")
    assert secret not in after


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"Authorization: Basic dXNlcjpwYXNz", b"Authorization: Basic <>"),
        (b"Proxy-Authorization: Digest username=a, response=b", b"Proxy-Authorization: Digest <>"),
        (b"authorization: opaque-value", b"authorization: <>"),
        (b"Cookie: sid=1; theme=dark;x=", b"Cookie: sid=<>; theme=<>;x="),
        (b"Cookie: nameless", b"Cookie: <>"),
        (b'Cookie: a="quoted value"', b"Cookie: a=<>"),
        (b"Set-Cookie: sid=v=1; Path=/; HttpOnly", b"Set-Cookie: sid=<>; Path=/; HttpOnly"),
        (b"X-Api-Key: 42", b"X-Api-Key: <>"),
        (b"X_API_KEY: 42", b"X_API_KEY: <>"),
        (b"X-Vault-Token: 42", b"X-Vault-Token: <>"),
        (b"Private-Token: 42", b"Private-Token: <>"),
        (b"Referer: http://a/?q=1&access_token=42#top", b"Referer: http://a/?q=1&access_token=<>#top"),
        (b"Location: http://a/#id_token=42&state=7", b"Location: http://a/#id_token=<>&state=7"),
        (b"Origin: http://user:pw@a/", b"Origin: http://user:<>@a/"),
        (b"X-Anything: " + JWT, b"X-Anything: <>"),
        (b"Host: a", b"Host: a"),
        (b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ==", b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="),
        (b"WWW-Authenticate: Bearer realm=a", b"WWW-Authenticate: Bearer realm=a"),
        (b"Authorization:", b"Authorization:"),
        (b"Authorization", b"Authorization"),
    ],
)
def test_headers(line: bytes, expected: bytes) -> None:
    assert blanked(request_head(b"A: b", line, b"C: d")) == head(b"A: b", expected, b"C: d")


def test_a_secret_that_is_folded_over_lines_is_replaced_whole() -> None:
    after = request_head(b"Authorization: Bearer first", b"  second", b"\tthird", b"Next: x")
    assert blanked(after) == head(b"Authorization: Bearer <>", b"Next: x")


def test_a_head_without_secrets_is_the_same_object() -> None:
    before = head(b"Host: a", b"Accept: */*")
    assert clean(request_head=before).request_head is before
    assert clean(request_head=before).missing == Missing.NONE


@given(st.binary(max_size=500))
def test_any_bytes_may_stand_in_a_head_and_what_is_no_token_was_there_before(noise: bytes) -> None:
    before = b"GET /?token=x HTTP/1.1\r\n" + noise + b"\r\n\r\n"
    after = clean(request_head=before).request_head
    position = 0
    for piece in TOKEN.split(after)[::3]:
        position = before.find(piece, position)
        assert position >= 0
        position += len(piece)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?token=42&x=1", "/a?token=<>&x=1"),
        ("/a?x=1&API_KEY=42", "/a?x=1&API_KEY=<>"),
        ("/a?%74oken=42", "/a?%74oken=<>"),
        ("/a?user%5Bpassword%5D=42", "/a?user%5Bpassword%5D=<>"),
        ("/a;jsessionid=42?x=1", "/a;jsessionid=<>?x=1"),
        ("/a?pageToken=42&max_tokens=7", "/a?pageToken=42&max_tokens=7"),
        ("/a?token=", "/a?token="),
        ("/a?token=1,2?3&x=1", "/a?token=<>&x=1"),
        ("/a?next=/b?token=42&x=1", "/a?next=/b?token=<>&x=1"),
        ("/a?next=%2Fb%3Ftoken%3D42%26x%3D1&y=1", "/a?next=%2Fb%3Ftoken%3D<>%26x%3D1&y=1"),
        (f"/a/{JWT.decode()}/b", "/a/<>/b"),
        ("http://u:p@h/", "http://u:<>@h/"),
        ("/plain", "/plain"),
        ("/caf\u00e9\udcff?pwd=1", "/caf\u00e9\udcff?pwd=<>"),
    ],
)
def test_targets(target: str, expected: str) -> None:
    after = clean(target=target).target
    assert re.sub(r"\[redacted:[a-z]+:[0-9a-f]{16}\]", "<>", after) == expected


@given(VALUES, VALUES)
def test_equal_secrets_get_equal_tokens_wherever_they_are_and_others_do_not(one: bytes, other: bytes) -> None:
    hidden = clean(
        request_head=head(b"Authorization: Bearer " + one, first=b"GET /?token=" + one + b" HTTP/1.1"),
        response_head=head(b"Content-Type: application/json", b"X-Api-Key: " + other, first=b"HTTP/1.1 200 OK"),
        response=whole(json.dumps({"password": one.decode()}).encode()),
    )
    text = hidden.request_head + hidden.response_head + hidden.response.data
    hashes = [found[1] for found in TOKEN.findall(text)]
    assert len(hashes) == 4
    assert hashes[0] == hashes[1] == hashes[3]
    assert (hashes[2] == hashes[0]) == (one == other)


def test_another_key_gives_other_tokens() -> None:
    other = Redactor(RedactionSettings(key_file=Path("/unused")), b"o" * 32)
    assert clean(target="/?token=1").target != clean(other, target="/?token=1").target


@pytest.mark.parametrize(
    ("media", "text", "expected"),
    [
        (b"application/json", b'{"a": 1, "Password" : "x\\"y", "b": 2}', b'{"a": 1, "Password" : "<>", "b": 2}'),
        (b"application/json", b'{"client_secret":12345}', b'{"client_secret":"<>"}'),
        (b"application/json", b'{"pass\\u0077ord":"x"}', b'{"pass\\u0077ord":"<>"}'),
        (b"application/json", b'{"token": null, "total_tokens": 7}', None),
        (b"application/json", b'{"token": "cut off he', b'{"token": "<>'),
        (b"application/json", b'{"body": "{\\"token\\": \\"x\\"}"}', b'{"body": "{\\"token\\": \\"<>\\"}"}'),
        (b"application/json", b'{"n": 4111111111111111}', b'{"n": "<>"}'),
        (b"application/json", b'{"n": "4111-1111-1111-1111"}', b'{"n": "<>"}'),
        (b"application/json", b'{"n": 4111111111111112, "at": 1795348800000000000}', None),
        (b"application/x-www-form-urlencoded", b"user=a&password=b+c&x=1", b"user=a&password=<>&x=1"),
        (b"application/x-www-form-urlencoded", b"password=b", b"password=<>"),
        (
            b"text/xml",
            b'<a><ns:password type="x">y</ns:password></a>',
            b'<a><ns:password type="x"><></ns:password></a>',
        ),
        (b"text/plain", b"key " + GITHUB_LIKE + b" end", b"key <> end"),
        (b"text/plain", b"jwt " + JWT + b" end", b"jwt <> end"),
        (b"text/plain", b"card 4111 1111 1111 1111 paid", b"card <> paid"),
        (b"", b"see http://u:p@h/", b"see http://u:<>@h/"),
        (
            b"multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\nx\r\n--b--',
            b'--b\r\nContent-Disposition: form-data; name="password"\r\n\r\n<>\r\n--b--',
        ),
        (b"image/png", b'{"password": "x"}', None),
        (b"", b'\0{"password": "x"}', None),
        (b"text/plain", b"nothing to see", None),
    ],
)
def test_bodies(media: bytes, text: bytes, expected: bytes | None) -> None:
    after = response(text, media)
    assert blanked(after.response.data) == (text if expected is None else expected)
    assert bool(after.missing & Missing.REDACTED) == (expected is not None)
    assert (after.metadata is None) == (expected is None)
    if expected is not None:
        assert after.metadata is not None
        assert after.metadata["response_body"]["redacted"] is True
        assert after.metadata["response_body"]["length"] == len(text)
        assert not after.missing & Missing.RESPONSE_TRUNCATED


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_stays_json_of_the_same_shape(document: Any) -> None:
    wrapped = {"data": document, "password": "x"}
    after = json.loads(response(json.dumps(wrapped).encode()).response.data)
    assert after["password"].startswith("[redacted:password:")
    assert shape(after["data"]) == shape(document)


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def test_an_unchanged_whole_body_is_stored_as_it_was_sent_under_its_own_digest() -> None:
    after = response(b"plain").response
    assert (after.data, after.digest, after.note) == (b"plain", sha256(b"plain").digest(), None)


def test_a_body_seen_before_gets_the_same_answer() -> None:
    one = redactor()
    lines = head(b"Content-Type: application/json", first=b"HTTP/1.1 200 OK")
    for text in (b'{"password": "x"}', b'{"a": 1}', b'{"password": "y"}' + b" " * 2000):
        answers = [clean(one, response_head=lines, response=whole(text)).response for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]


def test_a_compressed_body_with_a_secret_is_stored_decoded_and_clean() -> None:
    after = response(gzip.compress(b'{"password": "x"}'), b"application/json", b"Content-Encoding: GZIP")
    assert blanked(after.response.data) == b'{"password": "<>"}'
    assert after.metadata is not None
    assert after.metadata["response_body"]["decoded"] == "gzip"


def test_a_compressed_body_without_a_secret_is_stored_as_it_was_sent() -> None:
    sent = gzip.compress(b'{"a": 1}')
    assert response(sent, b"application/json", b"Content-Encoding: gzip").response.data == sent


def test_of_a_truncated_compressed_body_only_what_was_searched_is_stored() -> None:
    sent = gzip.compress(json.dumps({str(n): n**9 for n in range(3000)}).encode())
    after = response(
        b"", b"application/json", b"Content-Encoding: gzip", body=Body(len(sent), sent[:5000], sent[-50:], None)
    )
    assert after.response.data.startswith(b'{"0": 0, "1": 1')
    assert after.missing & Missing.RESPONSE_TRUNCATED


def test_a_bomb_is_cut_at_the_limit_and_marked() -> None:
    sent = gzip.compress(b"a" * 5_000_000)
    one = redactor(scan_limit=300_000)
    lines = head(b"Content-Type: text/plain", b"Content-Encoding: gzip", first=b"HTTP/1.1 200 OK")
    after = clean(one, response_head=lines, response=whole(sent))
    assert len(after.response.data) == 300_000
    assert after.missing & Missing.RESPONSE_TRUNCATED


def test_a_body_that_is_not_what_its_coding_says_is_searched_as_it_is() -> None:
    after = response(b'{"password": "x"}', b"application/json", b"Content-Encoding: gzip")
    assert blanked(after.response.data) == b'{"password": "<>"}'


def test_head_and_tail_of_a_truncated_body_are_both_clean() -> None:
    body = Body(9000, b'{"password": "x", "a": "', b'", "token": "y"}', None)
    after = response(b"", body=body)
    assert blanked(after.response.data) == b'{"password": "<>", "a": "", "token": "<>"}'
    assert after.metadata is not None
    note = after.metadata["response_body"]
    assert (note["length"], note["head"] + note["tail"]) == (9000, len(after.response.data))


def test_metadata_errors_and_domains_are_clean_too() -> None:
    deep: Any = "bottom"
    for _ in range(50):
        deep = [deep]
    after = clean(
        error="GET http://u:p@h/?token=1 failed",
        domain="u:p@h",
        metadata={"token": 1, "list": ["/?token=1", {"secret": "x"}], "ok": True, "n": 3, "deep": deep},
    )
    assert after.error is not None
    assert blanked(after.error.encode()) == b"GET http://u:<>@h/?token=<> failed"
    assert after.domain is not None
    assert after.domain.endswith("]@h")
    assert after.metadata is not None
    assert blanked(json.dumps(after.metadata).encode()).startswith(
        b'{"token": "<>", "list": ["/?token=<>", {"secret": "<>"}], "ok": true, "n": 3'
    )
    assert "bottom" not in json.dumps(after.metadata)


def test_names_of_the_users_own_are_secrets_too() -> None:
    after = clean(redactor(names=("X-Internal-Id",)), request_head=head(b"x-internal-id: 7"), target="/?xInternalId=7")
    assert blanked(after.request_head) == head(b"x-internal-id: <>")
    assert "[redacted:configured:" in after.target


def test_redaction_that_is_off_changes_nothing() -> None:
    before = exchange(target="/?token=1", request_head=head(b"Cookie: a=b"))
    after = redactor(enabled=False).exchange(before)
    assert (after.target, after.request_head, after.missing) == (before.target, before.request_head, 0)


@pytest.mark.parametrize(
    "hostile",
    [
        b'"' * 200_000,
        b'"a' * 100_000,
        b'\\"' * 100_000,
        b'"password": "' + b"\\" * 200_000,
        b"<password " * 20_000,
        b"<a" * 100_000 + b"token",
        b"4" * 200_000,
        b"4 " * 100_000,
        b"?" * 200_000 + b"token=@",
        b"://" * 70_000 + b"@token",
        b"://a:" * 40_000 + b"token@",
        b"eyJ" * 70_000,
        b"eyJaaaaaaaa." * 17_000,
        b'form-data token name="a"\r\n' * 8_000,
        b'name="a" form-data\r\n' + b"pass: b\r\n" * 20_000,
        b"PRIVATE KEY-----" * 12_000,
        b"\n " * 100_000 + b"token",
    ],
)
def test_hostile_bodies_cost_time_in_proportion_to_their_size(hostile: bytes) -> None:
    body = Body(len(hostile), hostile, b"", None)
    began = time.process_time()
    response(b"", b"text/plain", body=body)
    clean(request_head=head(b"Cookie: " + hostile))
    assert time.process_time() - began < 2.0


@given(st.integers(10**11, 10**17))
def test_luhn_accepts_one_of_ten_check_digits(number: int) -> None:
    assert sum(luhn(b"%d%d" % (number, check)) for check in range(10)) == 1


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "redaction.key"
    key = load_key(path)
    assert load_key(path) == key
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["redaction.key"]


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "redaction.key"
    path.write_bytes(b"short")
    with pytest.raises(SettingsError, match="at least 32 bytes long, it has 5"):
        load_key(path)


def test_the_parts_of_an_exchange_that_are_text_are_all_passed_through() -> None:
    # A new field of Exchange must be looked at here: is it free text from a peer?
    assert set(Exchange._fields) - set(Redacted._fields) == {
        *("protocol", "method", "status", "status_code", "started_ns", "request_ended_ns", "first_byte_ns", "ended_ns"),
        *("request_bytes", "response_bytes", "violations"),
    }


OF_BYTES = b"application/octet-stream"


def test_text_of_an_undeclared_type_is_searched_even_with_terminal_colours() -> None:
    found = response(b"\x1b[1mbold\x1b[0m text around it\npassword=hunter2&x=1", OF_BYTES)
    assert b"hunter2" not in found.response.data


def test_random_bytes_that_happen_to_hold_no_nul_are_not_searched() -> None:
    noise = bytes(1 + number * 97 % 255 for number in range(64)) * 1000 + b"password=hunter2"
    assert response(noise, OF_BYTES).response.data == noise
