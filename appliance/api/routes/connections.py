"""Connections: one row each, whatever was understood of them."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import get
from litestar.params import PathParameter

from appliance.api.parameters import Cursor, End, Limit, Query, Start, TheReader, wanted
from appliance.api.problems import NotFound, documented
from appliance.record.queries import lists
from appliance.record.queries.documents import Connection
from appliance.rules.filter import CONNECTIONS

_TAG = "traffic"


class Connections(msgspec.Struct, frozen=True):
    """A page, newest first. ``next`` is the cursor of the page after, null on the last."""

    items: list[Connection]
    next: str | None


@get("/api/v1/connections", tags=[_TAG], responses=documented(400, 503))
async def connections(
    reader: TheReader, q: Query = "", start: Start = None, end: End = None, limit: Limit = 100, cursor: Cursor = None
) -> Connections:
    """List connections, newest first."""
    asked = wanted(CONNECTIONS, q, start, end, limit, cursor)
    async with reader.session() as session:
        page = await lists.connections(session, asked)
    return Connections(page.items, page.next)


@get("/api/v1/connections/{id:uuid}", tags=[_TAG], responses=documented(400, 404, 503))
async def connection(
    reader: TheReader, id: Annotated[UUID, PathParameter(description="The connection's id")]
) -> Connection:
    """Get one connection."""
    async with reader.session() as session:
        found = await lists.connection(session, id)
    if found is None:
        raise NotFound(f"no connection {id} is recorded")
    return found
