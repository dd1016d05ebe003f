"""Undo content codings (RFC 9110 §8.4), without letting a small body become a huge one.

Only what a limit allows is decoded, and a body that inflates beyond a ratio is called what it is: a bomb. A body of
which only the beginning was kept decodes as far as it goes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Final, NamedTuple

import brotli
import zstandard

KIB: Final = 1024
MIB: Final = 1024 * KIB
MAX_CODINGS: Final = 4  # stacked codings that are undone; nobody honest sends more
ZSTD_WINDOW: Final = 8 * MIB  # RFC 9659: a zstd content coding needs no larger window
MAX_MEMBERS: Final = 4096  # gzip members or zstd frames of one body; block formats make one of every 10 KB or more
_PIECE: Final = 16 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much decoding may produce: at most ``output`` bytes, and at most ``ratio`` times its input past ``free``."""

    output: int = 8 * MIB
    ratio: int = 200
    free: int = 256 * KIB

    def allowed(self, encoded: int) -> int:
        """The most bytes that ``encoded`` bytes may become."""
        return min(self.output, max(self.free, self.ratio * encoded))


DEFAULT_LIMIT: Final = Limit()


class Decoded(NamedTuple):
    """Decoded content; ``complete`` is False when there is more that was not produced, and ``problem`` says why."""

    content: bytes
    complete: bool
    problem: str | None


def decode(body: bytes, encodings: str, limit: Limit = DEFAULT_LIMIT) -> Decoded:
    """Undo the codings of a ``Content-Encoding`` value, last applied first. Never raises.

    An unknown coding leaves the content as it is at that point and says so in ``problem``.
    """
    codings = [coding for part in encodings.split(",") if (coding := part.strip().lower()) not in ("", "identity")]
    if len(codings) > MAX_CODINGS:
        return Decoded(body, False, f"{len(codings)} stacked content codings (at most {MAX_CODINGS} are undone)")
    content, complete, problem = body, True, None
    for coding in reversed(codings):
        decoder = _DECODERS.get(coding)
        if decoder is None:
            return Decoded(content, False, f"unknown content coding {coding!r}")
        if not content:
            break
        allowed = limit.allowed(len(body))
        decoded = decoder(content, allowed)
        content, complete, problem = decoded.content, complete and decoded.complete, problem or decoded.problem
        if len(content) >= allowed and not decoded.complete:
            return Decoded(content, False, f"stopped at {len(content)} bytes: {len(body)} bytes inflate further")
    return Decoded(content, complete, problem)


def format_of(media_type: str, beginning: bytes) -> str | None:
    """``json`` or ``xml`` when the media type or, where that says nothing, the first bytes say so; else None."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind.endswith(("/json", "+json")) or kind in ("application/x-ndjson", "application/graphql-response"):
        return "json"
    if kind.endswith(("/xml", "+xml")):
        return "xml"
    if not says_nothing(kind):
        return None
    text = beginning[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:5] == b"<?xml":
        return "xml"
    # A JSON text is an object or array in practice; a lone number or string is not recognisable.
    if text[:1] == b"{" and text[1:].lstrip()[:1] in (b'"', b"}"):
        return "json"
    if text[:1] == b"[" and text[1:].lstrip()[:1] in _AFTER_BRACKET:
        return "json"
    return None


def says_nothing(media_type: str) -> bool:
    """Whether a media type leaves it to the bytes what they are."""
    return media_type.partition(";")[0].strip().lower() in ("", "text/plain", "application/octet-stream")


_AFTER_BRACKET: Final = frozenset(bytes([byte]) for byte in b'"{[]-0123456789tfn')


def _inflate(window: int) -> Callable[[bytes, int], Decoded]:
    def decode_zlib(data: bytes, allowed: int) -> Decoded:
        out = bytearray()
        inflater = zlib.decompressobj(window)
        position, problem = 0, None
        pending = b""
        members = 1
        try:
            while len(out) < allowed:
                if not pending:
                    if position >= len(data):
                        break
                    pending = data[position : position + _PIECE]
                    position += len(pending)
                out += inflater.decompress(pending, allowed - len(out))
                pending = inflater.unconsumed_tail
                if inflater.eof:
                    # gzip members may follow one another (RFC 1952 §2.2). Go back to where the next begins: copying
                    # what is left for each of many small members is quadratic.
                    position -= len(inflater.unused_data)
                    if window != _GZIP or data[position : position + 2] != b"\x1f\x8b":
                        return Decoded(
                            bytes(out), True, "bytes after the end" if data[position:].strip(b"\0") else None
                        )
                    members += 1
                    if members > MAX_MEMBERS:
                        return Decoded(bytes(out), False, f"more than {MAX_MEMBERS} members")
                    inflater, pending = zlib.decompressobj(window), b""
        except zlib.error as error:
            problem = str(error)
        return Decoded(bytes(out), False, problem or ("ends early" if len(out) < allowed else None))

    return decode_zlib


_GZIP: Final = 16 + zlib.MAX_WBITS


def _deflate(data: bytes, allowed: int) -> Decoded:
    # "deflate" is the zlib format (RFC 9110 §8.4.1.2), but some senders leave its header out.
    header = len(data) >= 2 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    decoded = _inflate(zlib.MAX_WBITS if header else -zlib.MAX_WBITS)(data, allowed)
    if header and not decoded.content and decoded.problem:
        return _inflate(-zlib.MAX_WBITS)(data, allowed)
    return decoded


def _brotli(data: bytes, allowed: int) -> Decoded:
    out = bytearray()
    decoder = brotli.Decompressor()
    try:
        pending = data
        while len(out) < allowed and not decoder.is_finished():
            piece = decoder.process(pending, output_buffer_limit=allowed - len(out))
            pending = b""
            if not piece and decoder.can_accept_more_data():
                return Decoded(bytes(out), False, "ends early")
            out += piece
    except brotli.error as error:
        return Decoded(bytes(out[:allowed]), False, str(error))
    return Decoded(bytes(out[:allowed]), decoder.is_finished() and len(out) <= allowed, None)


def _zstd(data: bytes, allowed: int) -> Decoded:
    out = bytearray()
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(BytesIO(data), read_across_frames=True) as reader:
            while len(out) <= allowed and (piece := reader.read(min(_PIECE, allowed + 1 - len(out)))):
                out += piece
    except zstandard.ZstdError as error:
        return Decoded(bytes(out[:allowed]), False, str(error))
    if len(out) > allowed:
        return Decoded(bytes(out[:allowed]), False, None)
    # The reader does not tell a frame that ends from one that is cut off. Its output is known to be small by now.
    frame, ended, frames = decompressor.decompressobj(), False, 1
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        while piece:
            if ended:
                frame, frames = decompressor.decompressobj(), frames + 1
                if frames > MAX_MEMBERS:
                    return Decoded(bytes(out), False, f"more than {MAX_MEMBERS} frames")
            frame.decompress(piece)
            ended, piece = frame.eof, frame.unused_data
    return Decoded(bytes(out), ended, None if ended else "ends early")


_DECODERS: Final[dict[str, Callable[[bytes, int], Decoded]]] = {
    "gzip": _inflate(_GZIP),
    "x-gzip": _inflate(_GZIP),
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
