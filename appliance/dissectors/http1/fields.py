"""What the field lines of a head mean: framing, routing, credentials by kind (RFC 9110 §5, RFC 9112 §5, §6).

Peers repeat their field blocks, so what a block means is remembered.
"""

import re
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from appliance.dissectors.http1.frames import FIELD_NAME, FIELD_VALUE, MAX_LENGTH, TOKEN, Flaw, excerpt, text
from appliance.dissectors.kit.content import format_of, says_nothing

MAX_CACHED_BLOCK: Final = 4096  # longer field blocks are read anew each time
MAX_CACHED_BLOCKS: Final = 1024  # of each direction: at most 8 MiB altogether
MAX_NAMES: Final = 64  # cookie names of one message that are listed
MAX_NAME: Final = 64  # characters of each

_FIELDS: Final = re.compile(rb"(?:" + TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*")


class Framing(IntEnum):
    """How a message says where its body ends (RFC 9112 §6)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNKNOWN = 3  # a transfer coding that does not end with chunked: until the connection closes
    BROKEN = 4  # contradicts itself


class Fields(NamedTuple):
    """What a block of field lines means. Shared between messages: ``metadata`` is not to be changed."""

    framing: Framing = Framing.NONE
    length: int = 0
    hosts: int = 0
    domain: str | None = None
    close: bool = False
    keep_alive: bool = False
    upgrade: str = ""
    media_type: str = ""
    encoding: str = ""
    metadata: dict[str, Any] = {}  # noqa: RUF012  # by convention never changed
    flaws: tuple[Flaw, ...] = ()
    bytes_may_tell: bool = False  # the media type says nothing, and the content is not coded
    lines_end_well: bool = True  # every line ends with CRLF and nowhere else is there a CR or LF
    plain: bool = False  # nothing here asks for more than reading on: no flaw, no upgrade, no close, no chunks


def request_fields(block: bytes) -> Fields:
    """What the field lines of a request mean; each line ends with a line end."""
    return _cached_request_fields(block) if len(block) <= MAX_CACHED_BLOCK else _read_fields(block, request=True)


def response_fields(block: bytes) -> Fields:
    """What the field lines of a response mean."""
    return _cached_response_fields(block) if len(block) <= MAX_CACHED_BLOCK else _read_fields(block, request=False)


def trailer_flaws(block: bytes) -> list[Flaw]:
    """What is wrong with a block of trailer fields; framing and routing do not belong there (RFC 9110 §6.5.1)."""
    lines, flaws = _split(block)
    for at, name, _ in lines:
        if name.lower() in _FORBIDDEN_TRAILERS:
            flaws.append(Flaw("http.trailer", at, excerpt(name)))
    return flaws


def _domain(value: bytes) -> str | None:
    """The name in a Host value or an authority, without user information and port."""
    host = value.rpartition(b"@")[2]
    host = host[1:].partition(b"]")[0] if host.startswith(b"[") else host.partition(b":")[0]
    return text(host).lower() or None


def domain_of_target(target: str) -> str | None:
    """The host that an absolute-form target names; it beats the Host field (RFC 9112 §3.2.2)."""
    scheme, separator, rest = target.partition("://")
    if not separator or not scheme.isalnum():
        return None
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    return _domain(authority.encode())


def domain_of_authority(authority: str) -> str | None:
    """The host of ``host:port``, the target of CONNECT (RFC 9112 §3.2.3)."""
    return _domain(authority.encode())


@lru_cache(MAX_CACHED_BLOCKS)
def _cached_request_fields(block: bytes) -> Fields:
    return _read_fields(block, request=True)


@lru_cache(MAX_CACHED_BLOCKS)
def _cached_response_fields(block: bytes) -> Fields:
    return _read_fields(block, request=False)


def _read_fields(block: bytes, *, request: bool) -> Fields:
    """Pick out what framing, routing and search need, in one pass over the lines."""
    flaws: list[Flaw]
    if _FIELDS.fullmatch(block):
        found = _KNOWN_FIELDS.findall(b"\n" + block)
        flaws, lines_end_well = [], True
    else:
        lines, flaws = _split(block)
        found = [(name, value) for _, name, value in lines if name.lower() in _KNOWN]
        lines_end_well = not any(flaw.kind in ("http.bare-lf", "http.bare-cr") for flaw in flaws)
    lengths: list[bytes] = []
    codings: list[bytes] | None = None
    close = keep_alive = upgrades = False
    upgrade = media_type = encoding = ""
    domain: str | None = None
    hosts = 0
    metadata: dict[str, Any] = {}
    for spelling, raw_value in found:
        name = spelling.lower()
        value = raw_value.strip(b" \t")
        if name == b"host":
            hosts += 1
            domain = _domain(value) if hosts == 1 else domain
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings = (codings or []) + [coding.strip(b" \t").lower() for coding in value.split(b",")]
        elif name == b"connection":
            options = {option.strip(b" \t").lower() for option in value.split(b",")}
            close |= b"close" in options
            keep_alive |= b"keep-alive" in options
            upgrades |= b"upgrade" in options
        elif name == b"content-type":
            media_type = text(value)
        elif name == b"content-encoding":
            encoding = f"{encoding}, {text(value)}" if encoding else text(value)
        elif name == b"upgrade":
            upgrade = text(value)
        else:
            _note_credentials(metadata, name, value, request)
    framing, length = _framing(lengths, codings, flaws)
    if hosts > 1:
        flaws.append(Flaw("http.host-repeated", 0))
    if not upgrades:
        upgrade = ""  # without the connection option it is an advertisement (RFC 9110 §7.8)
    side = "request" if request else "response"
    kind, bytes_may_tell = _recognise(media_type)
    if media_type:
        metadata[side + "_type"] = media_type
        if kind is not None:
            metadata[side + "_format"] = kind
    if encoding:
        metadata[side + "_encoding"] = encoding
    if upgrade:
        metadata["upgrade"] = upgrade
    return Fields(
        framing,
        length,
        hosts,
        domain,
        close,
        keep_alive,
        upgrade,
        media_type,
        encoding,
        metadata,
        tuple(flaws),
        bytes_may_tell and not encoding,
        lines_end_well,
        not (flaws or upgrade or close) and framing <= Framing.LENGTH and hosts == int(request),
    )


def _framing(lengths: list[bytes], codings: list[bytes] | None, flaws: list[Flaw]) -> tuple[Framing, int]:
    """Where the body ends, by RFC 9112 §6.3; contradictions are what request smuggling is made of."""
    length = -1
    broken = False
    if codings is None and len(lengths) == 1 and lengths[0].isdigit() and len(lengths[0]) < 18:
        return Framing.LENGTH, int(lengths[0])
    if lengths:
        values = {value for line in lengths for value in (part.strip(b" \t") for part in line.split(b","))}
        if len(lengths) > 1 or b"," in lengths[0]:
            flaws.append(Flaw("http.content-length-repeated", 0, excerpt(b", ".join(lengths))))
        value = values.pop()
        if values:
            broken = True
            flaws.append(Flaw("http.content-length-conflict", 0, excerpt(b", ".join(lengths))))
        elif not value.isdigit() or len(value) > 4096 or int(value[-4096:].lstrip(b"0")[:20] or b"0") > MAX_LENGTH:
            broken = True
            flaws.append(Flaw("http.content-length", 0, excerpt(value)))
        else:
            length = int(value)
    if codings is None:
        if broken:
            return Framing.BROKEN, 0
        return (Framing.LENGTH, length) if lengths else (Framing.NONE, 0)
    if lengths:
        flaws.append(Flaw("http.content-length-and-chunked", 0, excerpt(b", ".join(codings))))
    if not _CODINGS.issuperset(codings) or codings.count(b"chunked") > 1 or b"chunked" in codings[:-1]:
        flaws.append(Flaw("http.transfer-encoding", 0, excerpt(b", ".join(codings))))
    return (Framing.CHUNKED, 0) if codings[-1] == b"chunked" else (Framing.UNKNOWN, 0)


_CODINGS: Final = frozenset((b"chunked", b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"))


def _split(block: bytes) -> tuple[list[tuple[int, bytes, bytes]], list[Flaw]]:
    """Field lines of a block that is not as it should be, as (offset, name, value), and what is wrong with it."""
    flaws: list[Flaw] = []
    lines: list[tuple[int, bytes, bytes]] = []
    at = 0
    for line in block.split(b"\n")[:-1]:
        content = line.removesuffix(b"\r")
        if not line.endswith(b"\r"):
            flaws.append(Flaw("http.bare-lf", at))
        if b"\r" in content:
            flaws.append(Flaw("http.bare-cr", at + content.index(b"\r")))
        if content[:1] in (b" ", b"\t"):
            if lines:
                flaws.append(Flaw("http.obs-fold", at))
                previous, name, value = lines[-1]
                lines[-1] = (previous, name, value + b" " + content.strip(b" \t"))
            else:
                flaws.append(Flaw("http.leading-space", at, excerpt(content)))
        elif content:
            name, colon, value = content.partition(b":")
            if not colon:
                flaws.append(Flaw("http.field-without-colon", at, excerpt(content)))
            else:
                bare = name.rstrip(b" \t")
                if bare != name:
                    flaws.append(Flaw("http.space-before-colon", at, excerpt(name)))
                if not FIELD_NAME.fullmatch(bare):
                    flaws.append(Flaw("http.field-name", at, excerpt(name)))
                lines.append((at, bare, value))
        if b"\0" in content:
            flaws.append(Flaw("http.nul", at + content.index(b"\0")))
        elif not FIELD_VALUE.fullmatch(content.replace(b"\r", b"")):
            flaws.append(Flaw("http.field-value", at, excerpt(content)))
        at += len(line) + 1
    return lines, flaws


def _note_credentials(metadata: dict[str, Any], name: bytes, value: bytes, request: bool) -> None:
    """Note that a credential is there and of what kind; never its value."""
    if name in (b"authorization", b"proxy-authorization") and request:
        scheme, _, rest = value.partition(b" ")
        key = "auth" if name == b"authorization" else "proxy_auth"
        metadata[key] = text(scheme[:MAX_NAME]).lower() if rest else "unknown"
        if _JWT.fullmatch(rest.strip()):
            metadata[key + "_kind"] = "jwt"
    elif name == b"cookie" and request:
        names = (text(pair.partition(b"=")[0].strip()[:MAX_NAME]) for pair in value.split(b";", MAX_NAMES)[:MAX_NAMES])
        metadata["cookies"] = (*metadata.get("cookies", ()), *names)[:MAX_NAMES]
    elif name == b"set-cookie" and not request:
        cookie = text(value.partition(b"=")[0].strip()[:MAX_NAME])
        metadata["set_cookies"] = (*metadata.get("set_cookies", ()), cookie)[:MAX_NAMES]
    elif name in _API_KEYS:
        metadata["api_keys"] = (*metadata.get("api_keys", ()), name.decode())[:MAX_NAMES]


_JWT: Final = re.compile(rb"eyJ[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]*+")


@lru_cache(256)
def _recognise(media_type: str) -> tuple[str | None, bool]:
    """What a media type says about the content, and whether it leaves that to the bytes."""
    return format_of(media_type, b""), says_nothing(media_type)


_API_KEYS: Final = frozenset((b"x-api-key", b"api-key", b"apikey", b"x-auth-token", b"x-access-token", b"x-csrf-token"))
_KNOWN: Final = _API_KEYS | {
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"content-type",
    b"content-encoding",
    b"upgrade",
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"set-cookie",
}
_KNOWN_FIELDS: Final = re.compile(rb"\n(?i:(" + b"|".join(sorted(_KNOWN)) + rb")):([^\r]*+)")
_FORBIDDEN_TRAILERS: Final = frozenset((b"content-length", b"transfer-encoding", b"host", b"trailer", b"te"))
