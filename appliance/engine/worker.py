"""One relay process: open the listeners, keep the sweeps going, answer the supervisor."""

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import suppress

from appliance.engine.arrival import MixedArrival, TransparentArrival
from appliance.engine.control import Channel, ChannelClosed
from appliance.engine.forward.client import ForwardClient
from appliance.engine.gate import Gate
from appliance.engine.listeners.allow import AllowList
from appliance.engine.relay.tap import SWEEP, Tap
from appliance.engine.settings import RelaySettings
from appliance.engine.sockets import listen
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint
from appliance.observe import metrics
from appliance.observe.logging import get_logger
from appliance.observe.process import publish

log = get_logger("relay")

Factory = Callable[[], asyncio.BaseProtocol]


class Worker:
    """The listeners and connections of one relay process."""

    def __init__(self, settings: RelaySettings, index: int) -> None:
        if settings.tap is None:
            raise ValueError("a relay needs a tap: RelaySettings.tap is None")
        self.registry = metrics.Registry()
        self.gate = Gate(settings, Tap(settings.tap, index), self.registry)
        self.bound: dict[str, list[Endpoint]] = {}
        self._servers: list[asyncio.AbstractServer] = []

    async def listen(self) -> None:
        """Open every configured listener. Raises ``ListenFailed``; nothing stays open then."""
        settings = self.gate.settings
        gate = self.gate
        try:
            if settings.transparent is not None:
                for address in settings.transparent.bind:
                    await self._serve("transparent", address, lambda: TransparentArrival(gate), transparent=True)
            if settings.socks is not None:
                for address in settings.socks.bind:
                    await self._serve("mixed", address, _mixed(gate))
            if settings.direct_http is not None:
                for address in settings.direct_http.bind:
                    await self._serve("direct_http", address, lambda: ForwardClient.reverse(gate))
        except OSError:
            await self.stop_listening()
            raise

    async def stop_listening(self) -> None:
        """Accept nobody any more; what is open goes on."""
        for server in self._servers:
            server.close()
        for server in self._servers:
            with suppress(asyncio.TimeoutError):
                # 3.12 waits here for connections too; they have their own deadline.
                await asyncio.wait_for(server.wait_closed(), 0.1)
        self._servers.clear()

    async def drain(self, timeout: float) -> None:
        """Stop listening, let connections end for ``timeout`` seconds, then end them."""
        self.gate.draining = True
        await self.stop_listening()
        deadline = time.monotonic() + timeout
        while self.gate.live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for live in tuple(self.gate.live):
            live.end(End.DRAINED)
        while self.gate.live and time.monotonic() < deadline + 1:
            await asyncio.sleep(0.01)
        self.gate.tap.close()

    async def sweep(self) -> None:
        """For ever: show unfinished long turns, end what is overdue."""
        rounds = 0
        while True:
            await asyncio.sleep(SWEEP)
            rounds += 1
            self.gate.tap.sweep()
            if rounds % 2 == 0:
                self.gate.sweep(time.monotonic())

    def snapshot(self) -> metrics.Snapshot:
        """This process's metrics now."""
        registry, tap = self.registry, self.gate.tap
        chunks, missing = tap.ring.dropped
        registry.cell(metrics.RING_GAP_CHUNKS).value = chunks
        registry.cell(metrics.RING_GAP_BYTES).value = missing
        registry.cell(metrics.RING_FILL).value = tap.ring.fill
        registry.cell(metrics.CONNECTIONS_ACTIVE, "all").value = len(self.gate.live)
        publish(registry)
        return registry.snapshot()

    async def _serve(self, name: str, address: Endpoint, factory: Factory, *, transparent: bool = False) -> None:
        sock = listen(address, self.gate.settings.backlog, transparent=transparent)
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(factory, sock=sock, backlog=self.gate.settings.backlog))
        self.bound.setdefault(name, []).append(Endpoint(*sock.getsockname()[:2]))


async def serve(settings: RelaySettings, index: int, channel: Channel) -> None:
    """Run relay ``index`` until told to drain or the supervisor is gone.

    Raises ``ListenFailed`` when a listener cannot be opened.
    """
    worker = Worker(settings, index)
    await worker.listen()
    # What lives now lives for ever: keep the collector away from it, and let it run rarely. Connections untie
    # themselves when they end.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    log.info("relay listening", worker=index, **{name: list(map(str, at)) for name, at in worker.bound.items()})
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(worker.sweep(), name="sweep"),
            group.create_task(_report(worker, channel), name="report"),
        ]
        await channel.send({"type": "ready", "listeners": {k: list(map(str, v)) for k, v in worker.bound.items()}})
        async for message in channel:
            if message["type"] == "drain":
                break
            if message["type"] == "reload":
                worker.gate.obey(message["settings"])
        await worker.drain(worker.gate.settings.drain_timeout)
        for task in tasks:
            task.cancel()


async def _report(worker: Worker, channel: Channel) -> None:
    with suppress(ChannelClosed):
        while True:
            await asyncio.sleep(1)
            with suppress(TimeoutError):  # a supervisor that hangs must not cost a connection
                await channel.send({"type": "stats", "metrics": worker.snapshot()})


def _mixed(gate: Gate) -> Factory:
    allowed = (None, None)

    def arrive() -> MixedArrival:
        nonlocal allowed
        socks = gate.settings.socks
        networks = socks.allow if socks else None
        if allowed[0] is not networks:
            allowed = (networks, AllowList(networks) if networks is not None else None)  # type: ignore[assignment]
        return MixedArrival(gate, socks.users if socks else None, allowed[1])

    return arrive
