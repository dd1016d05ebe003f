"""Statistics: totals that add up, rankings that page, percentiles that are the data's."""

from datetime import timedelta
from statistics import quantiles
from typing import Any

import pytest

from tests.api.scene import NOW, Api

pytestmark = pytest.mark.postgres

WINDOW = {"from": (NOW - timedelta(hours=1)).isoformat(), "to": NOW.isoformat()}


async def pages(weir: Api, path: str, **parameters: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await weir.get(path, **parameters, **({"cursor": cursor} if cursor else {}))
        items += page["items"]
        cursor = page["next"]
        if cursor is None:
            return items


@pytest.mark.parametrize("prefix", ["", "/api/v1"])
async def test_domains_are_ranked_by_connections(weir: Api, prefix: str) -> None:
    found = await weir.get(f"{prefix}/stats/top-domains", **WINDOW)
    ranking = [(item["domain"], item["connections"]) for item in found["items"]]
    assert ranking == [("c.example.org", 40), ("a.example.com", 10), ("b.example.com", 10)]
    assert found["next"] is None
    assert sum(item["bytes_in"] for item in found["items"]) == sum(100 * (n + 1) for n in range(60))


@pytest.mark.parametrize("sort", ["connections", "exchanges", "bytes"])
@pytest.mark.parametrize("limit", [1, 2])
async def test_pages_of_a_ranking_are_the_ranking(weir: Api, sort: str, limit: int) -> None:
    for path in ("/stats/top-domains", "/stats/source-ips"):
        whole = (await weir.get(path, sort=sort, **WINDOW))["items"]
        assert await pages(weir, path, sort=sort, limit=limit, **WINDOW) == whole
        assert len(whole) == 3


async def test_sources_are_addresses_with_their_domains(weir: Api) -> None:
    found = {item["source_ip"]: item for item in (await weir.get("/stats/source-ips", **WINDOW))["items"]}
    assert set(found) == {"10.0.0.1", "10.0.0.2", "2001:db8::1"}
    assert {item["connections"] for item in found.values()} == {20}
    assert found["10.0.0.1"]["domains"] == 2


async def test_traffic_counts_every_bucket_even_the_empty_ones(weir: Api) -> None:
    found = await weir.get("/stats/traffic", bucket="1m", **WINDOW)
    assert found["bucket_seconds"] == 60
    assert len(found["items"]) in (60, 61)  # the hour need not begin with a minute
    assert sum(item["connections"] for item in found["items"]) == 60
    assert sum(item["exchanges"] for item in found["items"]) == 60
    assert sum(item["errors"] for item in found["items"]) == 6
    before = await weir.get("/stats/traffic", bucket="1h", **{"from": "2026-01-01", "to": "2026-01-02"})
    assert [item["connections"] for item in before["items"]] == [0] * 24


async def test_pages_of_traffic_are_the_whole_of_it(weir: Api) -> None:
    whole = (await weir.get("/stats/traffic", bucket="5m", **WINDOW))["items"]
    assert await pages(weir, "/stats/traffic", bucket="5m", limit=5, **WINDOW) == whole


async def test_a_bucket_is_chosen_by_the_window(weir: Api) -> None:
    assert (await weir.get("/stats/traffic", **WINDOW))["bucket_seconds"] == 60
    assert (await weir.get("/stats/traffic", **{"from": "-30d"}))["bucket_seconds"] == 6 * 3600


async def test_percentiles_are_those_of_the_data(weir: Api) -> None:
    (item,) = (await weir.get("/stats/latency", **WINDOW))["items"]
    cuts = quantiles(range(1, 61), n=100, method="inclusive")
    assert item["name"] is None
    assert item["count"] == 60
    assert (item["min_ms"], item["max_ms"], item["mean_ms"]) == (1.0, 60.0, pytest.approx(30.5))
    assert item["p50_ms"] == pytest.approx(cuts[49])
    assert item["p99_ms"] == pytest.approx(cuts[98])


@pytest.mark.parametrize("by", ["domain", "protocol", "listener", "server"])
async def test_latency_is_grouped(weir: Api, by: str) -> None:
    whole = (await weir.get("/stats/latency", by=by, **WINDOW))["items"]
    assert sum(item["count"] for item in whole) == 60
    assert await pages(weir, "/stats/latency", by=by, limit=1, **WINDOW) == whole


async def test_nothing_recorded_is_no_items(weir: Api) -> None:
    window = {"from": "2020-01-01", "to": "2020-01-02"}
    for path in ("top-domains", "source-ips", "latency"):
        assert await weir.get(f"/stats/{path}", **window) == {"items": [], "next": None}


async def test_a_cursor_continues_only_the_same_question(weir: Api) -> None:
    page = await weir.get("/stats/top-domains", limit=1, **WINDOW)
    await weir.refused(400, "/stats/top-domains", cursor=page["next"], sort="bytes")
    await weir.refused(400, "/stats/source-ips", cursor=page["next"])
    page = await weir.get("/stats/traffic", limit=1, bucket="1m", **WINDOW)
    await weir.refused(400, "/stats/traffic", cursor=page["next"], bucket="5m")


@pytest.mark.parametrize(
    "window",
    [
        {"from": "0001-01-01", "to": "9999-12-31"},
        {"to": "0001-01-01"},
        {"from": "9999-12-31"},
        {"from": "1969-12-31T23:59:59.999Z", "to": "1970-01-01"},
        {"from": "0001-01-01T00:00:00+23:59"},
    ],
)
async def test_the_ends_of_the_calendar_are_no_trouble(weir: Api, window: dict[str, str]) -> None:
    for path in ("/stats/top-domains", "/stats/traffic", "/stats/latency", "/api/v1/exchanges", "/api/v1/connections"):
        answer = await weir.http.get(path, params=window)
        assert answer.status_code in (200, 400), answer.text
