"""The configuration document: every key, its type, its default, what it is for (contract §4).

The models only say what a document may contain; ``check`` says what must hold between keys, and
``appliance.app.wiring`` turns a document into the settings of each package. The text under a field is its
documentation: it appears in the JSON schema and in docs/configuration.md.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from appliance.app.config.protocols import Protocols, Transformation
from appliance.app.config.proxy import Proxy
from appliance.app.config.section import Fraction, Positive, Section
from appliance.app.config.values import SECRET, BindAddress, Duration, Rate, Size


class Limits(Section):
    """Refused early, before anything is dialed. `null` is no limit."""

    max_connections: Positive | None = 10_000
    """Connections at once, in all; each relay process takes its share."""
    per_source_connections: Positive | None = 500
    """Connections at once of one client address, in each relay process."""
    per_source_rate: Rate | None = 200.0
    """New connections per second of one client address, in each relay process."""
    per_source_burst: Positive = 400
    """How far one client address may run ahead of its rate."""


class RecordSampling(Section):
    """Which exchanges keep their content, for every protocol; `protocols.http.sampling` is more exact."""

    rate: Fraction = 1.0
    """Part of the exchanges whose content is stored; rows and counts stay complete."""
    always_sample_errors: bool = True
    """Store the content of every failed exchange, whatever the rate."""


class Redaction(Section):
    """How values are hidden before anything is stored."""

    enabled: bool = True
    """Off stores passwords, cookies and tokens in clear."""
    bodies: bool = True
    """Search bodies too, not only heads and addresses."""
    scan_limit: Size = 4 << 20
    """How much of a decoded body is searched; what lies beyond is not stored."""


class Recording(Section):
    """What becomes of the copy of the traffic."""

    on_overload: Literal["gap", "pause"] = "gap"
    """`gap` never slows traffic and notes what it missed; `pause` never loses a byte and slows traffic."""
    redact: tuple[str, ...] = ()
    """Further names of headers, parameters and fields whose values are secrets."""
    redaction: Redaction = Redaction()
    encrypt: str | None = None
    """Key with which stored content is encrypted."""
    sampling: RecordSampling = RecordSampling()
    spool_size: Size = 2 << 30
    """How much waits on disk, for each inspector, while the database is away."""


class HotTier(Section):
    """The newest records: everything, fast."""

    duration: Duration = 7 * 86400.0
    """How long."""
    compression: Literal["none", "lz4", "zstd", "zstd_max"] = "lz4"
    """How bodies are packed."""
    indexes: tuple[str, ...] = ("timestamp", "endpoint", "status_code")
    """What is indexed."""


class WarmTier(Section):
    """Older records."""

    duration: Duration = 30 * 86400.0
    """How long."""
    compression: Literal["none", "lz4", "zstd", "zstd_max"] = "zstd"
    """How bodies are packed."""
    indexes: tuple[str, ...] = ("timestamp", "endpoint")
    """What is indexed."""
    downsample_rate: Fraction = 1.0
    """Part of the successful exchanges that is kept."""


class ColdTier(Section):
    """The oldest records."""

    duration: Duration = 365 * 86400.0
    """How long, then they are deleted."""
    compression: Literal["none", "lz4", "zstd", "zstd_max"] = "zstd_max"
    """How bodies are packed."""
    indexes: tuple[str, ...] = ("timestamp",)
    """What is indexed."""
    storage_backend: Literal["database", "s3"] = "database"
    """Where they are kept."""


class Retention(Section):
    """How long records are kept, in tiers that get cheaper with age. An absent tier does not exist."""

    hot_tier: HotTier | None = None
    warm_tier: WarmTier | None = None
    cold_tier: ColdTier | None = None


class Embedded(Section):
    """The database server that Weir runs for itself when `storage.dsn` is `embedded`."""

    binaries: Path | None = None
    """Directory of `postgres` and `initdb`; unset looks for the distribution's newest, then PATH, then the wheel's."""
    shared_buffers: Size = 128 << 20
    """PostgreSQL's setting of that name."""
    max_wal_size: Size = 768 << 20
    """PostgreSQL's setting of that name; bounds how long recovery takes after a crash."""


class Storage(Section):
    """Where records are kept."""

    dsn: Annotated[str, SECRET] = "embedded"
    """`embedded`, or `postgresql://USER:PASSWORD@HOST/DATABASE` of a server of your own."""
    embedded: Embedded = Embedded()
    retention: Retention = Retention()


class Api(Section):
    """The HTTP API and live feed."""

    enabled: bool = True
    """Whether the API process runs."""
    bind_address: BindAddress = ("127.0.0.1:8088",)
    """Where it listens."""
    tokens: Annotated[tuple[str, ...], SECRET] = ()
    """Bearer tokens that may use it; required unless it is bound to loopback only. At least 16 characters each."""


class Tap(Section):
    """The shared-memory ring between a relay and its inspector."""

    ring_size: Size = 128 << 20
    """Memory of each ring."""
    slots: Positive = 32_768
    """Connections that a ring can follow at once."""
    turn_head: Size | None = None
    """First bytes of a turn that are copied; unset is `protocols.http.max_body_size` and 16 KB."""
    turn_tail: Size | None = None
    """Last bytes of a longer turn that are copied; unset is what is stored of the end of a body."""


class Timeouts(Section):
    """How long things may take."""

    connect: Duration = 10.0
    """Reaching a server, all its addresses together."""
    resolve: Duration = 5.0
    """Looking up a name."""
    handshake: Duration = 10.0
    """A client's SOCKS or HTTP greeting."""
    idle: Duration = 600.0
    """A connection on which nothing moves."""
    drain: Duration = 30.0
    """Open connections, when Weir stops."""


class Engine(Section):
    """Processes and their resources."""

    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Relay processes; `auto` is half the processors, at least one."""
    inspectors: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Inspector processes; one per relay, so `auto` or the same number as `workers`."""
    user: str = "weir"
    """Who the processes run as when Weir is started as root."""
    write_buffer: Size = 256 << 10
    """What one peer that does not read may hold of our memory."""
    backlog: Positive = 4096
    """Connections that wait to be accepted, per listener and relay."""
    tap: Tap = Tap()
    timeouts: Timeouts = Timeouts()


class Logging(Section):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important lines that are shown."""
    format: Literal["json", "console"] = "json"
    """One JSON object per line, or text for people."""


class Document(Section):
    """The whole configuration."""

    state_dir: Path = Path("/var/lib/weir")
    """Embedded database, spool, rings, keys: everything that Weir writes."""
    proxy: Proxy = Proxy()
    limits: Limits = Limits()
    protocols: Protocols = Protocols()
    transformations: tuple[Transformation, ...] = ()
    """Rules that change traffic."""
    recording: Recording = Recording()
    storage: Storage = Storage()
    api: Api = Api()
    engine: Engine = Engine()
    logging: Logging = Logging()
