"""Rows as Postgres reads them fastest: the binary COPY format, built by hand.

One row is a field count and, per field, a length and the value (PostgreSQL documentation, COPY, "Binary Format"). The
driver's own encoding of the same row takes five times as long, because it asks each value for its type. Columns are
sent in our order, not the table's: what is constant for a connection lies together and is built once.
"""

import ipaddress
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from appliance.model.connection import Connection, ConnectionRecord
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Exchange, Missing
from appliance.record.redact import Redacted

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
POSTGRES_EPOCH_US = 946_684_800_000_000  # 2000-01-01, where timestamptz begins
LONGEST_DOMAIN = 255  # RFC 1035 §2.3.4; a btree refuses rows beyond 2,704 bytes, and a Host header may be longer
_LAST_TIMESTAMP_NS = 2**63 - 1
_REMEMBERED = 4096

RECORD_COLUMNS = (
    *("id", "timestamp", "first_byte_ms", "response_time_ms", "request_bytes", "response_bytes", "completeness"),
    *("status_code", "payload_size_bucket"),
    *("connection_id", "source_port", "destination_port", "source_addr", "destination_addr", "listener"),
    *("protocol", "method", "status", "domain", "request_path", "error"),
    *("request_data", "response_data", "headers", "metadata"),
)
LOG_COLUMNS = (
    *("id", "timestamp", "latency_ms", "duration_ms", "bytes_in", "bytes_out", "exchanges", "completeness"),
    *("missing_bytes", "source_port", "dest_port", "source_ip", "dest_ip"),
    *("domain", "domain_source", "protocol", "listener", "path", "detail", "end_reason", "error", "user_name"),
)
BODY_COLUMNS = ("hash", "day", "format", "size_original", "size_compressed", "data")

_RECORD_START = struct.Struct("!hi16siq").pack
_DOUBLE = struct.Struct("!id").pack
_RECORD_TIMES = struct.Struct("!hi16siqidid").pack  # the start, where both times are known
_RECORD_NUMBERS = struct.Struct("!iqiqiiihih").pack
_RECORD_CONNECTION = struct.Struct("!i16siiii").pack
_LOG_START = struct.Struct("!hi16siq").pack
_LOG_NUMBERS = struct.Struct("!iqiqiiiiiqiiii").pack
_BODY = struct.Struct("!hi32siiihiqiqi").pack
_LENGTH = struct.Struct("!i").pack
_JSON = msgspec.json.Encoder(enc_hook=repr).encode


