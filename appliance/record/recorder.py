"""Exchanges in, durable rows out: the collector's only door to storage.

``exchange`` and ``connection`` redact, pack and encode at once and keep rows as bytes; ``take`` hands out what is
pending; ``write`` returns when it is durable, in the database or, while that is away, in the spool. A task of its own
connects again and replays the spool in order before new batches go to the database directly, so that the order within
a ring never changes. What fits neither is lost, and counted.
"""

import asyncio
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from itertools import islice

import msgspec

from appliance.model.connection import Connection, ConnectionRecord
from appliance.model.exchange import Exchange, Missing
from appliance.observe.logging import get_logger
from appliance.record import partitions, rows
from appliance.record.batch import Batch, Entry, Position, decode_entry, encode_entry, joined
from appliance.record.pack import BodyPacker, pack_heads
from appliance.record.redact import Content, Redacted, Redactor, load_key
from appliance.record.settings import MIB, RecordSettings
from appliance.record.spool import Spool, SpoolBusy
from appliance.record.store import PostgresStore, StoreAway

log = get_logger("recorder")

_REDACTED = int(Missing.REDACTED)  # plain: an IntFlag's operators cost a microsecond

BYTES_PER_ROW = 8192  # a batch of large bodies is due earlier: each so many bytes count as one pending row
OPEN_CONNECTIONS = 1_000_000  # ids remembered of connections that have a row while open
REPLAYED_AT_ONCE = 4 * MIB  # bytes of spooled batches that one transaction takes
SPOOL_WAIT = 30.0  # seconds that another process may need to let go of our spool


class State(StrEnum):
    """Where rows go now."""

    DATABASE = "database"
    SPOOLING = "spooling"
    LOSING = "losing"  # the database is away and the spool takes no more


@dataclass(slots=True)
class Stats:
    """Counters since the start. Rows are exchanges and connections together."""

    rows: int = 0
    batches: int = 0
    bodies: int = 0
    bodies_known: int = 0  # not sent again
    body_bytes: int = 0  # before compression
    body_bytes_stored: int = 0
    redacted: int = 0  # exchanges with at least one replaced value
    sampled_out: int = 0
    spooled_rows: int = 0
    spooled_batches: int = 0
    replayed_rows: int = 0
    lost_rows: int = 0
    lost_bytes: int = 0
    torn_bytes: int = 0  # found damaged in a spool
    rejected_rows: int = 0  # refused by the database
    spool_bytes: int = 0  # now


