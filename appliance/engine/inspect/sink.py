"""Where what was understood goes: the recorder first, then the counters, and the live feed if anybody watches."""

from datetime import datetime
from uuid import UUID

from appliance.engine.inspect.live import LiveFeed
from appliance.model.connection import Connection, ConnectionRecord
from appliance.model.exchange import Exchange, Missing, completeness
from appliance.observe import metrics
from appliance.record.queries import documents
from appliance.record.recorder import Recorder, State
from appliance.record.redact import Redacted


class RecordingSink:
    """One inspector's sink. What the live feed shows went through the same redaction as what is stored."""

    def __init__(self, recorder: Recorder, live: LiveFeed, registry: metrics.Registry) -> None:
        self._recorder = recorder
        self._live = live
        self._registry = registry
        self._exchanges: dict[tuple[str, int], metrics.Cell] = {}
        self._seconds: dict[str, metrics.Histogram] = {}

    def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> None:
        """One finished exchange."""
        clean = self._recorder.exchange(exchange, connection, id)
        key = (exchange.protocol, exchange.status_code // 100)
        cell = self._exchanges.get(key)
        if cell is None:
            status = f"{key[1]}xx" if key[1] else "none"
            cell = self._exchanges[key] = self._registry.cell(metrics.EXCHANGES, key[0], status)
            self._seconds[key[0]] = self._registry.histogram(metrics.EXCHANGE_SECONDS, key[0])
        cell.value += 1
        if exchange.ended_ns:
            self._seconds[key[0]].observe((exchange.ended_ns - exchange.started_ns) / 1e9)
        if exchange.violations:
            self._registry.cell(metrics.VIOLATIONS, key[0]).value += len(exchange.violations)
        if self._live.wanted:
            self._live.show(_exchange(exchange, clean, connection, id))

    def connection(self, record: ConnectionRecord) -> None:
        """A connection that ended, or that has been open for a while."""
        clean = self._recorder.connection(record)
        if self._live.wanted:
            self._live.show(_connection(clean))

    def publish(self) -> None:
        """Put what the recorder counted into the registry."""
        stats, registry = self._recorder.stats, self._registry
        registry.set(metrics.ROWS_WRITTEN, stats.rows - stats.spooled_rows + stats.replayed_rows)
        registry.set(metrics.ROWS_SPOOLED, stats.spooled_rows)
        registry.set(metrics.ROWS_LOST, stats.lost_rows + stats.rejected_rows)
        registry.set(metrics.ROWS_PENDING, self._recorder.pending)
        registry.set(metrics.SPOOL_BYTES, stats.spool_bytes)
        registry.set(metrics.STORE_UP, self._recorder.state is State.DATABASE)
        registry.set(metrics.REDACTED, stats.redacted)
        registry.set(metrics.STORE_LOSING, self._recorder.state is State.LOSING)
        registry.set(metrics.BODIES_STORED, stats.bodies)
        registry.set(metrics.BODY_BYTES, stats.body_bytes, "raw")
        registry.set(metrics.BODY_BYTES, stats.body_bytes_stored, "stored")


def _exchange(exchange: Exchange, clean: Redacted, connection: Connection, id: bytes) -> documents.Exchange:
    started, first, ended = exchange.started_ns, exchange.first_byte_ns, exchange.ended_ns
    return documents.Exchange(
        id=UUID(bytes=id),
        connection_id=UUID(bytes=connection.id),
        started_at=documents.at(started),
        protocol=exchange.protocol,
        client_address=connection.client.host,
        client_port=connection.client.port,
        server_address=connection.server.host or None,
        server_port=connection.server.port,
        domain=clean.domain,
        listener=connection.listener,
        method=exchange.method,
        target=clean.target,
        status=exchange.status,
        summary=documents.summary(exchange.protocol, exchange.method, clean.domain, clean.target, exchange.status),
        latency_ms=(ended - started) / 1e6 if ended else None,
        first_byte_ms=(first - started) / 1e6 if first else None,
        request_bytes=exchange.request_bytes,
        response_bytes=exchange.response_bytes,
        error=clean.error,
        completeness=completeness(clean.missing),
        tls=None,
        tags=[],
    )


def _connection(record: ConnectionRecord) -> documents.Connection:
    connection, closed = record.connection, record.closed
    opened: datetime = documents.at(connection.opened_ns)
    missing = closed.missing if closed else 0
    return documents.Connection(
        id=UUID(bytes=connection.id),
        timestamp=opened,
        source_ip=connection.client.host,
        source_port=connection.client.port,
        dest_ip=connection.server.host if connection.server.is_literal else None,
        dest_port=connection.server.port,
        domain=connection.domain,
        domain_source=connection.domain_source,
        protocol=record.protocol,
        listener=connection.listener,
        path=connection.path,
        latency_ms=closed.connect_ns / 1e6 if closed and closed.connect_ns >= 0 else None,
        bytes_in=closed.to_server if closed else 0,
        bytes_out=closed.to_client if closed else 0,
        duration_ms=(closed.closed_ns - connection.opened_ns) / 1e6 if closed else None,
        exchanges=record.exchanges,
        end_reason=closed.end.value if closed else None,
        completeness=completeness(Missing.REQUEST_GAP | Missing.RESPONSE_GAP if missing else Missing.NONE),
        missing_bytes=missing,
        detail=connection.detail or None,
        error=closed.error if closed else None,
        user_name=connection.user,
        tls=None,
        tags=[],
    )
