"""What users write as a value, by the type of the field it is compared with: text to typed values."""

import ipaddress
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from appliance.model.exchange import Missing
from appliance.rules.filter.error import did_you_mean
from appliance.rules.filter.expression import Network, Value
from appliance.rules.filter.fields import Kind

_INT64 = 2**63
_NUMBER = re.compile(r"([+-]?)([0-9]{1,40}(?:\.[0-9]{1,40})?)([A-Za-zµ]*)")
_AGO = re.compile(r"([+-])([0-9]{1,12}(?:\.[0-9]{1,6})?)(us|ms|s|m|h|d|w)")

_MS = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3, "d": 86400e3, "w": 604800e3}
_BYTES = {
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}

MISSING = {flag.name.lower().replace("_", "-"): int(flag) for flag in Missing if flag.name}


class BadLiteral(ValueError):
    """The text is no value of that type; the message says what would be."""


def read(kind: Kind, text: str, now: datetime) -> Value:
    """The typed value of a literal. Raises ``BadLiteral``."""
    return _READERS[kind](text, now)


def bits(words: str) -> int:
    """The ``Missing`` bits of ``response-truncated,redacted``; 0 for ``complete``. Raises ``BadLiteral``."""
    if words == "complete":
        return 0
    total = 0
    for word in words.split(","):
        if word not in MISSING:
            raise BadLiteral(f"{word!r} is no reason for incompleteness; {did_you_mean(word, [*MISSING, 'complete'])}")
        total |= MISSING[word]
    return total


def time(text: str, now: datetime) -> datetime:
    """A moment, or an age before ``now``; aware. Without a zone it is UTC. Raises ``BadLiteral``."""
    try:
        if text.lower() == "now":
            return now
        if match := _AGO.fullmatch(text):
            return now + timedelta(milliseconds=float(match[1] + match[2]) * _MS[match[3]])
        # Written out rather than left to fromisoformat: it also takes forms that nobody means (week dates, 20261122).
        if re.match(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d|$)", text, re.ASCII):
            moment = datetime.fromisoformat(text)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadLiteral(f"{text!r} is not a time (2026-11-22T10:00:00Z, 2026-11-22, -1h, now)")


def _text(text: str, _now: datetime) -> str:
    # PostgreSQL has no NUL in text and no lone surrogates, so neither can ever match.
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadLiteral("NUL and lone surrogates cannot occur in text")
    return text


def _number(text: str, _now: datetime) -> int:
    return _integer(text, {"": 1}, "a whole number")


def _size(text: str, _now: datetime) -> int:
    return _integer(text, {"": 1, **_BYTES}, "a size in bytes (10, 10KiB, 2MB)")


def _integer(text: str, units: dict[str, int], wanted: str) -> int:
    match = _NUMBER.fullmatch(text)
    scale = units.get(match[3].lower()) if match else None
    if match is None or scale is None:
        raise BadLiteral(f"{text!r} is not {wanted}")
    whole, _, fraction = match[2].partition(".")
    value, rest = divmod(int(whole + fraction) * scale, int(10 ** len(fraction)))
    if rest:
        raise BadLiteral(f"{text!r} is not {wanted}: it has a fraction")
    if value >= _INT64:
        raise BadLiteral(f"{text!r} is too large (at most {_INT64 - 1})")
    return -value if match[1] == "-" else value


def _duration(text: str, _now: datetime) -> float:
    match = _NUMBER.fullmatch(text)
    scale = {"": 1.0, **_MS}.get(match[3].lower()) if match else None
    if match is None or scale is None:
        raise BadLiteral(f"{text!r} is not a duration (250, 250ms, 1.5s, 2m, 1h)")
    return float(match[1] + match[2]) * scale


def _network(text: str, _now: datetime) -> Network:
    try:
        # Host bits may be set: 10.1.2.3/8 names the network that this address is in. Scopes (fe80::1%eth0) are not
        # stored, so they cannot be asked for.
        if "%" not in text:
            return ipaddress.ip_network(text, strict=False)
    except ValueError:
        pass
    raise BadLiteral(f"{text!r} is not an address or network (192.0.2.7, 10.0.0.0/8, 2001:db8::/32)")


def _uuid(text: str, _now: datetime) -> UUID:
    if re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        return UUID(text)
    raise BadLiteral(f"{text!r} is not an id (8-4-4-4-12 hexadecimal digits)")


def _words(text: str, _now: datetime) -> int:
    return bits(text)


def _nothing(text: str, _now: datetime) -> Value:
    raise BadLiteral(f"{text!r} cannot be compared with an object; ask for one of its fields (tls.sni)")


_READERS: dict[Kind, Callable[[str, datetime], Value]] = {
    Kind.TEXT: _text,
    Kind.NUMBER: _number,
    Kind.SIZE: _size,
    Kind.DURATION: _duration,
    Kind.TIME: time,
    Kind.ADDRESS: _network,
    Kind.UUID: _uuid,
    Kind.STATUS: _text,
    Kind.WORDS: _words,
    Kind.TAGS: _text,
    Kind.OBJECT: _nothing,
}
