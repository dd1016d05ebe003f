"""``weir flows``: what was recorded and what happens now, by the daemon's API."""

from typing import Any

from appliance.app.cli.api import Daemon
from appliance.app.cli.output import Format, as_json, complain, emit, plain, show_list
from appliance.app.cli.output import show as show_document
from appliance.app.errors import AppError, Exit


class UsageRefused(AppError):
    """The API did not accept what was asked for."""

    exit = Exit.USAGE


_EXCHANGES = ("started_at", "client_address", "protocol", "method", "domain", "target", "status", "latency_ms", "id")
_CONNECTIONS = ("timestamp", "source_ip", "dest_ip", "dest_port", "domain", "protocol", "bytes_in", "bytes_out", "id")
_PAGE = 200  # items asked for at once
_BODY = 4000  # characters of a body that a terminal is shown


def listing(daemon: Daemon, q: str, limit: int, output: Format, *, connections: bool) -> None:
    """The newest ``limit`` exchanges or connections that match."""
    path = "/api/v1/connections" if connections else "/api/v1/exchanges"
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(items) < limit:
        page = daemon.get(path, q=q or None, limit=min(_PAGE, limit - len(items)), cursor=cursor)
        items += page["items"]
        cursor = page.get("next")
        if not cursor:
            break
    show_list(items, _CONNECTIONS if connections else _EXCHANGES, output)


def show(daemon: Daemon, id: str, output: Format, *, bodies: bool) -> None:
    """One exchange with its bodies, or one connection."""
    from urllib.parse import quote

    try:
        found = daemon.get(f"/api/v1/exchanges/{quote(id, safe='')}")
    except AppError as error:
        if "answered 404" not in str(error):
            raise
        show_document(daemon.get(f"/api/v1/connections/{quote(id, safe='')}"), output)
        return
    show_document(found, output)
    if output is not Format.TABLE or not bodies:
        return
    for side in ("request", "response"):
        try:
            message = daemon.get(f"/api/v1/exchanges/{quote(id, safe='')}/{side}")
        except AppError as error:
            if "answered 404" not in str(error):
                raise
            continue  # that side never came
        emit(f"\n{side}:")
        _show_message(message)


def _show_message(message: dict[str, Any]) -> None:
    emit(plain(message.get("start_line")))
    for header in message.get("headers") or []:
        emit(plain(f"{header['name']}: {header['value']}"))
    body = message.get("body") or {}
    text = body.get("data") or ""
    if not text:
        return
    emit("")
    if body.get("encoding") != "text":
        emit(f"({body.get('length')} bytes that are no text; the API has them)")
        return
    emit("\n".join(plain(line) for line in text[:_BODY].splitlines()))
    if len(text) > _BODY or body.get("truncated"):
        emit(f"… ({body.get('length')} bytes were sent; the API has all that is stored)")


def tail(daemon: Daemon, q: str, kind: str | None, output: Format) -> None:
    """What happens now, one line each, until interrupted."""
    for event in daemon.live(q=q or None, kinds=kind or "exchange"):
        if event.get("kind") == "problem":
            raise UsageRefused(str(event.get("detail")))
        if dropped := event.get("dropped"):
            complain(f"({dropped} events dropped: this terminal is too slow)")
        item = event.get("item")
        if item is None:
            continue
        emit(as_json(item) if output is not Format.TABLE else _line(item))


def _line(item: dict[str, Any]) -> str:
    columns = _EXCHANGES if "started_at" in item else _CONNECTIONS
    return "  ".join(plain(item.get(column)) for column in columns[:-1])
