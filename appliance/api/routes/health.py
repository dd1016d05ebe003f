"""Whether Weir lives, whether it is ready, and its numbers: for load balancers and Prometheus."""

import asyncio
from typing import Any

import msgspec
from litestar import Response, get, post

from appliance.api.engine import Check, Engine, Status
from appliance.api.parameters import TheEngine, TheReader
from appliance.api.problems import EngineAway, NotReady, documented
from appliance.observe import metrics
from appliance.record.queries.reader import Reader, StoreAway, TookTooLong

_NEEDED = ("listeners", "ruleset")
_TAG = "health"
# The framework appends the charset.
_EXPOSITION = metrics.CONTENT_TYPE.partition("; charset")[0]


class Health(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str


class Ready(msgspec.Struct, frozen=True):
    """Whether traffic can be taken and recorded, condition by condition."""

    ready: bool
    checks: dict[str, Check]


class Reloaded(msgspec.Struct, frozen=True):
    """What reading the configuration again did: keys that are in force now, and keys that wait for a restart."""

    changed: list[str] = []
    needs_restart: list[str] = []
    warnings: list[str] = []


@get("/health", tags=[_TAG], responses=documented(400))
async def health() -> Health:
    """Say that this process lives; it asks nobody else."""
    return Health("ok")


@get("/ready", tags=[_TAG], responses=documented(400, 503))
async def ready(reader: TheReader, engine: TheEngine) -> Ready:
    """Say whether listeners are up, the kernel's ruleset is in place, and rows are stored or spooled."""
    status = await look(reader, engine)
    if not status.ready:
        raise NotReady({name: check.detail for name, check in status.checks.items() if not check.ok})
    return Ready(status.ready, status.checks)


@get("/metrics", tags=[_TAG], media_type="text/plain", responses=documented(400, 503))
async def prometheus(engine: TheEngine) -> Response[bytes]:
    """Give every process's numbers in Prometheus' text format."""
    return Response(metrics.render(await engine.metrics()), media_type=_EXPOSITION)


@get("/api/v1/status", tags=[_TAG], responses=documented(400))
async def status(reader: TheReader, engine: TheEngine) -> Status:
    """Tell how Weir is: the conditions of being ready, and what the supervisor knows of its processes."""
    return await look(reader, engine)


@post("/api/v1/reload", tags=[_TAG], status_code=200, responses=documented(400, 409, 503))
async def reload(engine: TheEngine) -> Reloaded:
    """Read the configuration again; what cannot be changed while running is told."""
    return msgspec.convert(await engine.reload(), Reloaded)


async def look(reader: Reader, engine: Engine) -> Status:
    """Ask the supervisor and the database at once. Never raises: what does not answer is a failed check."""
    told, store = await asyncio.gather(_engine(engine), _store(reader))
    checks = {name: _check(value) for name, value in dict(told.get("checks") or {}).items()}
    for name in _NEEDED:
        checks.setdefault(name, Check(False, "the supervisor did not say"))
    checks["store"] = _stored(store, checks.get("store"))
    if told.get("ready") is False and all(check.ok for check in checks.values()):
        checks["engine"] = Check(False, str(told.get("state") or "not serving"))
    return Status(ready=all(check.ok for check in checks.values()), checks=checks, engine=told)


async def _engine(engine: Engine) -> dict[str, Any]:
    try:
        return await engine.status()
    except EngineAway as error:
        return {"checks": {"engine": {"ok": False, "detail": str(error)}}}


async def _store(reader: Reader) -> Check:
    try:
        await reader.check()
    except (StoreAway, TookTooLong) as error:
        return Check(False, f"queries: {error}")
    return Check(True, "queries: answered")


def _stored(asked: Check, told: Check | None) -> Check:
    """Rows are safe when those who write them say so, be it that they spool; whether we can read is told beside."""
    return asked if told is None else Check(told.ok, f"{told.detail}; {asked.detail}")


def _check(value: Any) -> Check:
    known = value if isinstance(value, dict) else {"ok": value}
    return Check(bool(known.get("ok")), str(known.get("detail") or ""))
