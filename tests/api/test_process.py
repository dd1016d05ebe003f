"""The API as a process serves it: a real server, a real channel, real WebSockets, a played inspector."""

import asyncio
import json
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from appliance.api.process import BindFailed, listen, serve
from appliance.api.settings import ApiSettings
from appliance.engine.control import Channel
from appliance.model.endpoint import Endpoint
from tests.postgres import temporary_directory

EXCHANGE = {"id": "1", "connection_id": "2", "domain": "a.example.com", "status": "200"}


@dataclass
class Running:
    settings: ApiSettings
    address: str
    supervisor: Channel
    task: "asyncio.Task[None]"
    stats: list[dict[str, float]]

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @asynccontextmanager
    async def live(self, query: str = "") -> AsyncIterator[tuple[ClientConnection, dict[str, Any]]]:
        async with connect(f"ws://{self.address}/api/v1/live{query}", proxy=None, close_timeout=0.2) as socket:
            yield socket, json.loads(await asyncio.wait_for(socket.recv(), 2))


@asynccontextmanager
async def running(directory: Path, dsn: str | None = None, **more: Any) -> AsyncIterator[Running]:
    settings = ApiSettings(
        bind=(Endpoint("127.0.0.1", 0),),
        dsn=dsn or f"postgresql://weir@/weir?host={directory}",
        live_socket=directory / "run" / "live.sock",
        **more,
    )
    supervisor, ours = await Channel.pair()
    task = asyncio.create_task(serve(settings, ours))
    ready = await asyncio.wait_for(supervisor.receive(), 5)
    assert ready is not None
    assert ready["type"] == "ready"
    stats: list[dict[str, float]] = []
    answering = asyncio.create_task(answer(supervisor, stats))
    try:
        yield Running(settings, ready["addresses"][0], supervisor, task, stats)
    finally:
        with suppress(ConnectionError):
            await supervisor.send({"type": "drain"})
        await asyncio.wait_for(task, 10)
        answering.cancel()
        await supervisor.close()
        await ours.close()


async def answer(supervisor: Channel, stats: list[dict[str, float]]) -> None:
    async for message in supervisor:
        if message["type"] == "stats":
            stats.append(message["metrics"])
        elif message["name"] == "reload":
            await supervisor.answer(message, error="weir.yaml:1:1: error: no")
        elif message["name"] == "status":
            await supervisor.answer(
                message, {"ready": True, "checks": {"listeners": {"ok": True}, "ruleset": {"ok": True}}}
            )
        else:
            await supervisor.answer(message, {})


@pytest.fixture
async def weir() -> AsyncIterator[Running]:
    with temporary_directory() as directory:
        async with running(directory, live_history=3, live_queue=50) as made:
            yield made


