"""What is a filter, what is not, and how the difference is told."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.rules.filter import CONNECTIONS, EXCHANGES, FilterError, matcher, parse

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

RECORD = {
    "id": "019a0000-0000-7000-8000-000000000001",
    "started_at": "2026-11-22T11:30:00Z",
    "protocol": "http/1.1",
    "client_address": "10.1.2.3",
    "client_port": 40000,
    "server_address": "2001:db8::7",
    "server_port": 443,
    "domain": "api.example.com",
    "method": "GET",
    "target": "/api/v1/users?id=7",
    "status": "404",
    "latency_ms": 120.5,
    "request_bytes": 100,
    "response_bytes": 10240,
    "error": None,
    "completeness": "response-truncated,redacted",
    "tls": {"sni": "api.example.com", "version": "1.3", "alpn": None},
    "tags": ["slow"],
}


def says(text: str) -> bool:
    return matcher(parse(text, EXCHANGES, NOW))(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "domain == api.example.com",
        'domain = "api.example.com"',
        "domain ~ *.example.com",
        "domain ~ a??.*.com",
        "target ~ /api/*",
        'target ~ "/api/v1/users\\?id=7"',
        'target contains "id=7"',
        "target startswith /api",
        "target not contains admin",
        "domain < b and domain > a",
        "status == 404",
        "status >= 400 and status < 500",
        "status ~ 4*",
        "status in (200, 404)",
        "status not in (200, 301)",
        "client_address in 10.0.0.0/8",
        "client_address == 10.1.2.3",
        "server_address in (192.0.2.0/24, 2001:db8::/32)",
        "server_port in (80, 443)",
        "latency_ms > 100",
        "latency_ms > 100ms",
        "latency_ms < 0.2s",
        "response_bytes == 10KiB",
        "response_bytes >= 10kB",
        "started_at > -1h",
        "started_at < now",
        "started_at >= 2026-11-22T12:30:00+01:00",
        "started_at > 2026-11-22",
        "completeness contains redacted",
        "completeness == 'redacted,response-truncated'",
        "not completeness == complete",
        "tls and tls.sni == api.example.com and not tls.alpn",
        "tags contains slow",
        "not error",
        "! error && (method == GET || method == POST)",
        "NOT error AND method == GET",
        "error != timeout",
        "id == 019A0000-0000-7000-8000-000000000001",
        "not not domain",
        "method == GET or error and error",
        "dest_port == 443",
        "method in GET",
    ],
)
def test_a_filter_means_what_it_says(text: str) -> None:
    assert says(text)


@pytest.mark.parametrize(
    "text",
    [
        "error",
        "error == x",
        "error < zzz",
        "domain == API.example.com",
        "domain ~ example",
        "status == 40",
        "status > 404",
        "tls.ja4 ~ *",
        "client_address in ::/0",
        "tags contains slo",
        "completeness == complete",
        "(method == GET or method == PUT) and error",
        "not (method == GET)",
        "started_at > now",
    ],
)
def test_what_does_not_hold_is_false(text: str) -> None:
    assert not says(text)


@pytest.mark.parametrize(
    ("text", "column", "said"),
    [
        ("domian == x", 1, "did you mean domain?"),
        ("domain ==", 10, "expected a value"),
        ("domain == x y", 13, "join conditions with and / or"),
        ("domain == x)", 12, "nothing is open"),
        ("(domain == x", 1, "never closed"),
        ("domain in (a, b", 11, "never closed"),
        ("domain == 'x", 11, "never closed"),
        ("domain == a & error", 13, "write &&"),
        ("client_address == 10.0.0.0/8", 16, "write in"),
        ("client_address ~ 10.*", 16, "it takes: ==, !=, in"),
        ("client_address == example.com", 19, "is not an address"),
        ("client_port == http", 16, "whole number"),
        ("client_port == 99999999999999999999", 16, "too large"),
        ("latency_ms > fast", 14, "is not a duration"),
        ("response_bytes > 1.5", 18, "fraction"),
        ("response_bytes > 10 KiB", 21, "and / or"),
        ("started_at > yesterday", 14, "is not a time"),
        ("started_at > -999999999999d", 14, "is not a time"),
        ("status > ok", 10, "not a number"),
        ("completeness == redactd", 17, "did you mean redacted?"),
        ("completeness contains complete", 23, "completeness == complete"),
        ("summary ~ *", 1, "ask for method"),
        ("tls == 1", 5, "only whether it exists"),
        ("tags == slow", 6, "it takes: contains"),
        ('"hello"', 1, "begins with a field"),
        ("and", 1, "no field"),
        ("not", 4, "expected a field"),
        ('domain == "a\0b"', 11, "NUL"),
        ("a" * 5000, 4097, "at most 4096"),
        ("(" * 100 + "error", 34, "nested deeper"),
        ("not " * 100 + "error", 133, "nested deeper"),
        (" or ".join(["error"] * 300), 2305, "more than 256"),
    ],
)
def test_an_error_says_where_and_what_to_do(text: str, column: int, said: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text, EXCHANGES, NOW)
    told = str(caught.value)
    assert told.startswith(f"column {column}:"), told
    assert said in told
    *_, shown, caret = told.split("\n")
    assert caret.endswith("^")
    assert len(caret) <= len(shown) + 1


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "domain",
                "status",
                "tls.sni",
                "started_at",
                "==",
                "!=",
                "<",
                "~",
                "in",
                "(",
                ")",
                ",",
                "'a'",
                "1",
                "10.0.0.0/8",
                "not",
                "and",
                "or",
                "contains",
                "-1h",
            ]
        )
    ).map(" ".join)
)
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    for fields in (EXCHANGES, CONNECTIONS):
        try:
            matches = matcher(parse(text, fields, NOW))
        except FilterError as error:
            assert str(error)
        else:
            assert matches(RECORD if fields is EXCHANGES else {}) in (True, False)


def test_the_examples_of_the_documentation_are_filters() -> None:
    text = (Path(__file__).parents[3] / "docs" / "filter-language.md").read_text()
    examples = [line for line in text.split("```")[1].split("\n") if line]
    assert len(examples) == 3
    for example in examples:
        parse(example, EXCHANGES, NOW)
    mistake = text.split("## Mistakes")[1].split("```")[1].strip()
    with pytest.raises(FilterError) as caught:
        parse(mistake.split("\n")[1].strip(), EXCHANGES, NOW)
    assert str(caught.value) == mistake


def test_every_field_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "filter-language.md").read_text()
    for fields in (EXCHANGES, CONNECTIONS):
        for name in fields.names:
            assert f"`{name}`" in text, name


def test_connections_answer_to_the_names_of_exchanges_too() -> None:
    matches = matcher(parse("client_address in 10.0.0.0/8 and started_at > -1h", CONNECTIONS, NOW))
    assert matches({"source_ip": "10.9.9.9", "timestamp": NOW - timedelta(minutes=1)})
    assert not matches({"source_ip": "192.0.2.1", "timestamp": NOW - timedelta(minutes=1)})
