"""One inspector process: read the rings of one relay, oldest first, and make what was understood durable.

The order of every round is the promise: take the rows, note the checkpoint, write both in one transaction, and only
then release the ring. Killed at any point, the next inspector starts where the last transaction stands.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.dissectors import registry as protocols
from appliance.dissectors.kit.spec import Capture
from appliance.engine.control import Channel, ChannelClosed
from appliance.engine.inspect import resume
from appliance.engine.inspect.knowledge import Knowledge
from appliance.engine.inspect.live import LiveFeed
from appliance.engine.inspect.ring_work import RingWork
from appliance.engine.inspect.sink import RecordingSink
from appliance.engine.ring import layout
from appliance.engine.ring.reader import RingReader
from appliance.engine.settings import InspectSettings
from appliance.observe import metrics
from appliance.observe.logging import get_logger
from appliance.observe.process import publish
from appliance.record.recorder import Recorder
from appliance.record.settings import RecordSettings

log = get_logger("inspector")

READ_BUDGET = 256 * 1024  # bytes of the ring per round
PENDING_BATCHES = 20  # rows that may wait for a slow store, in batches; then reading waits
RELEASE_EVERY = 0.05  # seconds between releases that have no rows to wait for
LOOK_EVERY = 0.25  # seconds between looks for new rings and between announcements
DISTRUST = 1000  # how far commit numbers jump when the database could not be asked for the last one


class Inspector:
    """The rings of relay ``index``, one after the other."""

    def __init__(self, settings: InspectSettings, index: int, recorder: Recorder, registry: metrics.Registry) -> None:
        self._settings = settings
        self._index = index
        self._recorder = recorder
        self._registry = registry
        self.live = LiveFeed(settings.live_socket)
        self._sink = RecordingSink(recorder, self.live, registry)
        self._capture = _capture(settings)
        self._knowledge = _knowledge(settings)
        self._number = 0
        self._unreadable = 0
        self._failures = 0  # in rings that are finished
        self._writing: asyncio.Task[None] | None = None
        self._work: RingWork | None = None
        self.draining = False

    def obey(self, settings: InspectSettings) -> None:
        """Take new settings for connections that open from now on."""
        self._settings = settings
        self._capture = _capture(settings)
        self._knowledge = _knowledge(settings)
        if self._work is not None:
            self._work.obey(self._knowledge, self._capture)

    async def run(self) -> None:
        """Until drained: work through every ring there is, then wait for the next."""
        while True:
            ring = self._next_ring()
            if ring is None:
                if self.draining:
                    return
                await asyncio.sleep(self._settings.poll * 4)
                continue
            if not await self._work_through(ring):
                return

    async def _work_through(self, path: Path) -> bool:
        """Read one ring until nothing can follow in it; False when draining ended it first."""
        try:
            reader = RingReader(path)
        except ValueError as error:
            # Another version wrote it, or power was lost while it was made. Set aside, so that the next one is read.
            log.error("ring cannot be read; set aside", ring=path.name, reason=str(error))
            self._unreadable += 1
            path.rename(path.with_suffix(".unreadable"))
            return True
        work = self._work = RingWork(reader, self._sink, self._knowledge, self._capture, await self._left(reader))
        log.info("reading ring", ring=path.name, position=reader.position, lag=reader.lag)
        clock = time.monotonic
        looked = released = taken = clock()
        last = False
        while True:
            progressed = work.step(READ_BUDGET)
            now = clock()
            if now - looked > LOOK_EVERY:
                looked = now
                work.announce(time.time_ns())
                last = reader.finished or self._is_over(path)
            if work.replaying:
                await asyncio.sleep(0)
                continue
            pending = self._recorder.pending
            if pending and (pending >= self._settings.batch_rows or now - taken > self._settings.batch_age):
                if self._writing is None or self._writing.done():
                    taken = now
                    self._commit(work)
                elif pending > PENDING_BATCHES * self._settings.batch_rows:
                    await self._written()
            elif not pending and now - released > RELEASE_EVERY and (self._writing is None or self._writing.done()):
                released = now
                reader.release(work.checkpoint().tail)
            if progressed:
                await asyncio.sleep(0)
                continue
            if last and not reader.lag:
                await self._finish(work, path)
                return True
            if self.draining and not reader.lag:
                await self._settle(work)
                return False
            await asyncio.sleep(self._settings.poll)

    async def _finish(self, work: RingWork, path: Path) -> None:
        """Nothing follows in this ring: end what it left open, make it durable, delete it."""
        if work.connections:
            log.warning("ring ended with open connections", ring=path.name, connections=work.connections)
            work.abandon(time.time_ns())
        await self._settle(work)
        work.reader.close()
        self._work = None
        self._failures += work.failures
        path.unlink(missing_ok=True)
        resume.drop_note(path)
        await self._recorder.forget(path.name)

    async def _settle(self, work: RingWork) -> None:
        """Make everything that was read durable."""
        await self._written()
        if self._recorder.pending:
            self._commit(work)
            await self._written()
        work.reader.release(work.checkpoint().tail)

    def _commit(self, work: RingWork) -> None:
        if self._writing is not None:
            self._writing.result()  # raises what went wrong
        batch = self._recorder.take()
        checkpoint = work.checkpoint()
        self._number += 1
        number = self._number
        reader = work.reader
        self.live.flush()

        async def write() -> None:
            await self._recorder.write(batch, reader.path.name, number, checkpoint.resume)
            resume.write_note(reader.path, number, checkpoint.resume)
            reader.release(checkpoint.tail)

        # What is raised in there is our own fault, not the database's (the recorder spools then): better to die and
        # start again at the last commit than to go on with a hole.
        self._writing = asyncio.get_running_loop().create_task(write(), name="write batch")

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing

    async def _left(self, reader: RingReader) -> resume.Resume:
        """What the last inspector of this ring left."""
        position = await self._recorder.position(reader.path.name)
        if position is not None:
            self._number = position.position
            return resume.decode(position.resume)
        noted = resume.read_note(reader.path)
        if noted is not None:
            # Somebody committed, and the database cannot be asked what: there may be one more than was noted.
            self._number = noted[0] + DISTRUST
            return noted[1]
        self._number = 0
        return resume.START

    def _next_ring(self) -> Path | None:
        """The oldest of our relay's rings, or one of a relay that has no inspector any more."""
        rings = self._rings(self._index)
        if not rings and self._index == 0:
            rings = [path for path in self._settings.directory.glob("relay-*.ring") if self._is_nobodys(path)]
        return rings[0] if rings else None

    def _rings(self, index: int) -> list[Path]:
        return sorted(self._settings.directory.glob(f"relay-{index}.*.ring"))

    def _is_nobodys(self, path: Path) -> bool:
        return layout.index_of(path) >= self._settings.count

    def _is_over(self, path: Path) -> bool:
        """Whether nobody writes this ring any more: its relay was started again, or will not be."""
        return self._is_nobodys(path) or self._rings(layout.index_of(path))[-1] != path

    def snapshot(self) -> metrics.Snapshot:
        """This process's metrics now."""
        registry = self._registry
        if self._work is not None:
            registry.cell(metrics.INSPECTOR_LAG_BYTES).value = self._work.reader.lag
            lag = (time.time_ns() - self._work.last_at) / 1e9 if self._work.reader.lag and self._work.last_at else 0.0
            registry.cell(metrics.INSPECTOR_LAG_SECONDS).value = lag
        failures = self._failures + self._unreadable + (self._work.failures if self._work is not None else 0)
        registry.cell(metrics.INSPECTION_FAILURES).value = failures
        registry.cell(metrics.LIVE_DROPPED, "inspector").value = self.live.lost
        self._sink.publish()
        publish(registry)
        return registry.snapshot()


