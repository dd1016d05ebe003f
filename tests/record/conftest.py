from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.postgres import Server, fresh_database, running_server, temporary_directory


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture
async def dsn(server: Server) -> AsyncIterator[str]:
    async with fresh_database(server.dsn) as fresh:
        yield fresh


@pytest.fixture
def short_path() -> Iterator[Path]:
    with temporary_directory() as path:
        yield path