class RowEncoder:
    """Encodes rows; remembers the encoding of what repeats."""

    def __init__(self) -> None:
        self._texts: dict[str, bytes] = {}
        self._last_metadata: dict[str, Any] | None = None
        self._last_json = NULL
        self._addresses: dict[str, bytes] = {}
        self._connections: dict[bytes, tuple[Connection, bytes]] = {}

    def record(
        self,
        id: bytes,
        exchange: Exchange,
        connection: Connection,
        clean: Redacted,
        headers: bytes | None,
        request_hash: bytes | None,
        response_hash: bytes | None,
        metadata: dict[str, Any] | None,
        missing: int,
    ) -> bytes:
        """One row of ``traffic_records``; free text comes from ``clean`` only."""
        started, first, ended = exchange.started_ns, exchange.first_byte_ns, exchange.ended_ns
        size = exchange.request.length + exchange.response.length
        code = exchange.status_code
        texts = self._texts
        if first and ended:
            begin = _RECORD_TIMES(
                25,
                16,
                id,
                8,
                started // 1000 - POSTGRES_EPOCH_US if 0 <= started <= _LAST_TIMESTAMP_NS else _timestamp(started),
                8,
                (first - started) / 1e6,
                8,
                (ended - started) / 1e6,
            )
        else:
            begin = (
                _RECORD_START(25, 16, id, 8, _timestamp(started))
                + (_DOUBLE(8, (first - started) / 1e6) if first else NULL)
                + (_DOUBLE(8, (ended - started) / 1e6) if ended else NULL)
            )
        parts = (
            begin,
            _RECORD_NUMBERS(
                8,
                exchange.request_bytes,
                8,
                exchange.response_bytes,
                4,
                missing,
                2,
                code if -32768 <= code <= 32767 else 0,
                2,
                0 if size < 1024 else 1 if size < 65536 else 2 if size < 1048576 else 3,
            ),
            self._connection(connection),
            texts.get(exchange.protocol) or self._text(exchange.protocol),
            texts.get(exchange.method) or self._text(exchange.method),
            texts.get(exchange.status) or self._text(exchange.status),
            NULL if clean.domain is None else texts.get(clean.domain) or self._text(clean.domain[:LONGEST_DOMAIN]),
            _text(clean.target),
            NULL if clean.error is None else _text(clean.error),
            NULL if request_hash is None else b"\0\0\0\x20" + request_hash,
            NULL if response_hash is None else b"\0\0\0\x20" + response_hash,
            NULL if headers is None else _LENGTH(len(headers)) + headers,
            NULL if not metadata else self._metadata(metadata),
        )
        return b"".join(parts)

    def log(self, record: ConnectionRecord) -> bytes:
        """One row of ``traffic_logs``, of a record that has been redacted."""
        connection, closed = record.connection, record.closed
        domain = connection.domain
        opened = connection.opened_ns
        connected = closed is not None and closed.connect_ns >= 0
        missing = closed.missing if closed else 0
        parts = (
            _LOG_START(22, 16, connection.id, 8, _timestamp(opened)),
            _DOUBLE(8, closed.connect_ns / 1e6) if closed is not None and connected else NULL,
            _DOUBLE(8, (closed.closed_ns - opened) / 1e6) if closed is not None else NULL,
            _LOG_NUMBERS(
                8,
                closed.to_server if closed else 0,
                8,
                closed.to_client if closed else 0,
                4,
                record.exchanges,
                4,
                (Missing.REQUEST_GAP | Missing.RESPONSE_GAP) if missing else 0,
                8,
                missing,
                4,
                connection.client.port,
                4,
                connection.server.port,
            ),
            self._address(connection.client),
            self._address(connection.server),
            _optional(domain and domain[:LONGEST_DOMAIN]),
            _optional(connection.domain_source),
            self._text(record.protocol),
            self._text(connection.listener),
            self._text(connection.path),
            _optional(connection.detail or None),
            _optional(closed.end if closed else None),
            _optional(closed.error if closed else None),
            _optional(connection.user),
        )
        return b"".join(parts)

    def _metadata(self, metadata: dict[str, Any]) -> bytes:
        if metadata is not self._last_metadata:  # dissectors share it between exchanges
            self._last_metadata, self._last_json = metadata, _json(metadata)
        return self._last_json

    def _connection(self, connection: Connection) -> bytes:
        known = self._connections.get(connection.id)
        if known is not None and known[0] is connection:
            return known[1]
        if len(self._connections) >= _REMEMBERED:
            self._connections.clear()
        client, server = connection.client, connection.server
        fields = b"".join(
            (
                _RECORD_CONNECTION(16, connection.id, 4, client.port, 4, server.port),
                self._address(client),
                self._address(server),
                self._text(connection.listener),
            )
        )
        self._connections[connection.id] = (connection, fields)
        return fields

    def _text(self, text: str) -> bytes:
        """A text that repeats."""
        field = self._texts.get(text)
        if field is None:
            field = _text(text)
            if len(text) <= 255:
                if len(self._texts) >= _REMEMBERED:
                    self._texts.clear()
                self._texts[text] = field
        return field

    def _address(self, endpoint: Endpoint) -> bytes:
        """An inet; null for a name that was never resolved."""
        host = endpoint.host
        field = self._addresses.get(host)
        if field is None:
            if len(self._addresses) >= _REMEMBERED:
                self._addresses.clear()
            field = self._addresses[host] = _address(host)
        return field


def body(hash: bytes, day: int, form: int, original: int, data: bytes) -> bytes:
    """One row of ``bodies``; ``day`` counts from 1970."""
    # A date counts from 2000-01-01.
    return _BODY(6, 32, hash, 4, day - 10_957, 2, form, 8, original, 8, len(data), len(data)) + data


def split(rows: bytes) -> Iterator[bytes]:
    """The single rows of concatenated ones."""
    position = 0
    while position < len(rows):
        start = position
        (fields,) = struct.unpack_from("!h", rows, position)
        position += 2
        for _ in range(fields):
            (length,) = struct.unpack_from("!i", rows, position)
            position += 4 + max(length, 0)
        yield rows[start:position]


def id_of(row: bytes) -> bytes:
    """The id of a row of ``traffic_records`` or ``traffic_logs``: its first field."""
    return row[6:22]


def _timestamp(at_ns: int) -> int:
    return min(max(at_ns, 0), _LAST_TIMESTAMP_NS) // 1000 - POSTGRES_EPOCH_US


def _text(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:  # lone surrogates stand for bytes that were no UTF-8
        data = text.encode("utf-8", "backslashreplace")
    if b"\0" in data:  # no Postgres text holds it
        data = data.replace(b"\0", b"\\x00")
    return _LENGTH(len(data)) + data


def _optional(text: str | None) -> bytes:
    return NULL if text is None else _text(text)


def _json(value: dict[str, Any]) -> bytes:
    try:
        data = _JSON(value)
    except (UnicodeEncodeError, ValueError, TypeError):
        data = _JSON(_plain(value))
    if b"\\u0000" in data:  # jsonb holds text, and no text holds it; an escaped backslash before it is harmless here
        data = data.replace(b"\\u0000", b"\\u2400")
    return _LENGTH(len(data) + 1) + b"\x01" + data


def _plain(value: Any) -> Any:
    """Only what JSON can say: bytes and lone surrogates escaped, keys as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else repr(value)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return NULL
    # Family (PGSQL_AF_INET 2, PGSQL_AF_INET6 3), prefix length, is_cidr, length of what follows.
    family = 2 if address.version == 4 else 3
    packed = address.packed
    field = bytes((family, address.max_prefixlen, 0, len(packed))) + packed
    return _LENGTH(len(field)) + field
