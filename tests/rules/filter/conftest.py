from collections.abc import Iterator

import pytest

from tests.postgres import running_server


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    with running_server() as server:
        yield server.dsn
