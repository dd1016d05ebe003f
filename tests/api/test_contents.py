"""What was said: heads in order and case, bodies decoded, and nothing that a browser could run."""

import base64
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest

from tests.api.scene import HTML, LONG, Api, Scene

pytestmark = pytest.mark.postgres


async def response(weir: Api, scene: Scene, name: str) -> Any:
    return await weir.get(f"/api/v1/exchanges/{scene.ids[name]}/response")


async def test_headers_keep_their_order_and_case(weir: Api, scene: Scene) -> None:
    said = await weir.get(f"/api/v1/exchanges/{scene.ids['html']}/request")
    assert said["start_line"] == "GET /page HTTP/1.1"
    assert [(h["name"], h["value"]) for h in said["headers"]] == [
        ("Host", "x.test"),
        ("accept", "*/*"),
        ("Accept", "text/html"),
    ]
    assert said["body"]["data"] == ""
    assert said["body"]["stored"] is True


async def test_folded_lines_are_joined_and_odd_lines_kept(weir: Api, scene: Scene) -> None:
    headers = (await response(weir, scene, "odd"))["headers"]
    assert {"name": "X-Folded", "value": "one two"} in headers
    assert {"name": "no colon", "value": ""} in headers


async def test_a_coded_body_is_shown_decoded(weir: Api, scene: Scene) -> None:
    body = (await response(weir, scene, "gzip"))["body"]
    assert (body["encoding"], body["decoded"], body["truncated"]) == ("text", "gzip", False)
    assert body["data"] == HTML.decode()
    assert body["length"] < len(HTML)


async def test_a_binary_body_is_base64(weir: Api, scene: Scene) -> None:
    body = (await response(weir, scene, "binary"))["body"]
    assert body["encoding"] == "base64"
    assert base64.b64decode(body["data"]) == bytes(range(256))
    asked = await weir.get(f"/api/v1/exchanges/{scene.ids['binary']}/request")
    assert asked["body"]["data"] == '{"a":1}'


async def test_a_truncated_body_says_what_is_missing(weir: Api, scene: Scene) -> None:
    body = (await response(weir, scene, "cut"))["body"]
    assert (body["length"], body["head"], body["tail"], body["truncated"]) == (1_000_000, 1000, 500, True)
    assert body["data"].encode() == LONG[:1000] + LONG[-500:]
    assert body["sha256"] == sha256(LONG).hexdigest()


async def test_no_body_is_an_empty_one(weir: Api, scene: Scene) -> None:
    body = (await response(weir, scene, "empty"))["body"]
    assert (body["data"], body["length"], body["truncated"], body["stored"]) == ("", 0, False, True)


async def test_a_stored_page_cannot_run_in_a_browser(weir: Api, scene: Scene) -> None:
    answer = await weir.http.get(f"/api/v1/exchanges/{scene.ids['html']}/response", params={"raw": "1"})
    assert answer.content == HTML
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_content_of_an_unknown_exchange_is_not_found(weir: Api) -> None:
    await weir.refused(404, f"/api/v1/exchanges/{uuid4()}/request")
    await weir.refused(404, f"/api/v1/exchanges/{uuid4()}/response", raw="1")