class Recorder:
    """One writer. Not thread-safe; belongs to one event loop."""

    def __init__(self, settings: RecordSettings, writer_name: str) -> None:
        self.stats = Stats()
        self.state = State.SPOOLING
        self._settings = settings
        self._writer = writer_name
        self._redactor = Redactor(settings.redaction, load_key(settings.redaction.key_file))
        self._pack_body = BodyPacker(settings.compression).pack
        self._encoder = rows.RowEncoder()
        self._store = PostgresStore(settings, writer_name)
        self._spool = Spool(replace(settings.spool, directory=settings.spool.directory / writer_name))
        sampling = settings.sampling
        self._samples = sampling.default_rate < 1 or sampling.error_rate < 1 or bool(sampling.rules)
        self._keeps_everything = settings.record_headers and settings.record_body and not self._samples

        self._records: list[bytes] = []
        self._logs: dict[bytes, bytes] = {}
        self._endings: dict[bytes, bytes] = {}
        self._bodies: dict[tuple[int, bytes], bytes] = {}
        self._bytes = 0
        self._days: set[int] = set()
        self._day = 0  # of the newest record, and the ids that begin and end it
        self._day_first = self._day_end = b""
        self._open: set[bytes] = set()
        self._stored_bodies: dict[tuple[int, bytes], None] = {}

        self._positions: dict[str, Position] = {}
        self._writing = asyncio.Lock()
        self._away = asyncio.Event()
        self._in_database = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    # Life

    async def start(self) -> None:
        """Open the spool and wait a while for the database; go on without it if it does not come."""
        await self._open_spool()
        self._away.set()
        self._keeper = asyncio.create_task(self._keep(), name=f"recorder {self._writer}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._in_database.wait(), self._settings.start_timeout)

    async def close(self) -> None:
        """Stop. What ``write`` returned for is durable; what is still pending is not written."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        await self._store.close()
        self._spool.close()

    # Collecting: called for every exchange

    def exchange(self, exchange: Exchange, connection: Connection, id: bytes) -> Redacted:
        """Take one exchange under a UUIDv7; returns what of it may be shown to anybody."""
        clean = self._redactor.exchange(exchange)
        missing = clean.missing
        if missing & _REDACTED:
            self.stats.redacted += 1
        if not self._day_first <= id < self._day_end:
            self._turn_to(id)
        headers = request_hash = response_hash = None
        if self._keeps_everything:
            headers = pack_heads(clean.request_head, clean.response_head)
            if clean.request.data:
                request_hash = self._body(clean.request)
            if clean.response.data:
                response_hash = self._body(clean.response)
        elif self._samples and not self._keeps(exchange, id):
            missing |= Missing.SAMPLED_OUT
            self.stats.sampled_out += 1
        else:
            if self._settings.record_headers:
                headers = pack_heads(clean.request_head, clean.response_head)
            if not self._settings.record_body:
                missing |= Missing.NOT_RECORDED if clean.request.data or clean.response.data else 0
            else:
                request_hash = self._body(clean.request) if clean.request.data else None
                response_hash = self._body(clean.response) if clean.response.data else None
            if headers is None:
                missing |= Missing.NOT_RECORDED
        metadata = clean.metadata
        if exchange.violations:
            metadata = {**(metadata or {}), "violations": exchange.violations}
        row = self._encoder.record(
            id, exchange, connection, clean, headers, request_hash, response_hash, metadata, missing
        )
        self._records.append(row)
        self._bytes += len(row)
        return clean if missing == clean.missing else clean._replace(missing=missing)

    def connection(self, record: ConnectionRecord) -> ConnectionRecord:
        """Take one connection: while it is open, when it ended, or both one after the other.

        Returns what of it may be shown to anybody.
        """
        record = self._redactor.connection(record)
        connection, closed = record.connection, record.closed
        row = self._encoder.log(record)
        id = connection.id
        written = id in self._open and id not in self._logs
        if closed is not None:
            self._open.discard(id)
        else:
            if len(self._open) >= OPEN_CONNECTIONS:
                self._open.clear()  # their ends are merged by the database's unique ids instead
            self._open.add(id)
        (self._endings if written else self._logs)[id] = row
        self._days.add(partitions.day_of_id(id))
        self._bytes += len(row)
        return record

    @property
    def pending(self) -> int:
        """Rows that wait for ``take``, or what their bytes are worth in rows if that is more."""
        return max(len(self._records) + len(self._logs) + len(self._endings), self._bytes // BYTES_PER_ROW)

    def take(self) -> Batch:
        """Everything that is pending, which it then no longer is."""
        join = b"".join
        batch = Batch(
            join(self._records),
            join(self._logs.values()),
            join(self._endings.values()),
            join(self._bodies.values()),
            len(self._records) + len(self._logs) + len(self._endings),
            tuple(self._days),
            tuple(self._bodies),
        )
        self._records = []
        self._logs = {}
        self._endings = {}
        self._bodies = {}
        self._bytes = 0
        self._days = set()
        self._day_first = self._day_end = b""
        return batch

    # Making durable

    async def position(self, ring: str) -> Position | None:
        """How far this ring's rows are durable. None when none are, or when the database cannot be asked now."""
        known = self._positions.get(ring)
        if known is not None or self.state is not State.DATABASE:
            return known
        async with self._writing:
            try:
                return await self._store.position(ring)
            except StoreAway as error:
                self._lose_sight(error)
                return None

    async def forget(self, ring: str) -> None:
        """A ring is read to its end and deleted: nobody will ask for its position again.

        While the database is away the position stays there; that costs a row.
        """
        self._positions.pop(ring, None)
        if self.state is not State.DATABASE:
            return
        async with self._writing:
            try:
                await self._store.forget(ring)
            except StoreAway as error:
                self._lose_sight(error)

    async def write(self, batch: Batch, ring: str, position: int, resume: bytes) -> None:
        """Make a batch durable together with its position. Batches are written in the order of the calls.

        While the database is away they go to the spool; what that does not take is lost and counted in ``stats``.
        """
        entry = Entry(batch, ring, position, resume)
        async with self._writing:
            if self.state is State.DATABASE:
                try:
                    await self._store.write(entry)
                except StoreAway as error:
                    self._lose_sight(error)
                else:
                    self._durable(entry)
                    return
            self._put_aside(entry)
        if self._keeper is not None and self._keeper.done():
            await self._keeper  # it never ends by itself: this raises what ended it

    def _durable(self, entry: Entry) -> None:
        batch, stats = entry.batch, self.stats
        stats.batches += 1
        stats.rows += batch.rows
        stats.rejected_rows = self._store.rejected
        self._positions[entry.ring] = Position(entry.position, entry.resume)
        stored = self._stored_bodies
        stored.update(dict.fromkeys(batch.hashes))
        if len(stored) > self._settings.known_bodies:
            for key in list(islice(stored, len(stored) - self._settings.known_bodies * 3 // 4)):
                del stored[key]

    def _put_aside(self, entry: Entry) -> None:
        batch, stats = entry.batch, self.stats
        if self._spool.append(encode_entry(entry)):
            stats.spooled_batches += 1
            stats.spooled_rows += batch.rows
            stats.spool_bytes = self._spool.size
            self._durable(entry)
            self._become(State.SPOOLING)
            return
        stats.lost_rows += batch.rows
        stats.lost_bytes += batch.size
        self._become(State.LOSING)

    # The database's coming and going

    async def _keep(self) -> None:
        delay = self._settings.retry_first
        reason = ""
        while True:
            if self._away.is_set():
                try:
                    await self._store.connect()
                    await self._adopt_spools()
                    await self._replay(self._spool)
                except StoreAway as error:
                    if str(error) != reason:
                        reason = str(error)
                        log.warning("database cannot be used yet", reason=reason, writer=self._writer)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, self._settings.retry_last)
                    continue
                delay, reason = self._settings.retry_first, ""
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.maintenance_every):
                    await self._maintain_until_away()

    async def _maintain_until_away(self) -> None:
        """Building an index takes as long as it takes, and must not keep us from noticing that the database went."""
        async with asyncio.TaskGroup() as group:
            maintenance = group.create_task(self._maintain(), name=f"maintenance {self._writer}")
            await self._away.wait()
            maintenance.cancel()

    async def _maintain(self) -> None:
        try:
            built = await self._store.maintain()
        except StoreAway as error:
            log.debug("maintenance put off", reason=str(error))
        else:
            if built:
                log.info("indexes built", indexes=built)

    async def _replay(self, spool: Spool) -> None:
        """Bring the spool to the database, oldest first; then, if it is ours, let new batches go there directly."""
        while True:
            payloads = spool.first(REPLAYED_AT_ONCE)
            if not payloads:
                async with self._writing:
                    if spool.first():
                        continue  # a batch was put aside while we waited for our turn
                    self.stats.spool_bytes = self._spool.size
                    self.stats.torn_bytes += spool.damaged
                    spool.damaged = 0
                    if spool is self._spool:
                        self._away.clear()
                        self._become(State.DATABASE)
                        self._in_database.set()
                    return
            # One transaction costs as much for many rows as for few: replaying must be faster than what comes in.
            entries: list[Entry] = []
            for count, payload in enumerate(payloads):
                try:
                    entry = decode_entry(payload)
                except msgspec.DecodeError as error:
                    log.error("spooled batch unreadable", reason=str(error), bytes=len(payload))
                    self.stats.torn_bytes += len(payload)
                    continue
                if entries and entry.ring != entries[0].ring:
                    payloads = payloads[:count]
                    break
                entries.append(entry)
            if entries:
                together = joined(entries)
                await self._store.write(together, doubtful=True)
                self.stats.replayed_rows += together.batch.rows
                self.stats.rejected_rows = self._store.rejected
            spool.drop(payloads)
            self.stats.spool_bytes = self._spool.size

    async def _adopt_spools(self) -> None:
        """Replay what writers left who are no more (there were more inspectors once)."""
        for directory in sorted({path.parent for path in self._settings.spool.directory.glob("*/*.spool")}):
            if directory.name == self._writer:
                continue
            orphan = Spool(replace(self._settings.spool, directory=directory))
            try:
                found = orphan.open()
            except SpoolBusy:
                continue  # its writer lives
            except OSError as error:
                log.warning("another writer's spool cannot be read", spool=directory.name, reason=str(error))
                continue
            try:
                log.info("replaying another writer's spool", spool=directory.name, batches=found.entries)
                await self._replay(orphan)
            finally:
                orphan.close()

    async def _open_spool(self) -> None:
        try:
            async with asyncio.timeout(SPOOL_WAIT):
                while True:
                    with suppress(SpoolBusy):
                        found = self._spool.open(self._remember)
                        break
                    await asyncio.sleep(0.1)
        except OSError as error:
            # TimeoutError is one too: then somebody else writes as us, and two must not.
            if isinstance(error, TimeoutError):
                raise SpoolBusy(f"another process writes as {self._writer!r}") from error
            log.error("no spool: rows are lost while the database is away", reason=str(error))
            return
        self.stats.torn_bytes += found.lost
        self.stats.spool_bytes = found.size
        if found.lost:
            log.warning("spool damaged", lost_bytes=found.lost)
        if found.entries:
            log.info("spool has batches to replay", batches=found.entries, bytes=found.size)

    def _remember(self, payload: bytes) -> None:
        with suppress(msgspec.DecodeError):
            entry = decode_entry(payload)
            self._positions[entry.ring] = Position(entry.position, entry.resume)

    def _lose_sight(self, error: StoreAway) -> None:
        log.warning("database away, spooling", reason=str(error), writer=self._writer)
        self._become(State.SPOOLING)
        self._in_database.clear()
        self._away.set()

    def _become(self, state: State) -> None:
        if state is self.state:
            return
        say = {State.DATABASE: log.info, State.SPOOLING: log.warning, State.LOSING: log.error}[state]
        say(
            "recording to another place",
            state=state,
            before=self.state,
            lost_rows=self.stats.lost_rows,
            spool_bytes=self._spool.size,
        )
        self.state = state

    # Content

    def _turn_to(self, id: bytes) -> None:
        self._day = partitions.day_of_id(id)
        first, end = partitions.bounds(self._day)
        self._day_first, self._day_end = first.bytes, end.bytes
        self._days.add(self._day)

    def _body(self, content: Content) -> bytes:
        """The hash under which the body is stored; its bytes go along unless they went before."""
        data = content.data
        digest = content.digest or sha256(data).digest()
        key = (self._day, digest)
        if key in self._stored_bodies or key in self._bodies:
            self.stats.bodies_known += 1
        else:
            form, packed = self._pack_body(data)
            row = rows.body(digest, self._day, form, len(data), packed)
            self._bodies[key] = row
            self._bytes += len(row)
            self.stats.bodies += 1
            self.stats.body_bytes += len(data)
            self.stats.body_bytes_stored += len(packed)
        return digest

    def _keeps(self, exchange: Exchange, id: bytes) -> bool:
        """Whether the content is kept: the same answer whenever the same exchange is asked about again."""
        sampling = self._settings.sampling
        rate = sampling.default_rate
        if exchange.status_code >= 400 or exchange.error:
            rate = sampling.error_rate
        else:
            for prefix, of_rule in sampling.rules:
                if exchange.target.startswith(prefix):
                    rate = of_rule
                    break
        return zlib.crc32(id) < rate * 2**32
