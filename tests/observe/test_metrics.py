from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from appliance.observe import metrics
from appliance.observe.metrics import Metric, Registry, parse_key, render


def test_every_metric_has_our_prefix_a_help_and_a_counter_s_name_ends_in_total() -> None:
    for name, metric in metrics.METRICS.items():
        assert name == metric.name and name.startswith("weir_")
        assert metric.help.endswith(".")
        assert (metric.kind == "counter") == name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)


def test_prometheus_reads_what_is_rendered_from_several_processes() -> None:
    first, second = Registry(), Registry()
    first.cell(metrics.CONNECTIONS_OPENED, "socks").value += 3
    first.set(metrics.RING_FILL, 0.25)
    second.add(metrics.CONNECTIONS_OPENED, 4, "socks")
    for value in (0.0001, 0.3, 99.0):
        second.observe(metrics.DIAL_SECONDS, value)
    text = render({"relay-0": first.snapshot(), "relay-1": second.snapshot()}).decode()

    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    opened = "weir_connections_opened_total"
    assert samples[opened, ("listener", "socks"), ("process", "relay-0")] == 3
    assert samples[opened, ("listener", "socks"), ("process", "relay-1")] == 4
    assert samples["weir_ring_fill_ratio", ("process", "relay-0")] == 0.25
    bucket = "weir_dial_seconds_bucket"
    assert samples[bucket, ("le", "0.0005"), ("process", "relay-1")] == 1
    assert samples[bucket, ("le", "0.5"), ("process", "relay-1")] == 2
    assert samples[bucket, ("le", "+Inf"), ("process", "relay-1")] == 3
    assert samples["weir_dial_seconds_count", ("process", "relay-1")] == 3
    assert samples["weir_dial_seconds_sum", ("process", "relay-1")] == pytest.approx(99.3001)


@given(st.text(max_size=40), st.text(max_size=40))
def test_label_values_survive_the_key_whatever_they_contain(listener: str, end: str) -> None:
    registry = Registry()
    registry.add(metrics.CONNECTIONS_CLOSED, 1, listener, end)
    [key] = registry.snapshot()
    assert parse_key(key) == ("weir_connections_closed_total", {"listener": listener, "end": end})


def test_label_combinations_beyond_the_bound_are_counted_as_other() -> None:
    registry = Registry()
    for number in range(metrics.MAX_SERIES + 50):
        registry.add(metrics.VIOLATIONS, 1, f"protocol-{number}")
    snapshot = registry.snapshot()
    assert len(snapshot) == metrics.MAX_SERIES + 1
    assert snapshot["weir_violations_total|protocol=other"] == 50
    assert sum(snapshot.values()) == metrics.MAX_SERIES + 50


def test_an_undeclared_metric_and_missing_labels_are_refused() -> None:
    registry = Registry()
    with pytest.raises(ValueError, match="not declared"):
        registry.add(Metric("weir_invented_total", "counter", "Nobody declared this."))
    with pytest.raises(ValueError, match="labels"):
        registry.add(metrics.CONNECTIONS_CLOSED, 1, "socks")


def test_samples_of_unknown_names_are_left_out() -> None:
    assert b"stranger" not in render({"relay-0": {"weir_stranger_total": 1.0, "weir_up": 1.0}})


def test_every_declared_metric_is_counted_somewhere() -> None:
    house = Path(metrics.__file__).parents[1]
    sources = "".join(file.read_text() for file in house.rglob("*.py"))
    names = [name for name, value in vars(metrics).items() if isinstance(value, Metric)]
    assert len(names) == len(metrics.METRICS)
    assert [name for name in names if f"metrics.{name}" not in sources] == []