class Inspector:
    """What an inspector does on its side of the live socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def wanted(self) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(1), 2)

    async def say(self, *items: dict[str, Any]) -> None:
        frame = json.dumps(items).encode()
        self.writer.write(struct.pack("<I", len(frame)) + frame)
        await self.writer.drain()


@pytest.fixture
async def inspector(weir: Running) -> AsyncIterator[Inspector]:
    reader, writer = await asyncio.open_unix_connection(str(weir.settings.live_socket))
    yield Inspector(reader, writer)
    writer.close()


async def heard(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(await asyncio.wait_for(socket.recv(), 2))


async def test_an_event_goes_from_an_inspector_to_a_client(weir: Running, inspector: Inspector) -> None:
    assert await inspector.wanted() == b"0"
    async with weir.live() as (socket, hello):
        assert (hello["kind"], hello["complete"]) == ("hello", True)
        assert await inspector.wanted() == b"1"
        await inspector.say(EXCHANGE, {"id": "2", "source_ip": "10.0.0.1"}, {"type": "dropped", "count": 4})
        first, second = await heard(socket), await heard(socket)
    assert first == {"seq": hello["seq"] + 1, "kind": "exchange", "item": EXCHANGE, "dropped": 0}
    assert (second["seq"], second["kind"]) == (hello["seq"] + 2, "connection")


async def test_the_filter_runs_on_our_side(weir: Running, inspector: Inspector) -> None:
    async with weir.live("?q=status%20%3D%3D%20404&kinds=exchange") as (socket, _):
        await inspector.say(EXCHANGE, EXCHANGE | {"status": "404"})
        assert (await heard(socket))["item"]["status"] == "404"


async def test_a_client_resumes_where_it_left(weir: Running, inspector: Inspector) -> None:
    async with weir.live() as (socket, _):
        await inspector.say(EXCHANGE)
        last = (await heard(socket))["seq"]
    async with weir.live():
        await inspector.say(EXCHANGE | {"id": "missed"})
        async with weir.live(f"?since={last}") as (socket, hello):
            assert hello["complete"] is True
            assert (await heard(socket))["item"]["id"] == "missed"
            assert last < (await heard_or_none(socket, last))


async def heard_or_none(socket: ClientConnection, last: int) -> int:
    """The newest number that is heard soon, or one after ``last`` when nothing more comes."""
    try:
        return int(json.loads(await asyncio.wait_for(socket.recv(), 0.05))["seq"])
    except TimeoutError:
        return last + 1


async def test_a_client_that_does_not_read_is_told_what_it_lost(weir: Running, inspector: Inspector) -> None:
    large = EXCHANGE | {"target": "x" * 100_000}
    async with weir.live() as (slow, _), weir.live("?kinds=configuration") as (other, _):
        for _ in range(30):
            await inspector.say(*[large] * 10)
        seqs, dropped = [], 0
        async with asyncio.timeout(20):
            while dropped == 0:
                try:
                    event = json.loads(await asyncio.wait_for(slow.recv(), 0.3))
                except TimeoutError:
                    await inspector.say(EXCHANGE)  # the loss is told with what comes after it
                    continue
                seqs.append(event["seq"])
                dropped += event["dropped"]
        assert seqs == sorted(seqs)
        assert seqs[-1] - seqs[0] + 1 == len(seqs) + dropped
        assert other.state.name == "OPEN"


@pytest.mark.parametrize("query", ["?q=domian", "?since=x", "?kinds=foo", "?qq=1", "?q=status%20%3E"])
async def test_a_wrong_parameter_is_told_before_the_socket_closes(weir: Running, query: str) -> None:
    async with weir.live(query) as (socket, problem):
        assert problem["kind"] == "problem"
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 2)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4400


async def test_other_sites_get_no_live_feed(weir: Running) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://{weir.address}/api/v1/live", origin="https://evil.example.com", proxy=None):  # type: ignore[arg-type]
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"\x02\0\0\0{}", b"\x01\0\0\0x"])
async def test_an_inspector_that_talks_nonsense_is_hung_up_on(
    weir: Running, inspector: Inspector, frame: bytes
) -> None:
    inspector.writer.write(frame)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(inspector.reader.read(), 2) == b"0"
    async with weir.live() as (_, hello):
        assert hello["kind"] == "hello"


async def test_the_feed_reports_a_reload(weir: Running) -> None:
    async with weir.live("?kinds=configuration") as (socket, _):
        await weir.supervisor.send({"type": "reload", "config": {}})
        assert (await heard(socket))["kind"] == "configuration"


async def test_questions_reach_the_supervisor(weir: Running) -> None:
    async with httpx.AsyncClient(base_url=weir.url, trust_env=False) as http:
        assert (await http.get("/api/v1/status")).json()["checks"]["listeners"]["ok"] is True
        refused = await http.post("/api/v1/reload")
        assert (refused.status_code, refused.json()["detail"]) == (409, "weir.yaml:1:1: error: no")
        head = await http.head("/health")
        assert (head.status_code, head.content) == (200, b"")


async def test_requests_are_counted_by_status(weir: Running) -> None:
    async with httpx.AsyncClient(base_url=weir.url, trust_env=False) as http:
        for path in ("/health", "/nowhere"):
            await http.get(path)
    async with asyncio.timeout(5):
        while not (weir.stats and weir.stats[-1].get("weir_api_requests_total|status_class=4xx")):
            await asyncio.sleep(0.02)
    assert weir.stats[-1]["weir_api_requests_total|status_class=2xx"] == 1


async def test_draining_ends_it_although_somebody_watches() -> None:
    with temporary_directory() as directory:
        async with running(directory) as made, made.live() as (socket, _):
            await made.supervisor.send({"type": "drain"})
            await asyncio.wait_for(made.task, 10)
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), 2)
        assert not made.settings.live_socket.exists()


async def test_the_end_of_the_channel_ends_it() -> None:
    with temporary_directory() as directory:
        async with running(directory) as made:
            await made.supervisor.close()
            await asyncio.wait_for(made.task, 10)


def test_a_port_that_is_taken_says_where_and_what_to_do() -> None:
    taken = listen(Endpoint("127.0.0.1", 0))
    try:
        with pytest.raises(BindFailed, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use .*api\.bind"):
            listen(Endpoint("127.0.0.1", taken.getsockname()[1]))
    finally:
        taken.close()


_WHAT_SERVING_IMPORTS = """
import asyncio, http.client, sys
from pathlib import Path
import appliance.api.process
from tests.api.test_process import running
appliance.api.process.prepare()
tested = set(sys.modules)

def ask(address, path):
    connection = http.client.HTTPConnection(address)
    connection.request("GET", path)
    connection.getresponse().read()

async def main(directory):
    async with running(Path(directory)) as made:
        for path in ("/health", "/ready", "/metrics", "/api/openapi.json", "/api/docs", "/nowhere",
                     "/api/v1/exchanges", "/api/v1/exchanges?q=x", "/stats/latency?by=x"):
            await asyncio.to_thread(ask, made.address, path)

asyncio.run(main(sys.argv[1]))
print(sorted(set(sys.modules) - tested))
"""


def test_serving_imports_nothing_because_it_may_not_be_able_to_read_it() -> None:
    with temporary_directory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", _WHAT_SERVING_IMPORTS, str(directory)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