async def serve(settings: InspectSettings, record: RecordSettings, index: int, channel: Channel) -> None:
    """Run inspector ``index`` until told to drain (the ring is read to its end first) or the supervisor is gone."""
    registry = metrics.Registry()
    recorder = Recorder(record, f"inspector-{index}")
    await recorder.start()
    inspector = Inspector(settings, index, recorder, registry)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(inspector.run(), name="inspect")
        helpers = [
            group.create_task(inspector.live.stay_connected(), name="live"),
            group.create_task(_report(inspector.snapshot, channel), name="report"),
            group.create_task(_listen(inspector, channel), name="listen"),
        ]
        await channel.send({"type": "ready"})
        running.add_done_callback(lambda _: [task.cancel() for task in helpers])
    await recorder.close()


async def _listen(inspector: Inspector, channel: Channel) -> None:
    async for message in channel:
        if message["type"] == "drain":
            break
        if message["type"] == "reload":
            inspector.obey(message["settings"])
    inspector.draining = True


async def _report(snapshot: Callable[[], metrics.Snapshot], channel: Channel) -> None:
    with suppress(ChannelClosed):
        while True:
            await asyncio.sleep(1)
            with suppress(TimeoutError):  # a supervisor that hangs must not cost a record
                await channel.send({"type": "stats", "metrics": snapshot()})


def _capture(settings: InspectSettings) -> Capture:
    return Capture(body_head=settings.body_head, body_tail=settings.body_tail, digest_limit=settings.digest_limit)


def _knowledge(settings: InspectSettings) -> Knowledge:
    return Knowledge(protocols.load(settings.protocols), settings.detection_ports, settings.detection_cache)
