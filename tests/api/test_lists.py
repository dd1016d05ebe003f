"""Connections and exchanges: filtered, paged, single."""

from datetime import timedelta
from uuid import uuid4

import pytest

from appliance.model.exchange import Missing
from tests.api.scene import NOW, Api, Scene

pytestmark = pytest.mark.postgres

CONTRACT = set(
    "id connection_id started_at protocol client_address client_port server_address server_port domain listener"  # noqa: SIM905
    " method target status summary latency_ms request_bytes response_bytes error completeness tls tags".split()
)


async def test_an_exchange_has_the_fields_of_the_contract(weir: Api, scene: Scene) -> None:
    (item,) = (await weir.get("/api/v1/exchanges", q=f"id == {scene.exchanges[10]}"))["items"]
    assert set(item) >= CONTRACT
    assert item["summary"] == "GET c.example.org/items/10 → 502"
    assert item["client_address"] == "10.0.0.2"
    assert item["latency_ms"] == pytest.approx(11.0)
    assert item["first_byte_ms"] == pytest.approx(5.5)
    assert item["completeness"] == "complete"
    assert item["tls"] is None
    assert item["tags"] == []
    assert item["started_at"] == (NOW - timedelta(minutes=10, seconds=1)).isoformat().replace("+00:00", "Z")


async def test_pages_hold_every_exchange_once_newest_first(weir: Api, scene: Scene) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        more = {"cursor": cursor} if cursor else {}
        page = await weir.get("/api/v1/exchanges", q="domain ~ *.example.*", limit=7, **more)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
        assert len(page["items"]) == 7
    assert seen == [str(id) for id in scene.exchanges]


async def test_rows_that_arrive_while_paging_do_not_shift_the_pages(weir: Api, scene: Scene) -> None:
    first = await weir.get("/api/v1/connections", limit=5)
    again = await weir.get("/api/v1/connections", limit=5, cursor=first["next"])
    assert [item["id"] for item in again["items"]] == [str(id) for id in scene.connections[5:10]]


@pytest.mark.parametrize(
    ("q", "count"),
    [
        ("status >= 500 and domain ~ *.example.*", 6),
        ("client_address in 10.0.0.0/8 and domain ~ *.example.*", 40),
        ("target == /items/7", 1),
        ("latency_ms > 50ms", 10),
        ("started_at > -10m and domain", 10),
        ("error", 1),
        ("completeness contains response-truncated", 1),
        ("domain == a.example.com and status == 502", 2),
        ("", 66),
    ],
)
async def test_a_filter_finds_what_it_says(weir: Api, q: str, count: int) -> None:
    assert len((await weir.get("/api/v1/exchanges", q=q))["items"]) == count


async def test_a_window_is_half_open(weir: Api, scene: Scene) -> None:
    at = NOW - timedelta(minutes=5, seconds=1)
    inside = await weir.get(
        "/api/v1/exchanges", **{"from": at.isoformat(), "to": (at + timedelta(minutes=1)).isoformat()}
    )
    assert [item["id"] for item in inside["items"]] == [str(scene.exchanges[5])]
    recent = await weir.get("/api/v1/exchanges", **{"from": "-5m"})
    assert len(recent["items"]) <= 5


async def test_a_connection_has_the_columns_of_its_table(weir: Api, scene: Scene) -> None:
    item = await weir.get(f"/api/v1/connections/{scene.connections[3]}")
    assert (item["source_ip"], item["source_port"], item["dest_ip"], item["dest_port"]) == (
        "10.0.0.1",
        40003,
        "192.0.2.80",
        80,
    )
    assert (item["bytes_in"], item["bytes_out"], item["exchanges"]) == (400, 1000, 1)
    assert (item["latency_ms"], item["duration_ms"], item["end_reason"]) == (2.0, 1000.0, "closed")
    assert (item["path"], item["listener"], item["domain_source"]) == ("relay", "transparent", "host")


async def test_an_open_connection_has_no_end(weir: Api) -> None:
    (item,) = (await weir.get("/api/v1/connections", q="not end_reason"))["items"]
    assert item["duration_ms"] is None


async def test_a_detail_has_what_the_list_has_and_the_metadata(weir: Api, scene: Scene) -> None:
    (listed,) = (await weir.get("/api/v1/exchanges", q=f"id == {scene.ids['cut']}"))["items"]
    detail = await weir.get(f"/api/v1/exchanges/{scene.ids['cut']}")
    metadata = detail.pop("metadata")
    assert detail == listed
    assert metadata["response_body"]["length"] == 1_000_000
    assert listed["completeness"] == Missing.RESPONSE_TRUNCATED.name.lower().replace("_", "-")


@pytest.mark.parametrize("kind", ["connections", "exchanges"])
async def test_an_unknown_id_is_not_found(weir: Api, kind: str) -> None:
    problem = await weir.refused(404, f"/api/v1/{kind}/{uuid4()}")
    assert "is recorded" in problem["detail"]
    await weir.refused(404, f"/api/v1/{kind}/nonsense")


async def test_a_summary_is_one_line_whatever_was_asked(weir: Api, scene: Scene) -> None:
    item = await weir.get(f"/api/v1/exchanges/{scene.ids['odd']}")
    assert item["summary"] == "GET x.test/··<b> → 502"
    assert item["target"] == "/\r\n<b>"


@pytest.mark.parametrize(
    "cursor", ["x", "AAAA", "", "....", "WyJjb25uZWN0aW9ucyIsIngiXQ", "é", "W10", "bnVsbA", "WyJleGNoYW5nZXMiLDFd"]
)
async def test_a_cursor_that_was_not_given_out_is_refused(weir: Api, cursor: str) -> None:
    problem = await weir.refused(400, "/api/v1/exchanges", cursor=cursor)
    assert problem["errors"][0]["name"] == "cursor"


async def test_a_cursor_of_another_list_is_refused(weir: Api) -> None:
    page = await weir.get("/api/v1/connections", limit=1)
    await weir.refused(400, "/api/v1/exchanges", cursor=page["next"])


async def test_a_faulty_filter_is_shown_where_it_is_wrong(weir: Api) -> None:
    problem = await weir.refused(400, "/api/v1/exchanges", q="domian == x")
    assert problem["type"] == "urn:weir:problem:filter"
    assert problem["position"] == 0
    assert problem["hint"] == "did you mean domain?"


async def test_every_wrong_parameter_is_named(weir: Api) -> None:
    problem = await weir.refused(400, "/api/v1/exchanges", limit=0)
    assert problem["errors"][0]["name"] == "limit"
    problem = await weir.refused(400, "/api/v1/exchanges", **{"from": "soon"})
    assert problem["errors"][0]["name"] == "from"
    problem = await weir.refused(400, "/api/v1/exchanges", **{"from": "now", "to": "-1h"})
    assert "later" in problem["detail"]
    problem = await weir.refused(400, "/api/v1/exchanges", limt=3)
    assert "did you mean limit?" in problem["detail"]
