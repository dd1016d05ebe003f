from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.api.scene import Api, Scene, api, filled
from tests.postgres import running_server


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_server() as server:
        yield filled(server.dsn, tmp_path_factory.mktemp("recorder"))


@pytest.fixture
async def weir(scene: Scene) -> AsyncIterator[Api]:
    async with api(scene.dsn) as made:
        yield made


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Api]:
    """An API whose database is away."""
    async with api(f"postgresql://weir@/weir?host={tmp_path}") as made:
        yield made
