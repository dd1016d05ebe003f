"""The API process: an HTTP server on the configured addresses, until the supervisor says to drain.

``prepare`` comes first, while the process may still read its own source: by the time that ``serve`` runs it has become
the service user, who perhaps may not, and libraries import half of themselves when they are first used.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401  looked up by name at the first getaddrinfo
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
import uvicorn.lifespan.off
import uvicorn.loops.asyncio
import uvicorn.protocols.http.h11_impl
import uvicorn.protocols.websockets.websockets_sansio_impl

from appliance.api.access import Access
from appliance.api.app import application
from appliance.api.engine import Supervisor
from appliance.api.live import Hub
from appliance.api.settings import ApiSettings
from appliance.engine.control import Channel, ChannelClosed
from appliance.model.endpoint import Endpoint
from appliance.observe import metrics
from appliance.observe.logging import get_logger
from appliance.record.queries.reader import Reader

log = get_logger("api")

_BACKLOG = 256
_DRAIN_SECONDS = 3  # a request that takes longer is a live feed, and its client comes back
_PING_SECONDS = 20.0


class BindFailed(OSError):
    """The API cannot listen where it is told to."""


def prepare() -> None:
    """Answer a few questions of our own, so that whatever serving imports is imported now."""
    # A thread, because the caller may be inside an event loop.
    rehearsal = threading.Thread(target=lambda: asyncio.run(_rehearse()), name="rehearsal")
    rehearsal.start()
    rehearsal.join()


async def _rehearse() -> None:
    reader = Reader("postgresql://weir@/weir?host=/nonexistent")
    ours, theirs = await Channel.pair()
    await theirs.close()
    settings = ApiSettings(bind=(Endpoint("127.0.0.1", 0),), dsn="", live_socket=Path())
    app = application(settings, reader, Supervisor(ours), Hub())

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    for path in ("/health", "/ready", "/nowhere", "/api/openapi.json", "/api/docs", "/stats/latency"):
        for query in (b"", b"by=wrong"):
            scope = _SCOPE | {"path": path, "raw_path": path.encode(), "query_string": query, "state": {}}
            await app(scope, receive, send)
    metrics.render({"api": metrics.Registry().snapshot()})
    await reader.close()
    await ours.close()


_SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "root_path": "",
    "headers": [(b"host", b"127.0.0.1")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 1),
}


async def serve(settings: ApiSettings, channel: Channel) -> None:
    """Answer until drained or until the channel ends. Raises ``BindFailed``."""
    registry = metrics.Registry()
    reader = Reader(settings.dsn)
    hub = Hub(settings.live_history, settings.live_queue, registry)
    app = application(settings, reader, Supervisor(channel), hub, _counting(registry))
    listening = [listen(endpoint) for endpoint in settings.bind]
    if not settings.on_loopback and not settings.tokens:
        log.warning("api has no tokens and is reachable from elsewhere: it answers 401 to everything")
    await hub.start(settings.live_socket)
    server = Server(app)
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve(sockets=listening), name="http server")
            tasks = [
                group.create_task(_announce(server, channel, listening), name="ready"),
                group.create_task(_report(registry, channel), name="stats"),
                group.create_task(_obey(server, channel, hub, app.obey), name="channel"),
            ]
            await serving
            for task in tasks:
                task.cancel()
    finally:
        await hub.close()
        await reader.close()
        for sock in listening:
            sock.close()


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the supervisor decides when we end."""

    def __init__(self, app: Access) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="websockets-sansio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                proxy_headers=False,
                ws_ping_interval=_PING_SECONDS,
                ws_ping_timeout=_PING_SECONDS,
                ws_max_size=64 * 1024,
                ws_per_message_deflate=False,  # costs more than a network at hand, and 300 KB of memory a client
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def listen(endpoint: Endpoint) -> socket.socket:
    """A listening socket. Raises ``BindFailed``, which says where and what to do."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise BindFailed(
            f"the API cannot listen on {endpoint}: {error.strerror} (another `weir run`? change api.bind_address)"
        ) from error
    sock.setblocking(False)
    return sock


async def _announce(server: Server, channel: Channel, listening: list[socket.socket]) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    addresses = [str(Endpoint(*sock.getsockname()[:2])) for sock in listening]
    log.info("api listens", addresses=addresses)
    with contextlib.suppress(ChannelClosed, TimeoutError):
        await channel.send({"type": "ready", "addresses": addresses})


async def _report(registry: metrics.Registry, channel: Channel) -> None:
    try:
        while True:
            await asyncio.sleep(1)
            await channel.send({"type": "stats", "metrics": registry.snapshot()})
    except (ChannelClosed, TimeoutError):
        return  # _obey sees the same end


async def _obey(server: Server, channel: Channel, hub: Hub, obey: Callable[[ApiSettings], None]) -> None:
    async for message in channel:
        if message["type"] == "drain":
            break
        if message["type"] == "reload":
            settings = message.get("settings")
            if isinstance(settings, ApiSettings):
                obey(settings)
            hub.publish("configuration", {"what": "reloaded"})
    server.should_exit = True


def _counting(registry: metrics.Registry) -> Callable[[int], None]:
    cells = {group: registry.cell(metrics.API_REQUESTS, f"{group}xx") for group in range(1, 6)}

    def count(status: int) -> None:
        cells[status // 100].value += 1

    return count
