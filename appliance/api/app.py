"""The application: routes, what they need, how errors are told, and who may come in."""

from collections.abc import Callable

from litestar import Litestar
from litestar.di import Provide

from appliance.api import docs
from appliance.api.access import Access
from appliance.api.engine import Engine
from appliance.api.live import Hub
from appliance.api.parameters import only_known
from appliance.api.problems import HANDLERS
from appliance.api.routes import connections, exchanges, health, live, stats
from appliance.api.settings import ApiSettings
from appliance.record.queries.reader import Reader

ROUTES = [
    health.health,
    health.ready,
    health.prometheus,
    health.status,
    health.reload,
    connections.connections,
    connections.connection,
    exchanges.exchanges,
    exchanges.exchange,
    exchanges.request_of,
    exchanges.response_of,
    stats.top_domains,
    stats.traffic,
    stats.latency,
    stats.source_ips,
    live.live,
]


def routes(reader: Reader, engine: Engine, hub: Hub) -> Litestar:
    """The routes over a reader, an engine and a hub, open to everybody: put ``Access`` around it."""
    return Litestar(
        ROUTES,
        dependencies={
            "reader": Provide(lambda: reader, sync_to_thread=False, use_cache=True),
            "engine": Provide(lambda: engine, sync_to_thread=False, use_cache=True),
            "hub": Provide(lambda: hub, sync_to_thread=False, use_cache=True),
        },
        guards=[only_known],
        exception_handlers=HANDLERS,
        openapi_config=docs.config(),
        logging_config=None,
    )


def application(
    settings: ApiSettings,
    reader: Reader,
    engine: Engine,
    hub: Hub,
    answered: Callable[[int], None] = lambda status: None,
) -> Access:
    """The ASGI application. ``answered`` is called with the status of every answer."""
    return Access(routes(reader, engine, hub), settings, answered)
