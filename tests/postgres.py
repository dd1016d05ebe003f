"""A real private Postgres for tests: started once per session, a fresh database per test."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import asyncpg

from appliance.record.embedded import Cluster
from appliance.record.settings import EmbeddedSettings

_numbers = count()


def server_user() -> str | None:
    """Who the server runs as: nobody when we are root, since Postgres refuses root."""
    return "nobody" if os.geteuid() == 0 else None


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A short path that the test user can enter (the socket's path may have 107 bytes)."""
    path = Path(tempfile.mkdtemp(prefix="weir-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Server:
    """A running cluster that a test may kill and start again."""

    def __init__(self, directory: Path) -> None:
        self.cluster = Cluster(EmbeddedSettings(directory=directory, user=server_user(), shared_buffers=32 << 20))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return self.cluster.dsn

    def start(self) -> None:
        self.cluster.prepare()
        self.process = self.cluster.spawn()
        process = self.process
        self.cluster.wait_ready(lambda: process.poll() is None)

    def kill(self) -> None:
        """kill -9 of the server's first process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.cluster.stop()
        if self.process is not None:
            self.process.wait()


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A cluster for as long as the block lasts."""
    with temporary_directory() as directory:
        server = Server(directory / "pg")
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.asynccontextmanager
async def fresh_database(dsn: str) -> AsyncIterator[str]:
    """The DSN of a new, empty database on that server; dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            yield dsn.replace("/weir?", f"/{name}?")
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
