"""Heads and bodies to the bytes that are stored, and back.

Both heads of an exchange become one blob that starts with a format byte, so that a later issue can add trained
dictionaries without touching old rows (docs/adr/0011). A body is stored once per day under the SHA-256 of its bytes;
small ones stay as they are, because lz4 makes them larger.
"""

import struct
from enum import IntEnum

import lz4.block
import zstandard

from appliance.record.settings import CompressionSettings

WORTH_IT = 0.95  # a body that shrinks less than this stays raw and costs its readers nothing
UNPACKED_LIMIT = 64 * 1024 * 1024  # a damaged blob may not claim all memory

_LENGTHS = struct.Struct("<BII")  # format, length of the request head, length of both heads


class Format(IntEnum):
    """How a stored body is compressed; the values are in the database."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2


class HeadsFormat(IntEnum):
    """The first byte of a blob of heads."""

    RAW = 0
    LZ4_HEADS_1 = 1  # lz4 block against the dictionary HEADS_1


class Damaged(ValueError):
    """Stored bytes that cannot be unpacked."""


# What HTTP heads usually say, the commonest last (RFC 1951 prefers near matches). It never changes: another text is
# another format number.
HEADS_1 = (
    b"PATCH  HTTP/1.1\r\nDELETE  HTTP/1.1\r\nOPTIONS  HTTP/1.1\r\nPUT  HTTP/1.1\r\nHEAD  HTTP/1.1\r\nHTTP/1.1 301 Moved Permanently\r\n"
    b"HTTP/1.1 302 Found\r\nHTTP/1.1 101 Switching Protocols\r\nHTTP/1.1 400 Bad Request\r\nHTTP/1.1 401 Unauthorized\r\n"
    b"HTTP/1.1 403 Forbidden\r\nHTTP/1.1 500 Internal Server Error\r\nHTTP/1.1 502 Bad Gateway\r\nHTTP/1.1 503 Service Unavailable\r\n"
    b"HTTP/1.1 201 Created\r\nHTTP/1.1 204 No Content\r\nHTTP/1.1 304 Not Modified\r\nHTTP/1.1 404 Not Found\r\n"
    b"Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"
    b"Access-Control-Allow-Origin: *\r\nStrict-Transport-Security: max-age=31536000; includeSubDomains\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Frame-Options: SAMEORIGIN\r\nX-Request-Id: \r\nX-Forwarded-For: \r\nX-Forwarded-Proto: https\r\n"
    b"Location: http://\r\nReferer: https://www.\r\nOrigin: http://\r\nVary: Accept-Encoding\r\nContent-Encoding: gzip\r\n"
    b"Transfer-Encoding: chunked\r\nCache-Control: no-cache, no-store, must-revalidate\r\nCache-Control: max-age=0\r\nPragma: no-cache\r\n"
    b'Expires: \r\nETag: "\r\nIf-None-Match: "\r\nIf-Modified-Since: \r\nAge: \r\nVia: 1.1 \r\nSet-Cookie: [redacted:cookie:\r\n'
    b"; Path=/; HttpOnly; Secure; SameSite=Lax\r\nCookie: [redacted:cookie:\r\nAuthorization: Bearer [redacted:bearer:\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Type: application/octet-stream\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Type: text/html; charset=utf-8\r\nContent-Type: application/json\r\nUser-Agent: python-requests/2.\r\nUser-Agent: curl/8.\r\n"
    b"User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1 Safari/537.36\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept: application/json, text/plain, */*\r\nAccept: */*\r\n"
    b"POST / HTTP/1.1\r\nGET / HTTP/1.1\r\nHost: \r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: "
    b"Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\nContent-Length: \r\nConnection: keep-alive\r\n\r\n"
)


def pack_heads(request_head: bytes, response_head: bytes) -> bytes:
    """Both heads as one blob, about a third of their size."""
    both = request_head + response_head
    packed = _compress_lz4(both, store_size=False, dict=HEADS_1)
    if len(packed) >= len(both):
        return _LENGTHS.pack(HeadsFormat.RAW, len(request_head), len(both)) + both
    return _LENGTHS.pack(HeadsFormat.LZ4_HEADS_1, len(request_head), len(both)) + packed


def unpack_heads(blob: bytes) -> tuple[bytes, bytes]:
    """The request's and the response's head as they were given to ``pack_heads``. Raises ``Damaged``."""
    try:
        form, request, length = _LENGTHS.unpack_from(blob)
    except struct.error as error:
        raise Damaged(f"a blob of heads needs {_LENGTHS.size} bytes, this one has {len(blob)}") from error
    if length > UNPACKED_LIMIT or request > length:
        raise Damaged(f"a blob of heads claims {request} of {length} bytes")
    packed = blob[_LENGTHS.size :]
    if form == HeadsFormat.LZ4_HEADS_1:
        try:
            packed = lz4.block.decompress(packed, uncompressed_size=length, dict=HEADS_1)
        except lz4.block.LZ4BlockError as error:
            raise Damaged(f"heads cannot be unpacked: {error}") from error
    elif form != HeadsFormat.RAW:
        raise Damaged(f"heads have the unknown format {form} (written by a newer version?)")
    if len(packed) != length:
        raise Damaged(f"heads have {len(packed)} bytes, {length} were stored")
    return packed[:request], packed[request:]


class BodyPacker:
    """Compresses bodies as the settings say."""

    def __init__(self, settings: CompressionSettings) -> None:
        self._smallest = settings.min_size if settings.enabled and settings.algorithms else 1 << 62
        zstd = zstandard.ZstdCompressor(level=settings.zstd_level, write_checksum=False, write_content_size=True)
        self._zstd = zstd.compress
        both = len(set(settings.algorithms)) > 1
        self._zstd_from = settings.zstd_from if both else (0 if "zstd" in settings.algorithms else 1 << 62)

    def pack(self, data: bytes) -> tuple[Format, bytes]:
        """The format and the bytes to store."""
        size = len(data)
        if size < self._smallest:
            return Format.NONE, data
        if size >= self._zstd_from:
            form, packed = Format.ZSTD, self._zstd(data)
        else:
            form, packed = Format.LZ4, _compress_lz4(data)
        return (form, packed) if len(packed) < size * WORTH_IT else (Format.NONE, data)


def unpack_body(form: int, data: bytes) -> bytes:
    """The bytes of a stored body. Raises ``Damaged``."""
    try:
        if form == Format.NONE:
            return data
        if form == Format.LZ4:
            # The block's own little-endian size word; lz4 would allocate whatever it says.
            if len(data) < 4 or int.from_bytes(data[:4], "little") > UNPACKED_LIMIT:
                raise Damaged("a body claims more bytes than any stored body has")
            return bytes(lz4.block.decompress(data))
        if form == Format.ZSTD:
            if zstandard.frame_content_size(data) > UNPACKED_LIMIT:
                raise Damaged("a body claims more bytes than any stored body has")
            return zstandard.ZstdDecompressor().decompress(data)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError) as error:
        raise Damaged(f"a body cannot be unpacked: {error}") from error
    raise Damaged(f"a body has the unknown format {form} (written by a newer version?)")


_compress_lz4 = lz4.block.compress
