"""The ``protocols`` and ``transformations`` sections: what is understood, how deeply, and what is changed."""

from typing import Annotated, Literal

from pydantic import Field

from appliance.app.config.section import Fraction, Port, Positive, Section
from appliance.app.config.values import Duration, Size

Protocol = Literal["http", "https", "postgres", "redis", "tcp"]


class Bypass(Section):
    """Servers that are not understood. An entry holds when everything it names holds."""

    address: str | None = None
    """`ADDRESS`, `NETWORK/BITS`, `NAME` or `*.SUFFIX`; with `:PORT` where you like."""
    port: Port | None = None
    """Server port."""
    mode: Literal["direct_proxy", "fast_path"] = "direct_proxy"
    """`direct_proxy` relays without looking, `fast_path` keeps start lines and headers only."""


class Detection(Section):
    """Recognising protocols. Bytes decide; ports are only a hint."""

    default_timeout: Duration = 0.1
    """Kept for other proxies' configurations: Weir forwards before it recognises and never waits."""
    cache_size: Positive = 10_000
    """Destinations whose protocol is remembered."""
    port_mappings: dict[Port, Protocol] = {80: "http", 443: "https", 5432: "postgres", 6379: "redis"}  # noqa: RUF012
    """Likely protocol by port."""


class HttpCompression(Section):
    """How stored bodies are packed."""

    enabled: bool = True
    """Whether they are."""
    min_size: Size = 1 << 10
    """Smaller bodies are stored as they are."""
    algorithms: tuple[Literal["lz4", "zstd"], ...] = ("lz4", "zstd")
    """Which may be used: lz4 for small, zstd for large bodies."""


class PathRate(Section):
    """Sampling of one part of a site."""

    path_prefix: Annotated[str, Field(pattern="^/")]
    """Start of the path."""
    rate: Fraction
    """Part of its exchanges whose content is stored."""


class HttpSampling(Section):
    """Which exchanges keep their content. All keep their row, so counts stay exact."""

    default_rate: Fraction = 1.0
    """Part of the exchanges whose content is stored."""
    error_rate: Fraction = 1.0
    """The same for answers with status 400 and more."""
    rules: tuple[PathRate, ...] = ()
    """The first that fits decides."""


class Http(Section):
    """HTTP/1.1."""

    enabled: bool = True
    """Whether it is understood."""
    record_headers: bool = True
    """Store headers."""
    record_body: bool = True
    """Store bodies."""
    max_body_size: Size = 64 << 10
    """Of a larger body, head and tail of this size together are stored, with its true length."""
    websocket_support: bool = True
    """Understand WebSocket."""
    compression: HttpCompression = HttpCompression()
    sampling: HttpSampling = HttpSampling()


class RedisCompression(Section):
    """How large values are packed."""

    enabled: bool = True
    """Whether they are."""
    large_value_threshold: Size = 10 << 10
    """From which size."""


class Redis(Section):
    """Redis."""

    enabled: bool = True
    """Whether it is understood."""
    record_commands: bool = True
    """Store commands and replies."""
    sensitive_commands: tuple[str, ...] = ("AUTH", "CONFIG")
    """Commands whose arguments are hidden."""
    compression: RedisCompression = RedisCompression()


class ResultSetLimits(Section):
    """How much of a query's result is stored."""

    max_rows: Positive = 1000
    """Rows."""
    truncate_large_values: bool = True
    """Shorten long values."""


class Postgres(Section):
    """PostgreSQL."""

    enabled: bool = True
    """Whether it is understood."""
    record_queries: bool = True
    """Store queries."""
    mask_sensitive_data: bool = True
    """Hide literal values."""
    connection_pooling: bool = False
    """Share server connections among clients."""
    result_set_limits: ResultSetLimits = ResultSetLimits()


class Protocols(Section):
    """What is understood, and how deeply."""

    bypass_rules: tuple[Bypass, ...] = ()
    """Servers that are not understood."""
    detection: Detection = Detection()
    http: Http = Http()
    redis: Redis = Redis()
    postgres: Postgres = Postgres()


class Replacement(Section):
    """One change."""

    match: str
    """What is changed: `headers["Name"]`, `body.field`."""
    replace: str
    """What it becomes. `${env.NAME}` is looked up when the rule is applied."""


class Transformation(Section):
    """Changes to the messages of one protocol."""

    name: str
    """Shown in records and metrics."""
    protocol: Literal["http", "redis", "postgres"]
    """Whose messages."""
    rules: tuple[Replacement, ...] = ()
    """What is changed."""
