"""The database goes and comes back under a running API."""

import asyncio

import asyncpg
import pytest

from appliance.record.migrate import migrate
from tests.api.scene import Api, api
from tests.postgres import running_server

pytestmark = pytest.mark.postgres


async def answered(made: Api) -> int:
    return (await made.http.get("/api/v1/exchanges")).status_code


async def test_queries_fail_clearly_while_it_is_away_and_work_again_when_it_is_back() -> None:
    with running_server() as server:
        async with api(server.dsn) as made:
            # Before its first migration, too, the answer is that it is not there yet.
            problem = await made.refused(503, "/api/v1/exchanges")
            assert "tables" in problem["detail"]
            connection = await asyncpg.connect(server.dsn)
            await migrate(connection)
            await connection.close()
            assert await asyncio.gather(*(answered(made) for _ in range(20))) == [200] * 20

            server.kill()
            assert set(await asyncio.gather(*(answered(made) for _ in range(20)))) == {503}
            assert await answered(made) == 503

            await asyncio.to_thread(server.start)
            async with asyncio.timeout(10):
                while await answered(made) != 200:
                    await asyncio.sleep(0.05)
            assert await asyncio.gather(*(answered(made) for _ in range(20))) == [200] * 20


async def test_more_questions_than_connections_are_all_answered(weir: Api) -> None:
    assert await asyncio.gather(*(answered(weir) for _ in range(100))) == [200] * 100
