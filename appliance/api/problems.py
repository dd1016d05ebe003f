"""Every error of the API as RFC 9457 problem details: what is wrong, with what, and what to do.

What we answer in a request's place never repeats a peer's bytes as anything but JSON text.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import ResponseSpec
from litestar.types import ExceptionHandlersMap

from appliance.observe.logging import get_logger
from appliance.record.queries.cursor import CursorError
from appliance.record.queries.reader import StoreAway, TookTooLong
from appliance.rules.filter import FilterError

MEDIA_TYPE = "application/problem+json"

log = get_logger("api")


class FieldProblem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One parameter and what is wrong with it."""

    name: str
    reason: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Problem details (RFC 9457). ``position`` (characters, from 0) and ``hint`` come with faulty filters."""

    status: int
    title: str
    type: str = "about:blank"
    detail: str | None = None
    errors: list[FieldProblem] = []
    position: int | None = None
    hint: str | None = None


class EngineAway(Exception):
    """The supervisor did not answer; the text says what was asked."""


class NotFound(Exception):
    """There is no such record; the text names it."""


class NotReady(Exception):
    """Some conditions of being ready do not hold: what they say, by name."""

    def __init__(self, failed: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {detail}" for name, detail in failed.items()))
        self.failed = failed


class Refused(Exception):
    """What was asked for was understood and refused by the engine; the text says why."""


def problem(status: int, detail: str | None = None, **more: Any) -> Problem:
    """A problem titled by its status."""
    return Problem(status=status, title=HTTPStatus(status).phrase, detail=detail, **more)


def response(found: Problem, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    """The answer that carries a problem."""
    return Response(
        msgspec.json.encode(found), status_code=found.status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def _http(_request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    return response(problem(error.status_code, error.detail or None), error.headers)


def _validation(_request: Request[Any, Any, Any], error: ValidationException) -> Response[bytes]:
    found = [
        FieldProblem(str(item.get("key", "")), str(item.get("message", "")))
        for item in (error.extra if isinstance(error.extra, list) else [])
        if isinstance(item, dict)
    ]
    detail = "; ".join(f"{one.name}: {one.reason}" for one in found) or error.detail
    return response(problem(400, detail, errors=found))


def _filter(_request: Request[Any, Any, Any], error: FilterError) -> Response[bytes]:
    found = problem(
        400,
        str(error),
        type="urn:weir:problem:filter",
        errors=[FieldProblem("q", error.message)],
        position=error.position,
        hint=error.hint or None,
    )
    return response(found)


def _cursor(_request: Request[Any, Any, Any], error: CursorError) -> Response[bytes]:
    return response(problem(400, str(error), errors=[FieldProblem("cursor", str(error))]))


def _store_away(_request: Request[Any, Any, Any], error: StoreAway) -> Response[bytes]:
    detail = (
        f"the database cannot be asked: {error}. Traffic goes on and rows wait in the spool; "
        "try again, or see `weir status` and `weir db status`."
    )
    found = problem(503, detail, type="urn:weir:problem:store-away")
    return response(found, {"Retry-After": "2"})


def _took_too_long(_request: Request[Any, Any, Any], error: TookTooLong) -> Response[bytes]:
    detail = f"{error}: give from and to, or a q that narrows it (domain == …, started_at > -1h)"
    return response(problem(503, detail, type="urn:weir:problem:took-too-long"), {"Retry-After": "10"})


def _engine_away(_request: Request[Any, Any, Any], error: EngineAway) -> Response[bytes]:
    found = problem(503, str(error), type="urn:weir:problem:engine-away")
    return response(found, {"Retry-After": "2"})


def _not_found(_request: Request[Any, Any, Any], error: NotFound) -> Response[bytes]:
    return response(problem(404, str(error)))


def _not_ready(_request: Request[Any, Any, Any], error: NotReady) -> Response[bytes]:
    errors = [FieldProblem(name, detail) for name, detail in error.failed.items()]
    found = problem(503, f"not ready: {error}", type="urn:weir:problem:not-ready", errors=errors)
    return response(found, {"Retry-After": "2"})


def _refused(_request: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    return response(problem(409, str(error), type="urn:weir:problem:refused"))


def _ours(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return response(problem(500, "the API failed; the log says why"))


HANDLERS: ExceptionHandlersMap = {
    ValidationException: _validation,
    HTTPException: _http,
    FilterError: _filter,
    CursorError: _cursor,
    StoreAway: _store_away,
    TookTooLong: _took_too_long,
    EngineAway: _engine_away,
    NotFound: _not_found,
    NotReady: _not_ready,
    Refused: _refused,
    Exception: _ours,
}

_SAID = {
    400: "A parameter is wrong; the answer says which, where, and what would be right",
    401: "A bearer token is needed",
    403: "The request comes from another web site, or names a host that is not ours",
    404: "There is no such record",
    409: "Understood and refused; the answer says why",
    500: "We failed; the log says why",
    503: "The database or the engine cannot be asked now; the answer says what to do",
}


def documented(*statuses: int) -> dict[int, ResponseSpec]:
    """The problems that a route can answer with, for the OpenAPI document; 401, 403 and 500 are always among them."""
    return {
        status: ResponseSpec(Problem, description=_SAID[status], media_type=MEDIA_TYPE, generate_examples=False)
        for status in sorted({401, 403, 500, *statuses})
    }
