from typing import Any

import pytest

from tests.bench.measure import Sample
from tests.bench.report import document, lines, markdown, replace_between, verdicts
from tests.bench.suites import HTTP

MACHINE = {
    "date": "2026-01-01",
    "cpus": 2,
    "cpu": "x",
    "kernel": "6",
    "rounds": 3,
    "seconds": 1,
    "versions": {"wrk": "4"},
}


def sample(contender: str, load: str = "keep-alive", requests: int = 100, p50: float = 10.0, **more: Any) -> Sample:
    facts: dict[str, Any] = {"seconds": 1.0, "bytes": 0, "p99_us": 1.0, "errors": 0, "cpu_seconds": 0.5} | more
    return Sample(contender=contender, load=load, requests=requests, p50_us=p50, **facts)


SAMPLES = [
    *(sample("plain routing", "one connection", p50=20.0) for _ in range(3)),
    *(sample("HAProxy http", "one connection", p50=120.0) for _ in range(3)),
    *(sample("Weir, recorded", "one connection", p50=130.0, stored=100) for _ in range(3)),
    *(sample("HAProxy http", requests=count) for count in (1000, 2000, 9000)),
    *(sample("Weir, recorded", requests=count, stored=count) for count in (800, 1000, 900)),
    *(sample("mitmproxy, flows written", requests=10) for _ in range(3)),
]


def test_the_middle_of_the_rounds_counts_and_ratios_are_taken_from_it() -> None:
    held = {verdict.name: verdict for verdict in verdicts(HTTP, SAMPLES)}
    assert held["requests/s vs HAProxy http"].got == 0.45
    assert held["requests/s vs HAProxy http"].held
    assert held["requests/s vs mitmproxy"].got == 90.0


def test_added_latency_is_what_comes_on_top_of_plain_routing() -> None:
    (added,) = [verdict for verdict in verdicts(HTTP, SAMPLES) if verdict.at_most]
    assert added.got == 1.1
    assert added.held


def test_a_request_counts_once_its_row_is_stored() -> None:
    assert sample("Weir, recorded", requests=1000, settle_seconds=1.0).rate == 500.0


def test_a_floor_whose_contender_was_left_out_is_not_judged() -> None:
    assert (
        verdicts(HTTP, [one for one in SAMPLES if one.contender != "HAProxy http"])[0].name == "requests/s vs mitmproxy"
    )


def test_losses_and_missed_floors_stand_out_in_the_tables() -> None:
    worse = [sample("Weir, recorded", requests=10, stored=9, lost=1) if s.contender[0] == "W" else s for s in SAMPLES]
    text = markdown(HTTP, worse, MACHINE)
    assert "**3 lost**" in text or "**6 lost**" in text
    assert "**no**" in text


def test_the_document_keeps_every_round() -> None:
    (line,) = [one for one in lines(SAMPLES) if (one.load, one.contender) == ("keep-alive", "HAProxy http")]
    assert line.values == (1000.0, 2000.0, 9000.0)
    assert document(HTTP, SAMPLES, MACHINE)["floors"]


def test_only_what_is_between_the_markers_is_replaced() -> None:
    text = "before\n<!-- bench:http -->old<!-- /bench:http -->\nafter"
    assert (
        replace_between(text, "http", r"new \1")
        == "before\n<!-- bench:http -->\n\nnew \\1\n\n<!-- /bench:http -->\nafter"
    )
    with pytest.raises(ValueError, match="bench:relay"):
        replace_between(text, "relay", "new")
