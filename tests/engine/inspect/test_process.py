"""The inspector process: rings one after the other, oldest first, deleted when durable; strangers' rings adopted."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.engine.inspect.process import Inspector
from appliance.engine.relay.tap import Tap
from appliance.engine.settings import InspectSettings, TapSettings
from appliance.model.connection import Closed, Connection, ConnectionRecord, End
from appliance.model.direction import TO_CLIENT, TO_SERVER
from appliance.model.endpoint import Endpoint
from appliance.model.exchange import Exchange, Missing
from appliance.observe import metrics
from appliance.record.batch import Position
from appliance.record.recorder import State, Stats
from appliance.record.redact import NOTHING, Redacted

REQUEST = b"GET /%d HTTP/1.1\r\nHost: origin.example\r\n\r\n"
RESPONSE = b"HTTP/1.1 204 No Content\r\n\r\n"


class Recorder:
    """Stands in for record.Recorder: durable is what ``write`` was called with."""

    def __init__(self) -> None:
        self.state = State.DATABASE
        self.stats = Stats()
        self.durable: list[Exchange | ConnectionRecord] = []
        self.positions: dict[str, Position] = {}
        self.forgotten: list[str] = []
        self._pending: list[Exchange | ConnectionRecord] = []

    @property
    def pending(self) -> int:
        return len(self._pending)

    def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> Redacted:
        self._pending.append(exchange)
        return Redacted(b"", b"", exchange.target, None, None, NOTHING, NOTHING, None, Missing.NONE)

    def connection(self, record: ConnectionRecord) -> ConnectionRecord:
        self._pending.append(record)
        return record

    def take(self) -> list[Exchange | ConnectionRecord]:
        taken, self._pending = self._pending, []
        return taken

    async def write(self, batch: Any, ring: str, position: int, resume: bytes) -> None:
        assert ring not in self.positions or position > self.positions[ring].position
        self.positions[ring] = Position(position, resume)
        self.durable += batch

    async def forget(self, ring: str) -> None:
        self.forgotten.append(ring)

    async def position(self, ring: str) -> Position | None:
        return self.positions.get(ring)

    @property
    def targets(self) -> list[str]:
        return [row.target for row in self.durable if isinstance(row, Exchange)]

    @property
    def ends(self) -> list[End]:
        return [row.closed.end for row in self.durable if isinstance(row, ConnectionRecord) and row.closed]


def relay(directory: Path, index: int) -> Tap:
    return Tap(TapSettings(directory=directory, ring_bytes=1 << 20, slots=64), index)


def talk(tap: Tap, number: int, *, ends: bool = True) -> None:
    here = Endpoint("127.0.0.1", 80)
    line = tap.open(Connection(os.urandom(16), 1, "transparent", here, here))
    line.copy(TO_SERVER, REQUEST % number)
    line.copy(TO_CLIENT, RESPONSE)
    if ends:
        line.close(Closed(5, End.CLOSED, 0, 0))


def inspector(directory: Path, recorder: Any, **changes: Any) -> Inspector:
    settings = InspectSettings(directory=directory, **({"count": 1, "batch_age": 0.01} | changes))
    return Inspector(settings, 0, recorder, metrics.Registry())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_dead_relays_ring_is_read_to_its_end_before_the_next_and_then_deleted(tmp_path: Path) -> None:
    dead = relay(tmp_path, 0)
    talk(dead, 1)
    talk(dead, 2, ends=False)
    living = relay(tmp_path, 0)
    talk(living, 3)
    recorder = Recorder()
    running = inspector(tmp_path, recorder)
    task = asyncio.create_task(running.run())
    await until(lambda: len(recorder.targets) == 3)
    assert recorder.targets == ["/1", "/2", "/3"]
    assert recorder.ends == [End.CLOSED, End.LOST, End.CLOSED]
    assert not dead.ring.path.exists()
    assert living.ring.path.exists()
    running.draining = True
    await task


async def test_a_finished_ring_is_deleted_only_after_its_last_row(tmp_path: Path) -> None:
    tap = relay(tmp_path, 0)
    recorder = Recorder()
    running = inspector(tmp_path, recorder)
    task = asyncio.create_task(running.run())
    talk(tap, 1)
    tap.close()
    await until(lambda: not tap.ring.path.exists())
    assert recorder.targets == ["/1"]
    assert list(tmp_path.iterdir()) == []
    running.draining = True
    await task


async def test_rings_of_relays_that_are_no_more_are_adopted_by_the_first_inspector(tmp_path: Path) -> None:
    tap = relay(tmp_path, 3)
    talk(tap, 1)
    recorder = Recorder()
    running = inspector(tmp_path, recorder, count=2)
    task = asyncio.create_task(running.run())
    await until(lambda: not tap.ring.path.exists())
    assert recorder.targets == ["/1"]
    running.draining = True
    await task


async def test_draining_makes_durable_what_was_read(tmp_path: Path) -> None:
    tap = relay(tmp_path, 0)
    for number in range(20):
        talk(tap, number)
    recorder = Recorder()
    running = inspector(tmp_path, recorder, batch_age=1000.0)
    running.draining = True
    await running.run()
    assert recorder.targets == [f"/{number}" for number in range(20)]
    assert tap.ring.fill == 0


async def test_a_protocol_that_is_switched_off_is_not_understood(tmp_path: Path) -> None:
    tap = relay(tmp_path, 0)
    talk(tap, 1)
    recorder = Recorder()
    running = inspector(tmp_path, recorder, protocols=())
    running.draining = True
    await running.run()
    assert recorder.targets == []
    assert recorder.ends == [End.CLOSED]


async def test_a_message_half_way_at_the_last_commit_is_whole_even_if_the_database_cannot_be_asked(
    tmp_path: Path,
) -> None:
    tap = relay(tmp_path, 0)
    here = Endpoint("127.0.0.1", 80)
    line = tap.open(Connection(os.urandom(16), 1, "transparent", here, here))
    line.copy(TO_SERVER, REQUEST % 1)
    talk(tap, 2)
    running = inspector(tmp_path, Recorder())
    running.draining = True
    await running.run()
    line.copy(TO_CLIENT, RESPONSE)
    line.close(Closed(5, End.CLOSED, 0, 0))
    tap.close()
    blind = Recorder()
    running = inspector(tmp_path, blind)
    running.draining = True
    await running.run()
    (exchange,) = [row for row in blind.durable if isinstance(row, Exchange)]
    assert (exchange.target, exchange.status_code, exchange.missing) == ("/1", 204, Missing.NONE)


async def test_when_the_database_cannot_be_asked_the_note_beside_the_ring_is_believed(tmp_path: Path) -> None:
    tap = relay(tmp_path, 0)
    talk(tap, 1)
    first = Recorder()
    running = inspector(tmp_path, first)
    running.draining = True
    await running.run()
    talk(tap, 2)
    blind = Recorder()
    running = inspector(tmp_path, blind)
    running.draining = True
    await running.run()
    assert blind.targets == ["/2"]
    last = first.positions[tap.ring.path.name].position
    assert blind.positions[tap.ring.path.name].position > last
