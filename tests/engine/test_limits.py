from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.limits import Limit, Limits, source_of
from appliance.engine.settings import LimitSettings
from appliance.model.connection import End

hosts = st.sampled_from(["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def unlimited(**changes) -> LimitSettings:
    nothing = {"max_connections": None, "per_source_connections": None, "per_source_rate": None}
    return LimitSettings(**(nothing | changes))


@given(
    st.lists(st.tuples(st.booleans(), hosts), max_size=80),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_counts_never_exceed_their_limits_and_never_leak(steps, everybody, each) -> None:
    limits = Limits(unlimited(max_connections=everybody, per_source_connections=each), Clock())
    admitted: list[str] = []
    for entering, host in steps:
        if entering:
            counts = Counter(map(source_of, admitted))
            expected = len(admitted) < everybody and counts[source_of(host)] < each
            assert (limits.admit(host) is None) is expected
            if expected:
                admitted.append(host)
        elif admitted:
            limits.release(admitted.pop())
        assert limits.open == len(admitted)
    for host in admitted:
        limits.release(host)
    assert limits.open == 0 and not limits._sources


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=200),
    st.floats(0.5, 50),
    st.integers(1, 20),
)
def test_no_window_lets_through_more_than_burst_and_rate(pauses, rate, burst) -> None:
    clock = Clock()
    limits = Limits(unlimited(per_source_rate=rate, per_source_burst=burst), clock)
    let_through: list[float] = []
    for pause in pauses:
        clock.now += pause
        if limits.admit("192.0.2.1") is None:
            let_through.append(clock.now)
    for first, start in enumerate(let_through):
        for last in range(first, len(let_through)):
            assert last - first + 1 <= burst + (let_through[last] - start) * rate + 1e-6


@given(st.floats(0.5, 50), st.integers(1, 20))
def test_a_source_that_keeps_to_its_rate_is_never_refused(rate, burst) -> None:
    clock = Clock()
    limits = Limits(unlimited(per_source_rate=rate, per_source_burst=burst), clock)
    for _ in range(100):
        assert limits.admit("192.0.2.1") is None
        clock.now += 1 / rate + 1e-9


@given(st.lists(st.ip_addresses().map(str), max_size=60))
def test_memory_is_bounded_however_many_sources_there_are(sources) -> None:
    limits = Limits(unlimited(per_source_rate=1.0), Clock(), max_buckets=10)
    for source in sources:
        if limits.admit(source) is None:
            limits.release(source)
    assert len(limits._buckets) <= 10 and not limits._sources


def test_it_says_which_limit_was_reached() -> None:
    limits = Limits(LimitSettings(max_connections=2, per_source_connections=1, per_source_rate=None), Clock())
    assert limits.admit("192.0.2.1") is None
    assert limits.admit("192.0.2.1") is End.LIMITED
    assert limits.reached is Limit.PER_SOURCE_CONNECTIONS
    assert limits.admit("192.0.2.2") is None
    assert limits.admit("192.0.2.3") is End.LIMITED
    assert limits.reached is Limit.MAX_CONNECTIONS
    assert limits.refused == {Limit.MAX_CONNECTIONS: 1, Limit.PER_SOURCE_CONNECTIONS: 1, Limit.PER_SOURCE_RATE: 0}


def test_a_refused_connection_takes_no_count_and_no_other_sources_tokens() -> None:
    limits = Limits(unlimited(per_source_rate=1.0, per_source_burst=1), Clock())
    assert limits.admit("192.0.2.1") is None
    assert limits.admit("192.0.2.1") is End.LIMITED
    assert limits.admit("192.0.2.2") is None
    assert limits.open == 2
