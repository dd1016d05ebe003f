"""Structured logs: facts with fields, one JSON line each (or coloured text), to stderr.

Every process of Weir calls ``configure`` once. Libraries that log through the standard library (uvicorn, asyncpg,
pyroute2) end in the same stream with the same shape. Two things keep secrets out: fields whose names say that they are
secret are masked, and values that were announced by ``conceal`` are cut out of the finished line, wherever they are.
"""

import logging
import sys
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal, TextIO

import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MASK = "[hidden]"

# Names of fields whose values are never shown, compared without case.
_SECRET_FIELDS = frozenset(
    {"password", "passwd", "secret", "token", "authorization", "cookie", "set-cookie", "api_key", "dsn", "private_key"}
)
# Shorter values would cut holes into ordinary words.
_SHORTEST_SECRET = 4


class _State:
    """What may change while the process runs: the level and the values to cut out."""

    level = LEVELS["info"]
    concealed: tuple[str, ...] = ()


def configure(
    level: str = "info", format: str = "json", *, stream: TextIO | None = None, process: str | None = None
) -> None:
    """Set up logging for this process; calling it again replaces the set-up.

    ``process`` (``relay-0``) is put on every line. ``stream`` is stderr unless a test gives another.
    """
    target = stream if stream is not None else sys.stderr
    set_level(level)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _name_logger,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_fields,
        _with_traceback,
        structlog.processors.format_exc_info,
    ]
    if process is not None:
        shared.insert(0, _adds_process(process))
    structlog.configure(
        processors=[_drop_below_level, *shared, _renderer(format, target), _cut_out],
        wrapper_class=structlog.BoundLogger,
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(format, target),
                _cut_out,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up only when something is wrong; what they do is not a fact about traffic.
    root.setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Change the level of a running process: debug, info, warning or error."""
    if level not in LEVELS:
        raise ValueError(f"{level!r} is not a log level (one of {', '.join(LEVELS)})")
    _State.level = LEVELS[level]


def conceal(values: Iterable[str]) -> None:
    """Cut these values out of every line from now on. Values under four characters are ignored."""
    known = {value for value in values if len(value) >= _SHORTEST_SECRET}
    # Longest first, so that a secret that contains another is cut as a whole.
    _State.concealed = tuple(sorted(known | set(_State.concealed), key=len, reverse=True))


def get_logger(name: str, **fields: Any) -> structlog.BoundLogger:
    """A logger that puts ``logger=name`` and the given fields on each of its lines."""
    # ``logger`` itself is a parameter of structlog's: the processor below renames the field.
    return structlog.get_logger(logger_name=name, **fields)  # type: ignore[no-any-return]


def _drop_below_level(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if LEVELS.get(method, 50 if method == "critical" else LEVELS["error"]) < _State.level:
        raise structlog.DropEvent
    return event


def _adds_process(process: str) -> Any:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    return add


def _name_logger(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record = event.get("_record")  # put there for what came from the standard library
    name = record.name if isinstance(record, logging.LogRecord) else event.pop("logger_name", None)
    if name is not None:
        event["logger"] = name
    return event


def _with_traceback(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if method == "exception":
        event.setdefault("exc_info", True)
    return event


def _mask_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if key.lower() in _SECRET_FIELDS:
            event[key] = MASK
    return event


def _cut_out(_: Any, __: str, line: Any) -> Any:
    if isinstance(line, str):
        for secret in _State.concealed:
            line = line.replace(secret, MASK)
    return line


def _renderer(format: str, stream: TextIO) -> Any:
    if format == "json":
        return structlog.processors.JSONRenderer(default=str)
    if format == "console":
        return structlog.dev.ConsoleRenderer(colors=stream.isatty())
    raise ValueError(f"{format!r} is not a log format (json or console)")
