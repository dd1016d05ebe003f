"""The live feed: inspectors bring events over a Unix socket, every client takes those that match its filter.

Nobody waits for anybody. A client that is too slow loses events and is told how many; an inspector is told whether
anybody watches at all, so that it need not describe what nobody wants. The last events are kept for clients that come
back: they name the last ``seq`` they saw.
"""

import asyncio
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import msgspec

from appliance.observe import metrics
from appliance.observe.logging import get_logger
from appliance.rules.filter import CONNECTIONS, EXCHANGES, FilterError, matcher, parse

log = get_logger("live")

Kind = Literal["exchange", "connection", "configuration"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Matches = Callable[[Mapping[str, Any]], bool]

MAX_FRAME = 16 << 20  # bytes; an inspector sends one batch at a time
LINGER = 30.0  # seconds that inspectors go on after the last client left, so that it can resume
_LENGTH = struct.Struct("<I")
_FIELDS = {"exchange": EXCHANGES, "connection": CONNECTIONS}

_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Event(NamedTuple):
    """Something that happened. ``seq`` rises by one with each event, and from one run of the API to the next."""

    seq: int
    kind: Kind
    item: Mapping[str, Any]


class Interest:
    """Which events a client wants: some kinds, and a filter that those with fields must match."""

    def __init__(self, q: str, kinds: frozenset[Kind] | None, now: datetime) -> None:
        """Read the filter for every kind asked for; for those it can be read for when none is (``kinds`` None).

        Raises ``FilterError``.
        """
        self._matches: dict[Kind, Matches] = {}
        failures: list[FilterError] = []
        for kind in kinds or KINDS:
            fields = _FIELDS.get(kind)
            if fields is None:
                self._matches[kind] = lambda item: True
                continue
            try:
                self._matches[kind] = matcher(parse(q, fields, now))
            except FilterError as error:
                failures.append(error)
        if failures and (kinds is not None or len(failures) == len(_FIELDS)):
            raise failures[0]

    def wants(self, event: Event) -> bool:
        """Whether the client is to see it."""
        matches = self._matches.get(event.kind)
        if matches is None:
            return False
        try:
            return matches(event.item)
        except (ValueError, TypeError, AttributeError) as error:
            # An inspector of another version: a field is not what its name promises.
            log.warning("live event cannot be filtered", kind=event.kind, error=str(error))
            return False


class Client:
    """What waits for one client: events, each with the number of those lost before it."""

    def __init__(self, interest: Interest, room: int) -> None:
        self._interest = interest
        self._room = room
        self._waiting: deque[tuple[Event, int]] = deque()
        self._arrived = asyncio.Event()
        self._dropped = 0

    def offer(self, event: Event) -> bool:
        """Queue an event if the client wants it. False when it wanted it and had no room."""
        if not self._interest.wants(event):
            return True
        if len(self._waiting) >= self._room:
            self._dropped += 1
            return False
        self._waiting.append((event, self._dropped))
        self._dropped = 0
        self._arrived.set()
        return True

    async def take(self) -> tuple[Event, int]:
        """The next event, and how many were lost between it and the one before."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()


class Hub:
    """Everybody's events. Give it what happened by ``publish``; ``start`` listens for inspectors."""

    def __init__(self, history: int = 2000, room: int = 1000, registry: metrics.Registry | None = None) -> None:
        self._history: deque[Event] = deque(maxlen=history)
        self._room = room
        # From the clock, so that a restarted API never gives out a number twice (fits 2^53 for a million events/s).
        self._seq = time.time_ns() // 1_000_000 * 1000
        self._clients: set[Client] = set()
        self._inspectors: set[_Inspector] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        registry = registry or metrics.Registry()
        self._sent = registry.cell(metrics.LIVE_SENT)
        self._dropped = registry.cell(metrics.LIVE_DROPPED, "client")
        self._watching = registry.cell(metrics.LIVE_CLIENTS)
        self._ending: asyncio.TimerHandle | None = None

    @property
    def seq(self) -> int:
        """The number of the newest event."""
        return self._seq

    @property
    def wanted(self) -> bool:
        """Whether anybody watches, or did a moment ago."""
        return bool(self._clients) or self._ending is not None

    def publish(self, kind: Kind, item: Mapping[str, Any]) -> None:
        """Tell everybody who wants to know."""
        self._seq += 1
        event = Event(self._seq, kind, item)
        self._history.append(event)
        for client in self._clients:
            if not client.offer(event):
                self._dropped.value += 1

    def join(self, interest: Interest, since: int | None = None) -> tuple[Client, bool]:
        """A new client, with the events after ``since`` waiting for it.

        The second value says whether all events since then are still known. Leave with ``leave``.
        """
        client = Client(interest, self._room)
        known = self._history[0].seq if self._history else self._seq + 1
        complete = since is None or known - 1 <= since <= self._seq
        if since is not None:
            for event in self._history:
                if event.seq > since:
                    client.offer(event)
        self._clients.add(client)
        self._changed()
        return client, complete

    def leave(self, client: Client) -> None:
        """Forget a client."""
        self._clients.discard(client)
        self._changed()

    def count_sent(self) -> None:
        """One event went out to one client."""
        self._sent.value += 1

    async def start(self, path: Path) -> None:
        """Listen for inspectors. Replaces a socket that an earlier run left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._path = path
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Inspector(self), str(path))
        # Only processes of the same user may tell us what happened.
        path.chmod(0o600)

    async def close(self) -> None:
        """Stop listening and hang up on inspectors."""
        if self._ending is not None:
            self._ending.cancel()
        if self._server is not None:
            self._server.close()
        for inspector in list(self._inspectors):
            inspector.hang_up()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def arrived(self, inspector: "_Inspector") -> None:
        """An inspector has connected."""
        self._inspectors.add(inspector)
        inspector.tell(self.wanted)

    def gone(self, inspector: "_Inspector") -> None:
        """An inspector has left."""
        self._inspectors.discard(inspector)

    def _changed(self) -> None:
        self._watching.value = len(self._clients)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        if not self._clients:
            self._ending = asyncio.get_running_loop().call_later(LINGER, self._end)
        self._tell_inspectors()

    def _end(self) -> None:
        self._ending = None
        self._tell_inspectors()

    def _tell_inspectors(self) -> None:
        for inspector in self._inspectors:
            inspector.tell(self.wanted)


class _Inspector(asyncio.Protocol):
    """One inspector's connection: frames of a u32 length (little-endian) and a JSON array of objects."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._told: bool | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._hub.arrived(self)

    def tell(self, wanted: bool) -> None:
        """Say whether events are wanted, if that is news."""
        if self._transport is not None and wanted is not self._told:
            self._told = wanted
            self._transport.write(b"1" if wanted else b"0")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                log.error("live frame refused", length=length, limit=MAX_FRAME)
                self.hang_up()
                return
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            self._read(frame)

    def _read(self, frame: bytes) -> None:
        try:
            items = _decode(frame)
        except msgspec.MsgspecError as error:
            log.error("live frame cannot be read", error=str(error))
            self.hang_up()
            return
        for item in items:
            # {"type": "dropped", "count": n}: the inspector counts those in its own metrics.
            if "id" in item:
                self._hub.publish("exchange" if "connection_id" in item else "connection", item)

    def hang_up(self) -> None:
        """End the connection; the inspector connects again."""
        if self._transport is not None:
            with suppress(OSError):
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._hub.gone(self)
