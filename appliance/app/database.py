"""The embedded database as the supervisor's child: prepared, started, watched, started again, stopped last."""

import asyncio
import contextlib
import signal
import subprocess
import time

import asyncpg

from appliance.app.children import Backoff
from appliance.app.errors import AppError
from appliance.app.privileges import end_with_parent
from appliance.observe.logging import get_logger
from appliance.record.embedded import Cluster, ClusterError
from appliance.record.migrate import MigrationError, migrate
from appliance.record.settings import EmbeddedSettings

log = get_logger("database")

_PATIENCE = 5.0  # seconds for a database to answer at start
_LOOK = 0.2  # seconds between looks at the process: a dead database is no hurry, rows are spooled


async def bring_forward(dsn: str) -> None:
    """Apply the migrations that are missing. A database that is away is no error: rows are spooled until it is back.

    Raises ``AppError`` when the database belongs to another version: spooling would only hide that.
    """
    try:
        connection = await asyncpg.connect(dsn=dsn, timeout=_PATIENCE)
        try:
            applied = await migrate(connection)
        finally:
            await connection.close(timeout=_PATIENCE)
    except MigrationError as error:
        raise AppError(f"storage.dsn: {error}") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        log.warning("database is away; rows are spooled", error=str(error) or type(error).__name__)
    else:
        if applied:
            log.info("database brought forward", migrations=applied)


class Database:
    """One private cluster and its server process."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._cluster = Cluster(settings)
        self._directory = settings.directory
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The server's process id while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Start the server and wait until it takes connections. Raises ``ClusterError``."""
        await asyncio.to_thread(self._cluster.prepare)
        if self._stopping.is_set():
            return
        process = self._process = self._spawn()
        await asyncio.to_thread(self._cluster.wait_ready, lambda: process.poll() is None)
        log.info("database ready", pid=process.pid)

    async def keep(self) -> None:
        """Start the server again whenever it ends, until ``stop``."""
        backoff = Backoff()
        began = time.monotonic()
        while not self._stopping.is_set():
            await self._wait(_LOOK)
            if self.pid is not None or self._stopping.is_set():
                continue
            code = self._process.returncode if self._process is not None else None
            delay = backoff.after(time.monotonic() - began)
            log.error("database ended; rows are spooled meanwhile", exit_code=code, restart_in=delay)
            await self._wait(delay)
            if self._stopping.is_set():
                return
            self.restarts += 1
            began = time.monotonic()
            try:
                await self.start()
            except (ClusterError, OSError) as error:
                # A full disk, no process to be had: the rows are spooled meanwhile, and traffic must go on.
                log.error("database could not be started", error=str(error))

    async def stop(self, *, now: bool = False) -> None:
        """Stop the server: flushed and clean, or with ``now`` at once (it recovers at the next start)."""
        self._stopping.set()
        if self.pid is None:
            return
        if now and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGQUIT)
        try:
            await asyncio.to_thread(self._cluster.stop)
        except ClusterError as error:
            log.error("database did not stop", error=str(error))
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        """Start the server on a leash: when we are killed, the kernel tells it to stop (PR_SET_PDEATHSIG, prctl(2)).

        Called on the main thread, because the leash is tied to the thread that forks. The leash is put on after the
        change of user, which would take it off.
        """
        who = self._cluster.identity()
        return subprocess.Popen(
            self._cluster.command(),
            user=who.uid,
            group=who.gid,
            extra_groups=[] if who.uid is not None else None,
            env=self._cluster.environment(),
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who stops it last
            preexec_fn=end_with_parent,
        )

    async def _wait(self, seconds: float) -> None:
        """Wait, but not once we are to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
