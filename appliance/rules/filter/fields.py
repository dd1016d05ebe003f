"""The fields that a filter may name, their types, and the columns they are stored in.

Names are those of the API (contract §5, §6). The other table's name for the same thing is accepted too, so that one
filter can be used for connections and for exchanges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """The type of a field: how its literals are written and what can be asked of it."""

    TEXT = "text"
    NUMBER = "number"
    SIZE = "size"  # bytes
    DURATION = "duration"  # milliseconds
    TIME = "time"
    ADDRESS = "address"
    UUID = "id"
    STATUS = "status"  # text, ordered by its number where it is one
    WORDS = "completeness"  # stored as bits of appliance.model.exchange.Missing
    TAGS = "tags"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Field:
    """A field by its canonical name. ``column`` is SQL written here, never a user's text.

    ``number`` is the column that orders a status. ``keyed`` says that an index on (column, id) finds few rows, newest
    first; see ``sql.py`` for what that is used for. ``minted`` marks the time that the row's id was made from.
    """

    name: str
    kind: Kind
    column: str
    number: str = ""
    keyed: bool = False
    minted: bool = False


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one kind of record. ``computed`` are shown, but cannot be asked for; the text says what can."""

    of: str
    by_name: Mapping[str, Field]
    computed: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The canonical names, sorted."""
        return sorted({field.name for field in self.by_name.values()})


def _fields(of: str, *fields: Field, also: Mapping[str, str], computed: Mapping[str, str]) -> Fields:
    by_name = {field.name: field for field in fields}
    return Fields(of, by_name | {other: by_name[name] for other, name in also.items()}, computed)


EXCHANGES = _fields(
    "exchanges",
    Field("id", Kind.UUID, "id"),
    Field("connection_id", Kind.UUID, "connection_id", keyed=True),
    Field("started_at", Kind.TIME, "timestamp", minted=True),
    Field("protocol", Kind.TEXT, "protocol"),
    Field("client_address", Kind.ADDRESS, "source_addr"),
    Field("client_port", Kind.NUMBER, "source_port"),
    Field("server_address", Kind.ADDRESS, "destination_addr"),
    Field("server_port", Kind.NUMBER, "destination_port"),
    Field("domain", Kind.TEXT, "domain", keyed=True),
    Field("listener", Kind.TEXT, "listener"),
    Field("method", Kind.TEXT, "method"),
    Field("target", Kind.TEXT, "request_path"),
    Field("status", Kind.STATUS, "status", number="status_code"),
    Field("latency_ms", Kind.DURATION, "response_time_ms"),
    Field("first_byte_ms", Kind.DURATION, "first_byte_ms"),
    Field("request_bytes", Kind.SIZE, "request_bytes"),
    Field("response_bytes", Kind.SIZE, "response_bytes"),
    Field("error", Kind.TEXT, "error"),
    Field("completeness", Kind.WORDS, "completeness"),
    Field("tls", Kind.OBJECT, "(metadata -> 'tls')"),
    Field("tls.version", Kind.TEXT, "(metadata #>> '{tls,version}')"),
    Field("tls.sni", Kind.TEXT, "(metadata #>> '{tls,sni}')"),
    Field("tls.alpn", Kind.TEXT, "(metadata #>> '{tls,alpn}')"),
    Field("tls.ja4", Kind.TEXT, "(metadata #>> '{tls,ja4}')"),
    Field("tags", Kind.TAGS, "tags"),
    also={
        "timestamp": "started_at",
        "source_ip": "client_address",
        "source_port": "client_port",
        "dest_ip": "server_address",
        "dest_port": "server_port",
        "bytes_in": "request_bytes",
        "bytes_out": "response_bytes",
    },
    computed={"summary": "made when shown: ask for method, domain, target or status"},
)

CONNECTIONS = _fields(
    "connections",
    Field("id", Kind.UUID, "id"),
    Field("timestamp", Kind.TIME, "timestamp", minted=True),
    Field("source_ip", Kind.ADDRESS, "source_ip"),
    Field("source_port", Kind.NUMBER, "source_port"),
    Field("dest_ip", Kind.ADDRESS, "dest_ip"),
    Field("dest_port", Kind.NUMBER, "dest_port"),
    Field("domain", Kind.TEXT, "domain", keyed=True),
    Field("domain_source", Kind.TEXT, "domain_source"),
    Field("protocol", Kind.TEXT, "protocol"),
    Field("listener", Kind.TEXT, "listener"),
    Field("path", Kind.TEXT, "path"),
    Field("latency_ms", Kind.DURATION, "latency_ms"),
    Field("duration_ms", Kind.DURATION, "duration_ms"),
    Field("bytes_in", Kind.SIZE, "bytes_in"),
    Field("bytes_out", Kind.SIZE, "bytes_out"),
    Field("exchanges", Kind.NUMBER, "exchanges"),
    Field("end_reason", Kind.TEXT, "end_reason"),
    Field("completeness", Kind.WORDS, "completeness"),
    Field("missing_bytes", Kind.SIZE, "missing_bytes"),
    Field("detail", Kind.TEXT, "detail"),
    Field("error", Kind.TEXT, "error"),
    Field("user_name", Kind.TEXT, "user_name"),
    Field("tls", Kind.OBJECT, "tls"),
    Field("tls.version", Kind.TEXT, "(tls ->> 'version')"),
    Field("tls.sni", Kind.TEXT, "(tls ->> 'sni')"),
    Field("tls.alpn", Kind.TEXT, "(tls ->> 'alpn')"),
    Field("tls.ja4", Kind.TEXT, "(tls ->> 'ja4')"),
    Field("tags", Kind.TAGS, "tags"),
    also={
        "started_at": "timestamp",
        "client_address": "source_ip",
        "client_port": "source_port",
        "server_address": "dest_ip",
        "server_port": "dest_port",
        "request_bytes": "bytes_in",
        "response_bytes": "bytes_out",
    },
    computed={},
)
