"""The scalar types of the configuration: durations, sizes, rates, addresses; read leniently, written canonically.

Each is a pydantic type whose Python value is a plain number or string in base units (seconds, bytes, per second), so
that nothing below the configuration ever sees "10MB". Messages say what to write, because they go to a user.
"""

import ipaddress
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from appliance.model.endpoint import parse_endpoint

_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)\s*\Z")

SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
# Powers of 1024 under both names: nobody who writes "10MB" for a body limit means 9.54 MiB.
BYTES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40} | {
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
PER = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

# More than three hundred years of anything is a slip of the keyboard, and larger numbers overflow timers.
_LONGEST = 1e10
_LARGEST = 1 << 60


def duration(value: Any) -> float:
    """Seconds from ``7d``, ``10s``, ``100ms``, or a plain number of seconds."""
    return _number(value, SECONDS, "s", "a duration", 'write a number and a unit: "100ms", "10s", "5m", "7d"', _LONGEST)


def size(value: Any) -> int:
    """Bytes from ``10MB``, ``1KB``, ``512``; units are powers of 1024."""
    return int(_number(value, BYTES, "b", "a size", 'write a number and a unit: "512", "1KB", "10MB", "2GB"', _LARGEST))


def rate(value: Any) -> float:
    """Events per second from ``200/s``, ``3000/m``, or a plain number per second."""
    hint = 'write events per time: "200/s", "3000/m"'
    text, slash, unit = str(value).partition("/") if isinstance(value, str) else (value, "", "")
    if slash and unit.strip().lower() not in PER:
        raise ValueError(f"{value!r} is not a rate ({hint})")
    number = _number(text, {"": 1.0}, "", "a rate", hint, _LONGEST)
    return number / PER[unit.strip().lower()] if slash else number


def show_duration(seconds: float) -> str:
    """The shortest text that reads back as exactly this many seconds."""
    for unit in ("w", "d", "h", "m", "s", "ms"):
        count = seconds / SECONDS[unit]
        if count >= 1 and count == int(count) and int(count) * SECONDS[unit] == seconds:
            return f"{int(count)}{unit}"
    return f"{seconds:.15f}".rstrip("0").rstrip(".") + "s" if seconds else "0s"


def show_size(count: int) -> str:
    """The shortest text that reads back as exactly this many bytes."""
    for unit in ("TB", "GB", "MB", "KB"):
        if count and count % BYTES[unit.lower()] == 0:
            return f"{count // BYTES[unit.lower()]}{unit}"
    return str(count)


def endpoint(value: Any) -> str:
    """``HOST:PORT``, checked, as it was written. IPv6 addresses stand in brackets."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an address and port (write HOST:PORT)")
    parse_endpoint(value)
    return value


def bind_address(value: Any) -> tuple[str, ...]:
    """One ``ADDRESS:PORT`` to listen on, or a list of them; ``:PORT`` means every address of both families."""
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts:
        raise ValueError("needs at least one ADDRESS:PORT")
    return tuple(_bound(text) for text in texts)


def network(value: Any) -> str:
    """An address or network in CIDR form, normalised."""
    try:
        return str(ipaddress.ip_network(str(value), strict=False))
    except ValueError:
        raise ValueError(f'{value!r} is not a network (write "192.0.2.0/24" or "2001:db8::/32")') from None


def _bound(value: Any) -> str:
    text = endpoint(f"[::]{value}" if isinstance(value, str) and value.startswith(":") else value)
    host = parse_endpoint(text).host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            raise ValueError(
                f"{host!r} is a name: listeners are bound to addresses (127.0.0.1, 0.0.0.0, [::])"
            ) from None
    return text


def _number(
    value: Any, units: dict[str, float] | dict[str, int], base: str, what: str, hint: str, most: float
) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {what} ({hint})")
    found = _NUMBER_AND_UNIT.match(value) if isinstance(value, str) else None
    if isinstance(value, str):
        if found is None or (found[2] or base).lower() not in units:
            raise ValueError(f"{value!r} is not {what} ({hint})")
        number = float(found[1]) * units[(found[2] or base).lower()]
    else:
        number = float(value)
    if not 0 <= number <= most:  # also false for nan
        raise ValueError(f"{value!r} is out of range for {what}")
    return number


def _kind(name: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "title": name, "examples": list(examples)})


Duration = Annotated[float, BeforeValidator(duration), PlainSerializer(show_duration), _kind("duration", "10s", "7d")]
Size = Annotated[int, BeforeValidator(size), PlainSerializer(show_size), _kind("size", "1KB", "10MB")]
Rate = Annotated[float, BeforeValidator(rate), PlainSerializer(lambda value: value), _kind("rate", "200/s")]
Address = Annotated[str, BeforeValidator(endpoint), WithJsonSchema({"type": "string", "title": "host:port"})]
BindAddress = Annotated[
    tuple[str, ...],
    BeforeValidator(bind_address),
    WithJsonSchema({"type": ["string", "array"], "title": "address:port", "items": {"type": "string"}}),
]
Cidr = Annotated[str, BeforeValidator(network), WithJsonSchema({"type": "string", "title": "network"})]


class Secret:
    """Marks a field whose value is never shown or logged: ``Annotated[str, SECRET]``."""


SECRET = Secret()
