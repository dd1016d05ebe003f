"""Health, readiness, numbers, reload; and what is said when something is away."""

from typing import Any

import pytest

from tests.api.scene import Api, Scene


@pytest.mark.postgres
async def test_ready_when_everything_is_in_place(weir: Api) -> None:
    found = await weir.get("/ready")
    assert found["ready"] is True
    assert set(found["checks"]) == {"listeners", "ruleset", "store"}


@pytest.mark.postgres
@pytest.mark.parametrize("missing", ["listeners", "ruleset"])
async def test_not_ready_names_what_is_missing(weir: Api, missing: str) -> None:
    weir.engine.told["checks"][missing] = {"ok": False, "detail": "gone"}
    problem = await weir.refused(503, "/ready")
    assert problem["errors"] == [{"name": missing, "reason": "gone"}]
    del weir.engine.told["checks"][missing]
    problem = await weir.refused(503, "/ready")
    assert problem["errors"][0]["name"] == missing


@pytest.mark.postgres
async def test_a_supervisor_that_stops_is_not_ready(weir: Api) -> None:
    weir.engine.told |= {"ready": False, "state": "stopping"}
    assert "stopping" in (await weir.refused(503, "/ready"))["detail"]


async def test_spooling_is_ready_and_says_so(alone: Api) -> None:
    alone.engine.told["checks"]["store"] = {"ok": True, "detail": "database away: rows are spooled"}
    found = await alone.get("/ready")
    assert found["checks"]["store"]["ok"] is True
    assert "spooled" in found["checks"]["store"]["detail"]


async def test_without_a_database_and_without_a_spool_it_is_not_ready(alone: Api) -> None:
    assert "store" in (await alone.refused(503, "/ready"))["detail"]


async def test_health_asks_nobody(alone: Api) -> None:
    alone.engine.away = True
    assert await alone.get("/health") == {"status": "ok"}


async def test_metrics_are_those_of_every_process(alone: Api) -> None:
    answer = await alone.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'weir_connections_opened_total{listener="socks5",process="relay-0"} 3.0' in answer.text


async def test_an_engine_that_is_away_is_told(alone: Api) -> None:
    alone.engine.away = True
    assert (await alone.refused(503, "/metrics"))["type"] == "urn:weir:problem:engine-away"
    found = await alone.get("/api/v1/status")
    assert found["ready"] is False
    assert found["checks"]["engine"]["ok"] is False


async def test_reload_tells_what_changed_and_what_waits(alone: Api) -> None:
    answer = await alone.http.post("/api/v1/reload")
    assert answer.json() == {"changed": ["logging.level"], "needs_restart": ["proxy.mode"], "warnings": []}
    alone.engine.refusal = "weir.yaml:3:1: error: proxy.mode: …"
    problem = await alone.refused(409, "/api/v1/reload", "POST")
    assert problem["detail"] == alone.engine.refusal


PATHS = [
    "/api/v1/exchanges",
    "/api/v1/connections",
    "/api/v1/exchanges/019a0000-0000-7000-8000-000000000001",
    "/api/v1/exchanges/019a0000-0000-7000-8000-000000000001/request",
    "/api/v1/connections/019a0000-0000-7000-8000-000000000001",
    "/stats/top-domains",
    "/stats/traffic",
    "/stats/latency",
    "/stats/source-ips",
]


@pytest.mark.parametrize("path", PATHS)
async def test_a_database_that_is_away_is_a_503_that_says_what_to_do(alone: Api, path: str) -> None:
    problem = await alone.refused(503, path)
    assert problem["type"] == "urn:weir:problem:store-away"
    assert "spool" in problem["detail"]
    assert "weir status" in problem["detail"]


@pytest.mark.postgres
async def test_a_query_that_takes_too_long_says_how_to_narrow_it(weir: Api, monkeypatch: Any, scene: Scene) -> None:
    async with weir.reader.session() as session:
        await session.execute("SET statement_timeout = 1")
        monkeypatch.setattr(
            "appliance.record.queries.lists._EXCHANGES",
            "SELECT pg_sleep(5), $1::uuid, $2::uuid, $3::int WHERE {condition}",
        )
        from appliance.record.queries.lists import Wanted, exchanges
        from appliance.record.queries.reader import TookTooLong
        from appliance.rules.filter import EVERYTHING
        from appliance.rules.filter.window import ALL
    with pytest.raises(TookTooLong):
        async with weir.reader.session() as session:
            await session.execute("SET statement_timeout = 50")
            await exchanges(session, Wanted(EVERYTHING, ALL, 1))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/health", 405),
        ("DELETE", "/api/v1/exchanges", 405),
        ("GET", "/api/v1/reload", 405),
    ],
)
async def test_what_does_not_exist_is_a_problem_too(alone: Api, method: str, path: str, status: int) -> None:
    await alone.refused(status, path, method)


async def test_head_is_get_without_a_body(alone: Api) -> None:
    assert (await alone.http.head("/health")).status_code == 200


async def test_our_own_failure_is_a_500_that_tells_nothing(alone: Api, monkeypatch: Any) -> None:
    async def broken() -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(alone.engine, "metrics", broken)
    problem = await alone.refused(500, "/metrics")
    assert "secret" not in str(problem)


async def test_the_documentation_needs_nothing_from_elsewhere(alone: Api) -> None:
    page = (await alone.http.get("/api/docs")).text
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    for path in ("/api/v1/exchanges", "/stats/latency", "/ready"):
        assert path in page
    document = await alone.get("/api/openapi.json")
    assert document["openapi"].startswith("3.1")
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["description"]
            assert {"401", "403", "500"} <= set(operation["responses"])
