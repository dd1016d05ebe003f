"""The embedded database as the supervisor's child: prepared, started, watched, started again, stopped last."""

import asyncio
import contextlib
import signal
import subprocess
import time

from appliance.app.children import Backoff
from appliance.observe.logging import get_logger
from appliance.record.embedded import Cluster, ClusterError
from appliance.record.settings import EmbeddedSettings

log = get_logger("database")

_LOOK = 0.2  # seconds between looks at the process: a dead database is no hurry, rows are spooled


class Database:
    """One private cluster and its server process."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._cluster = Cluster(settings)
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
        process = self._process = self._cluster.spawn()
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
            except ClusterError as error:
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

    async def _wait(self, seconds: float) -> None:
        """Wait, but not once we are to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
