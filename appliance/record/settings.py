"""What recording obeys. Built by ``app`` from the configuration, checked here, passed in."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SOCKET_PATH_LIMIT = 107  # bytes that fit struct sockaddr_un.sun_path with its terminating zero (unix(7))


class SettingsError(ValueError):
    """A setting that cannot be obeyed: which one, what it was, what it must be."""

    def __init__(self, key: str, value: object, must: str) -> None:
        super().__init__(f"{key} is {value!r}, must be {must}")
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSettings:
    """The private Postgres cluster.

    ``directory`` holds ``data`` and ``run`` (the socket); ``user`` is who the server runs as when we are root
    (Postgres refuses to be root), None for ourselves. ``binaries`` names the directory of ``postgres`` and ``initdb``;
    None looks for the distribution's newest, then PATH, then the wheel's.
    """

    directory: Path
    user: str | None = None
    binaries: Path | None = None
    shared_buffers: int = 128 * MIB
    max_wal_size: int = 768 * MIB  # bounds the recovery after kill -9 to a few seconds (docs/adr/0010)
    max_connections: int = 60
    start_timeout: float = 60.0
    stop_timeout: float = 20.0

    def __post_init__(self) -> None:
        """Refuse a directory whose socket path the kernel would cut."""
        length = len(bytes(self.socket_file))
        if length > SOCKET_PATH_LIMIT:
            raise SettingsError(
                "state_dir",
                str(self.directory),
                f"shorter: the database socket {self.socket_file} has {length} bytes, at most {SOCKET_PATH_LIMIT} fit",
            )

    @property
    def data(self) -> Path:
        """The cluster's files."""
        return self.directory / "data"

    @property
    def run(self) -> Path:
        """The socket's directory; only the service user and root may enter it."""
        return self.directory / "run"

    @property
    def socket_file(self) -> Path:
        """Where the server listens."""
        return self.run / ".s.PGSQL.5432"

    @property
    def dsn(self) -> str:
        """How clients reach the cluster: no password, the directory's permissions are the key."""
        return f"postgresql://weir@/weir?host={self.run}&port=5432"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """Where batches wait while the database is away, one directory per writer. Bounds are bytes, per writer."""

    directory: Path
    limit: int = 2 * GIB
    segment: int = 16 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RedactionSettings:
    """What is replaced by tokens before anything is stored.

    ``names`` are further header, parameter and field names whose values are secrets. ``scan_limit`` bounds, in bytes,
    how much of a decoded body is searched; what lies beyond is not stored.
    """

    key_file: Path
    enabled: bool = True
    names: tuple[str, ...] = ()
    bodies: bool = True
    scan_limit: int = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSettings:
    """How bodies are packed. Sizes in bytes; ``algorithms`` may leave one out."""

    enabled: bool = True
    min_size: int = KIB
    algorithms: tuple[Literal["lz4", "zstd"], ...] = ("lz4", "zstd")
    zstd_from: int = 32 * KIB  # smaller bodies take lz4: a quarter of the time on the hot path
    zstd_level: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Which exchanges keep their content. Rates are 0.0–1.0; the first rule whose prefix fits decides.

    An exchange that is left out keeps its row, so counts and latencies stay exact.
    """

    default_rate: float = 1.0
    error_rate: float = 1.0
    rules: tuple[tuple[str, float], ...] = ()  # (path prefix, rate)

    def __post_init__(self) -> None:
        """Refuse rates that are no fractions."""
        for rate in (self.default_rate, self.error_rate, *(rate for _, rate in self.rules)):
            if not 0.0 <= rate <= 1.0:
                raise SettingsError("sampling rate", rate, "between 0.0 and 1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSettings:
    """One writer's recording: where to, how much, what is hidden. Times in seconds."""

    dsn: str
    spool: SpoolSettings
    redaction: RedactionSettings
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    record_headers: bool = True
    record_body: bool = True
    known_bodies: int = 50_000  # hashes remembered, so that a repeated body is not sent again
    start_timeout: float = 5.0  # how long start() waits for the database before spooling
    write_timeout: float = 15.0  # a database that does not answer for so long counts as away
    retry_first: float = 0.1
    retry_last: float = 2.0
    maintenance_every: float = 900.0  # partitions ahead, indexes behind

    @classmethod
    def under(cls, state_dir: Path, dsn: str | None = None) -> "RecordSettings":
        """The defaults for a state directory; the embedded cluster when there is no DSN."""
        return cls(
            dsn=dsn or EmbeddedSettings(directory=state_dir / "postgres").dsn,
            spool=SpoolSettings(directory=state_dir / "spool"),
            redaction=RedactionSettings(key_file=state_dir / "redaction.key"),
        )
