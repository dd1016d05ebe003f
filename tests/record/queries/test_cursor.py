"""Cursors come back as they went out, or are refused."""

from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.record.queries.cursor import CursorError, decode, encode


class Place(NamedTuple):
    at: datetime
    rank: int
    name: str


@given(st.uuids())
def test_an_id_comes_back(id: UUID) -> None:
    assert decode("list", encode("list", id), UUID) == id


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-(2**63), 2**63 - 1), st.text())
def test_a_place_comes_back(at: datetime, rank: int, name: str) -> None:
    place = Place(at, rank, name)
    assert decode("list", encode("list", place), Place) == place


@given(st.text() | st.binary().map(lambda data: encode("other", data.hex())))
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(CursorError):
        decode("list", token, UUID)
