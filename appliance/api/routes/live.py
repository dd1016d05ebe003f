"""The live feed over a WebSocket: one JSON text message per event."""

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect

from appliance.api.live import KINDS, Client, Hub, Interest, Kind
from appliance.api.parameters import TheHub
from appliance.rules.filter import FilterError

# RFC 6455 §7.4.2 leaves 4000–4999 to applications; HTTP's number says the same thing.
BAD_REQUEST = 4400

_encode = msgspec.json.Encoder().encode


@websocket("/api/v1/live")
async def live(socket: WebSocket[Any, Any, Any], hub: TheHub) -> None:
    """Send what happens, from now on or from ``since``, as far as ``q`` and ``kinds`` ask for it.

    The first message is ``{"kind": "hello", "seq": …, "complete": …}``; the others are ``{"seq", "kind", "item",
    "dropped"}``, where ``dropped`` counts the events lost to this client since the message before.
    """
    await socket.accept()
    try:
        interest, since = _wishes(socket)
    except ValueError as error:
        await socket.send_text(_encode({"kind": "problem", "status": 400, "detail": str(error)}).decode())
        await socket.close(code=BAD_REQUEST, reason="a parameter is wrong")
        return
    client, complete = hub.join(interest, since)
    try:
        await socket.send_text(_encode({"kind": "hello", "seq": hub.seq, "complete": complete}).decode())
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_send(socket, hub, client), name="live send")
            group.create_task(_until_gone(socket, sending), name="live receive")
    finally:
        hub.leave(client)


def _wishes(socket: WebSocket[Any, Any, Any]) -> tuple[Interest, int | None]:
    """The client's parameters. Raises ``ValueError`` that says which one is wrong."""
    given = socket.query_params
    if unknown := set(given) - {"q", "kinds", "since"}:
        raise ValueError(f"there is no parameter {sorted(unknown)[0][:60]!r} (known: q, kinds, since)")
    kinds = [kind for kind in given.get("kinds", "").split(",") if kind]
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"there are no events of kind {wrong[0][:60]!r} (known: {', '.join(KINDS)})")
    since = given.get("since")
    if since is not None and not (since.isascii() and since.isdigit() and len(since) < 17):
        raise ValueError("since is not the seq of an event")
    try:
        chosen = frozenset(cast(list[Kind], kinds)) or None
        return Interest(given.get("q", ""), chosen, datetime.now(UTC)), None if since is None else int(since)
    except FilterError as error:
        raise ValueError(f"q: {error}") from error


async def _send(socket: WebSocket[Any, Any, Any], hub: Hub, client: Client) -> None:
    try:
        while True:
            event, dropped = await client.take()
            message = {"seq": event.seq, "kind": event.kind, "item": event.item, "dropped": dropped}
            # Returns when the kernel has room again: a slow client waits here, and its events in its own queue.
            await socket.send_text(_encode(message).decode())
            hub.count_sent()
    except WebSocketDisconnect:
        return


async def _until_gone(socket: WebSocket[Any, Any, Any], sending: "asyncio.Task[None]") -> None:
    """Read (and ignore) what the client says until it leaves, then stop sending."""
    try:
        while True:
            await socket.receive_data(mode="text")
    except WebSocketDisconnect:
        sending.cancel()
