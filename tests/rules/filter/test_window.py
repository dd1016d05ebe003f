"""Conditions on time are windows of ids."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.identity import uuid7
from appliance.rules.filter import EXCHANGES, matcher, parse, window_of
from appliance.rules.filter.window import ALL

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "error", "not started_at > -1h", "error or started_at > -1h", "started_at != 2026-11-22"]
)
def test_a_filter_that_any_time_can_match_has_no_window(text: str) -> None:
    assert window_of(parse(text, EXCHANGES, NOW)) == ALL


moments = st.integers(-3_000_000, 3_000_000).map(lambda us: NOW + timedelta(microseconds=us))
comparison = st.builds(
    lambda op, at: f'started_at {op} "{at.isoformat()}"', st.sampled_from(["==", "<", "<=", ">", ">=", "in"]), moments
)
filters = st.recursive(
    comparison | st.just("error"),
    lambda inner: st.builds(lambda a, word, b: f"({a} {word} {b})", inner, st.sampled_from(["and", "or"]), inner),
    max_leaves=6,
)


@given(filters, st.integers(-4_000_000, 4_000_000), st.integers(0, 2**74 - 1))
def test_whatever_matches_is_inside_the_window(text: str, us: int, discriminator: int) -> None:
    started = NOW + timedelta(microseconds=us)
    expression = parse(text, EXCHANGES, NOW)
    identity = uuid7((started - EPOCH) // timedelta(microseconds=1) * 1000, discriminator)
    window = window_of(expression)
    if matcher(expression)({"started_at": started, "error": None}):
        assert window.low <= identity < window.high


def test_a_window_is_narrow() -> None:
    expression = parse("started_at >= -1h and started_at < now and error", EXCHANGES, NOW)
    low, high = window_of(expression)
    hour_ago = NOW - timedelta(hours=1)
    assert uuid7((hour_ago - EPOCH) // timedelta(milliseconds=1) * 1_000_000, 0) == low
    assert uuid7((NOW - EPOCH) // timedelta(milliseconds=1) * 1_000_000, 0) == high


def test_times_before_ids_began_are_no_trouble() -> None:
    low, high = window_of(parse("started_at > 1200-01-01 and started_at < 1300-01-01", EXCHANGES, NOW))
    assert low < high
