import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.app.config.values import bind_address, duration, endpoint, network, rate, show_duration, show_size, size


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604800), ("10s", 10), ("100ms", 0.1), ("1.5h", 5400), (3, 3), ("0", 0), (" 2 m ", 120)]
)
def test_durations(text: object, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "count"), [("10MB", 10 << 20), ("1KB", 1024), ("512", 512), ("2GiB", 2 << 30), (7, 7)]
)
def test_sizes(text: object, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize(("text", "per_second"), [("200/s", 200), ("3000/m", 50), (5, 5), ("7", 7), ("36/h", 0.01)])
def test_rates(text: object, per_second: float) -> None:
    assert rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize("read", [duration, size, rate])
@pytest.mark.parametrize("text", ["", "x", "10 parsecs", "-1", "1e3", True, None, [], float("nan"), -2, "9" * 40, "1/"])
def test_what_is_no_number_is_refused_in_words(read: object, text: object) -> None:
    with pytest.raises(ValueError, match=r"is not|out of range"):
        read(text)  # type: ignore[operator]


@given(st.integers(0, 10**9).map(lambda ms: ms / 1000))
def test_a_duration_that_is_shown_reads_back_the_same(seconds: float) -> None:
    assert duration(show_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.integers(0, 1 << 50))
def test_a_size_that_is_shown_reads_back_the_same(count: int) -> None:
    assert size(show_size(count)) == count


def test_addresses() -> None:
    assert bind_address("0.0.0.0:1080") == ("0.0.0.0:1080",)
    assert bind_address([":80", "[::1]:81"]) == ("[::]:80", "[::1]:81")
    assert endpoint("backend:80") == "backend:80"
    assert network("192.0.2.1/24") == "192.0.2.0/24"
    for wrong in ("0.0.0.0", "::1:80", "name:80", [], 80, "127.0.0.1:99999", None):
        with pytest.raises(ValueError, match=r"."):
            bind_address(wrong)
