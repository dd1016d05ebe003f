"""Every metric of Weir, declared once; plain counters to count them with; and their Prometheus text.

Each process owns a ``Registry``. Hot paths hold a ``Cell`` and do ``cell.value += 1``: no lock, no call. Once a second
the process sends ``snapshot()`` up its channel, and whoever answers ``GET /metrics`` gives all snapshots to ``render``,
which adds a ``process`` label. A metric's number of label combinations is bounded: what comes beyond is counted under
``other``, so that no client can grow our memory or somebody's Prometheus.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Snapshot = dict[str, float]

# Label combinations of one metric in one process; the next ones become ``other``.
MAX_SERIES = 256

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. Counters end in ``_total``; histograms have upper bounds, in seconds."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {}


def _declare(name: str, kind: Kind, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    metric = Metric(f"weir_{name}", kind, help, labels, buckets)
    if metric.name in METRICS:
        raise ValueError(f"metric {metric.name} is declared twice")
    METRICS[metric.name] = metric
    return metric


# Connections, counted by relays.
CONNECTIONS_OPENED = _declare("connections_opened_total", "counter", "Connections accepted.", "listener")
CONNECTIONS_CLOSED = _declare("connections_closed_total", "counter", "Connections ended, by why.", "listener", "end")
CONNECTIONS_ACTIVE = _declare("connections_active", "gauge", "Connections open now.", "listener")
BYTES = _declare("relayed_bytes_total", "counter", "Bytes relayed: to_server or to_client.", "direction")
DIAL_SECONDS = _declare("dial_seconds", "histogram", "Time to reach a server.", buckets=_FAST)
CONNECTION_SECONDS = _declare("connection_seconds", "histogram", "How long connections lasted.", buckets=_LONG)
LIMITED = _declare("limited_total", "counter", "Connections refused by a limit.", "kind")

# The tap ring: written by relays, read by inspectors.
RING_GAP_BYTES = _declare("ring_gap_bytes_total", "counter", "Bytes relayed but not copied: the ring was full.")
RING_GAP_CHUNKS = _declare("ring_gap_chunks_total", "counter", "Chunks relayed but not copied: the ring was full.")
RING_FILL = _declare("ring_fill_ratio", "gauge", "Part of the tap ring that is unread, 0 to 1.")

# Understanding, counted by inspectors.
INSPECTOR_LAG_BYTES = _declare("inspector_lag_bytes", "gauge", "Bytes in the ring that are not yet understood.")
INSPECTOR_LAG_SECONDS = _declare("inspector_lag_seconds", "gauge", "Age of the newest record that was understood.")
EXCHANGES = _declare("exchanges_total", "counter", "Exchanges understood.", "protocol", "status_class")
EXCHANGE_SECONDS = _declare(
    "exchange_seconds", "histogram", "Start of request to end of response.", "protocol", buckets=_FAST
)
INSPECTION_FAILURES = _declare(
    "inspection_failures_total", "counter", "Faults of ours: connections or rings given up while being understood."
)
VIOLATIONS = _declare("violations_total", "counter", "Deviations of peers from their protocol.", "protocol")
REDACTED = _declare("redacted_exchanges_total", "counter", "Exchanges with values replaced before storage.")

# Recording.
ROWS_WRITTEN = _declare("rows_written_total", "counter", "Rows made durable in the database.")
ROWS_SPOOLED = _declare("rows_spooled_total", "counter", "Rows written to the spool while the database was away.")
ROWS_LOST = _declare("rows_lost_total", "counter", "Rows that could neither be stored nor spooled.")
ROWS_PENDING = _declare("rows_pending", "gauge", "Rows that wait for their batch.")
SPOOL_BYTES = _declare("spool_bytes", "gauge", "Bytes in the spool.")
STORE_UP = _declare("store_up", "gauge", "1 while the database takes rows, 0 while rows are spooled or lost.")
STORE_LOSING = _declare("store_losing", "gauge", "1 while the database is away and the spool takes no more.")
BODIES_STORED = _declare("bodies_stored_total", "counter", "Bodies stored.")
BODY_BYTES = _declare("body_bytes_total", "counter", "Body bytes before (raw) and after (stored) packing.", "stage")

# The API.
API_REQUESTS = _declare("api_requests_total", "counter", "Requests answered by the API.", "status_class")
LIVE_CLIENTS = _declare("live_clients", "gauge", "Clients of the live feed.")
LIVE_SENT = _declare("live_sent_total", "counter", "Events sent to clients of the live feed.")
LIVE_DROPPED = _declare("live_dropped_total", "counter", "Events that a client or the API was too slow for.", "where")

# Every process.
CPU_SECONDS = _declare("process_cpu_seconds_total", "counter", "Processor time, user and system.")
RESIDENT_BYTES = _declare("process_resident_bytes", "gauge", "Resident memory.")
OPEN_FILES = _declare("process_open_files", "gauge", "Open file descriptors.")
LOOP_LAG_SECONDS = _declare("loop_lag_seconds", "gauge", "Longest delay of the event loop in the last second.")
UP = _declare("up", "gauge", "1 while the process is ready.")

# The supervisor.
RESTARTS = _declare("restarts_total", "counter", "Children that were started again.", "role")
RELOADS = _declare("reloads_total", "counter", "Configuration reloads, by result.", "result")
KERNEL_RULESET = _declare("kernel_ruleset_in_place", "gauge", "1 while the kernel sends us connections.")
INFO = _declare("info", "gauge", "Always 1; the version is a label.", "version")


class Cell:
    """One number. Hot paths change ``value`` directly."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts of values at or under each bound; the last count is of those above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Registry:
    """The numbers of one process."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, ...], Cell] = {}
        self._histograms: dict[tuple[str, ...], Histogram] = {}
        self._series: dict[str, int] = {}

    def cell(self, metric: Metric, *labels: str) -> Cell:
        """The number of a counter or gauge for these label values; the same object for the same values."""
        key = (metric.name, *labels)
        found = self._cells.get(key)
        if found is None:
            key = self._admit(metric, labels)
            found = self._cells.setdefault(key, Cell())
        return found

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The histogram for these label values."""
        key = (metric.name, *labels)
        found = self._histograms.get(key)
        if found is None:
            key = self._admit(metric, labels)
            found = self._histograms.setdefault(key, Histogram(metric.buckets))
        return found

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge, or a counter that is counted elsewhere."""
        self.cell(metric, *labels).value = value

    def add(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Add to a counter or gauge."""
        self.cell(metric, *labels).value += amount

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Count one value in a histogram."""
        self.histogram(metric, *labels).observe(value)

    def snapshot(self) -> Snapshot:
        """All numbers, keyed ``name|label=value,label=value``: what goes up the channel."""
        numbers: Snapshot = {}
        for (name, *values), cell in self._cells.items():
            numbers[_key(name, zip(METRICS[name].labels, values, strict=True))] = cell.value
        for (name, *values), histogram in self._histograms.items():
            labels = list(zip(METRICS[name].labels, values, strict=True))
            running = 0
            for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
                running += count
                numbers[_key(f"{name}_bucket", [*labels, ("le", _bound(bound))])] = running
            numbers[_key(f"{name}_sum", labels)] = histogram.sum
            numbers[_key(f"{name}_count", labels)] = running
        return numbers

    def _admit(self, metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, got {labels}")
        if METRICS.get(metric.name) is not metric:
            raise ValueError(f"{metric.name} is not declared in appliance.observe.metrics")
        count = self._series.get(metric.name, 0)
        if labels and count >= MAX_SERIES:
            return (metric.name, *("other" for _ in labels))
        self._series[metric.name] = count + 1
        return (metric.name, *labels)


def render(snapshots: Mapping[str, Snapshot]) -> bytes:
    """Prometheus text (format 0.0.4) of the snapshots of several processes, keyed by their ``process`` label.

    Names that are not declared here are left out: a snapshot comes from another process and may be of another version.
    """
    # Imported here: it takes 60 ms, and only the process that answers /metrics needs it.
    from prometheus_client import generate_latest
    from prometheus_client.metrics_core import Metric as Family
    from prometheus_client.registry import Collector

    class Collected(Collector):
        def collect(self) -> Iterator[Family]:
            families: dict[str, Family] = {}
            for process, snapshot in snapshots.items():
                for key, value in snapshot.items():
                    sample, labels = parse_key(key)
                    metric = _metric_of(sample)
                    if metric is None:
                        continue
                    family = families.get(metric.name)
                    if family is None:
                        plain = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
                        family = families[metric.name] = Family(plain, metric.help, metric.kind)
                    family.add_sample(sample, {"process": process, **labels}, value)
            for name in METRICS:
                if name in families:
                    yield families[name]

    # generate_latest only asks for collect(); a registry would add locks and checks for nothing.
    return generate_latest(Collected())


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def parse_key(key: str) -> tuple[str, dict[str, str]]:
    """The sample's name and labels of a snapshot's key."""
    name, _, rest = key.partition("|")
    labels = {}
    for pair in rest.split(",") if rest else ():
        label, _, value = pair.partition("=")
        labels[label] = _unescape(value)
    return name, labels


def _metric_of(sample: str) -> Metric | None:
    if sample in METRICS:
        return METRICS[sample]
    for suffix in ("_bucket", "_sum", "_count"):
        metric = METRICS.get(sample.removesuffix(suffix))
        if sample.endswith(suffix) and metric is not None and metric.kind == "histogram":
            return metric
    return None


def _key(name: str, labels: "zip[tuple[str, str]] | list[tuple[str, str]]") -> str:
    text = ",".join(f"{label}={_escape(value)}" for label, value in labels)
    return f"{name}|{text}" if text else name


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(bound)


def _escape(value: str) -> str:
    return value.replace("%", "%25").replace(",", "%2C").replace("=", "%3D").replace("|", "%7C")


def _unescape(value: str) -> str:
    return value.replace("%7C", "|").replace("%3D", "=").replace("%2C", ",").replace("%25", "%")
