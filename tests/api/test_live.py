"""The live feed: what inspectors bring reaches the clients that asked for it; nobody waits for anybody."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.api.live import Client, Event, Hub, Interest
from appliance.rules.filter import FilterError

NOW = datetime(2026, 11, 22, tzinfo=UTC)

EXCHANGE = {"id": "1", "connection_id": "2", "domain": "a.example.com", "status": "200", "client_address": "10.0.0.1"}
CONNECTION = {"id": "2", "source_ip": "10.0.0.1", "domain": "a.example.com", "end_reason": "closed"}


def everything() -> Interest:
    return Interest("", None, NOW)


async def next_of(client: Client) -> tuple[Event, int]:
    return await asyncio.wait_for(client.take(), 1)


async def nothing_waits(client: Client) -> bool:
    try:
        await asyncio.wait_for(client.take(), 0.02)
    except TimeoutError:
        return True
    return False


async def test_events_are_numbered_one_by_one() -> None:
    hub = Hub()
    client, complete = hub.join(everything())
    start = hub.seq
    hub.publish("exchange", EXCHANGE)
    hub.publish("connection", CONNECTION)
    assert complete
    assert [(await next_of(client))[0].seq for _ in range(2)] == [start + 1, start + 2]


@pytest.mark.parametrize(
    ("q", "kinds", "wanted"),
    [
        ("", None, {"exchange", "connection", "configuration"}),
        ("status == 200", None, {"exchange", "configuration"}),
        ("status == 404", None, {"configuration"}),
        ("end_reason == closed", None, {"connection", "configuration"}),
        ("domain == a.example.com", frozenset({"exchange"}), {"exchange"}),
        ("client_address in 10.0.0.0/8", None, {"exchange", "connection", "configuration"}),
    ],
)
async def test_a_client_gets_what_its_filter_asks_for(q: str, kinds: Any, wanted: set[str]) -> None:
    hub = Hub()
    client, _ = hub.join(Interest(q, kinds, NOW))
    hub.publish("exchange", EXCHANGE)
    hub.publish("connection", CONNECTION)
    hub.publish("configuration", {"what": "reloaded"})
    assert {(await next_of(client))[0].kind for _ in wanted} == wanted
    assert await nothing_waits(client)


def test_a_filter_that_fits_no_kind_is_an_error() -> None:
    with pytest.raises(FilterError):
        Interest("nonsense == 1", None, NOW)
    with pytest.raises(FilterError):
        Interest("status == 200", frozenset({"connection"}), NOW)


async def test_a_slow_client_loses_events_and_is_told_how_many() -> None:
    hub = Hub(room=2)
    slow, _ = hub.join(everything())
    quick, _ = hub.join(everything())
    got = []
    for number in range(5):
        hub.publish("exchange", EXCHANGE | {"id": str(number)})
        got.append((await next_of(quick))[1])
    assert got == [0] * 5
    assert [(await next_of(slow))[1] for _ in range(2)] == [0, 0]
    hub.publish("exchange", EXCHANGE)
    assert (await next_of(slow))[1] == 3


async def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    hub = Hub(history=3)
    client, _ = hub.join(everything())
    seen = hub.seq
    hub.leave(client)
    for number in range(3):
        hub.publish("exchange", EXCHANGE | {"id": str(number)})
    client, complete = hub.join(everything(), since=seen)
    assert complete
    assert [(await next_of(client))[0].item["id"] for _ in range(3)] == ["0", "1", "2"]
    hub.publish("exchange", EXCHANGE)
    _, complete = hub.join(everything(), since=seen)
    assert not complete
    _, complete = hub.join(everything(), since=hub.seq)
    assert complete


async def test_a_number_from_before_a_restart_is_not_complete() -> None:
    before = Hub()
    after = Hub()
    after._seq = before.seq + 1000
    _, complete = after.join(everything(), since=before.seq)
    assert not complete
    _, complete = after.join(everything(), since=after.seq + 5)
    assert not complete


async def test_what_cannot_be_filtered_is_not_shown_and_breaks_nothing() -> None:
    hub = Hub()
    client, _ = hub.join(Interest("latency_ms > 10", None, NOW))
    hub.publish("exchange", EXCHANGE | {"latency_ms": "nonsense"})
    hub.publish("exchange", EXCHANGE | {"latency_ms": 11.0})
    assert (await next_of(client))[0].item["latency_ms"] == 11.0
