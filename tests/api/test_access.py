"""Who may come in: tokens, and pages of other sites in a browser on this machine."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from appliance.api.settings import ApiSettings, is_loopback
from appliance.model.endpoint import Endpoint
from tests.api.scene import LOOPBACK, Api, api

OUTSIDE = replace(LOOPBACK, bind=(Endpoint("0.0.0.0", 8088),), tokens=("s3cret-token-of-16", "another-token-ä-16"))
NOWHERE = "postgresql://weir@/weir?host=/nonexistent"


async def status(settings: ApiSettings, path: str, client: str = "192.0.2.9", **headers: str) -> int:
    async with api(NOWHERE, settings, client) as made:
        answer = await made.http.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code


async def test_an_api_that_others_can_reach_asks_for_a_token() -> None:
    assert await status(OUTSIDE, "/api/v1/status") == 401
    assert await status(OUTSIDE, "/api/v1/status", authorization="Bearer wrong") == 401
    assert await status(OUTSIDE, "/api/v1/status", authorization="Basic s3cret-token-of-16") == 401
    assert await status(OUTSIDE, "/api/v1/status", authorization="Bearer ") == 401
    assert await status(OUTSIDE, "/api/v1/status", authorization="Bearer s3cret-token-of-16") == 200
    assert await status(OUTSIDE, "/api/v1/status", authorization="bearer  s3cret-token-of-16") == 200


async def test_monitoring_on_this_machine_needs_no_token() -> None:
    for path in ("/health", "/metrics"):
        assert await status(OUTSIDE, path, client="127.0.0.1") == 200
        assert await status(OUTSIDE, path, client="::ffff:127.0.0.1") == 200
        assert await status(OUTSIDE, path) == 401
    assert await status(OUTSIDE, "/api/docs", client="127.0.0.1") == 401


async def test_no_tokens_and_open_to_others_is_closed_to_all() -> None:
    assert await status(replace(OUTSIDE, tokens=()), "/api/v1/status", authorization="Bearer ") == 401


async def test_tokens_are_asked_for_on_loopback_too_once_there_are_any() -> None:
    assert await status(replace(LOOPBACK, tokens=("t" * 16,)), "/api/v1/status", client="127.0.0.1") == 401


async def test_on_loopback_nobody_needs_a_token() -> None:
    assert await status(LOOPBACK, "/api/v1/status", client="127.0.0.1") == 200


@pytest.mark.parametrize(
    "host", ["rebound.example.com", "rebound.example.com:8088", "localhost.evil.com", "[", "a@127.0.0.1.nip.io"]
)
async def test_a_name_that_was_rebound_to_us_is_refused(host: str) -> None:
    assert await status(LOOPBACK, "/api/v1/status", client="127.0.0.1", host=host) == 403


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8088", "weir.localhost:8088", "127.0.0.1", "[::1]:8088", "10.0.0.1:1"]
)
async def test_addresses_and_localhost_are_ours(host: str) -> None:
    assert await status(LOOPBACK, "/api/v1/status", client="127.0.0.1", host=host) == 200


async def test_pages_of_other_sites_are_refused() -> None:
    for origin in ("https://evil.example.com", "null", "http://127.0.0.1:9999", "http://localhost:8088"):
        assert await status(LOOPBACK, "/api/v1/status", "127.0.0.1", host="127.0.0.1:8088", origin=origin) == 403
    assert await status(LOOPBACK, "/api/v1/status", "127.0.0.1", host="[::1]:8088", origin="http://[::1]:8088") == 200


async def test_new_tokens_are_obeyed_at_once() -> None:
    async with api(NOWHERE, OUTSIDE, "192.0.2.9") as made:
        made.app.obey(replace(OUTSIDE, tokens=("fresh-token-of-16",)))
        for token, expected in (("s3cret-token-of-16", 401), ("fresh-token-of-16", 200)):
            answer = await made.http.get("/health", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == expected


async def test_every_answer_tells_browsers_to_trust_nothing(alone: Api) -> None:
    for path in ("/health", "/nowhere", "/api/v1/exchanges", "/api/docs"):
        headers = (await alone.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


async def test_every_write_is_one_line_of_the_audit_whether_it_was_allowed_or_not() -> None:
    async with api(NOWHERE, OUTSIDE, "192.0.2.9") as made:
        with capture_logs() as lines:
            await made.http.get("/api/v1/status")
            await made.http.post("/api/v1/reload")
            await made.http.post("/api/v1/reload", headers={"authorization": f"Bearer {OUTSIDE.tokens[0]}"})
    written = [line for line in lines if line["event"] == "api write"]
    assert [(line["method"], line["path"], line["client"]) for line in written] == [
        ("POST", "/api/v1/reload", "192.0.2.9")
    ] * 2
    assert written[0]["status"] == 401 and written[1]["status"] < 300
    assert OUTSIDE.tokens[0] not in str(lines)
