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


# What HTTP heads usually say, the commonest last (lz4 keeps the last match it saw). It never changes: another text is
# another format number.
HEADS_1 = b"""\
PATCH  HTTP/1.1
DELETE  HTTP/1.1
OPTIONS  HTTP/1.1
PUT  HTTP/1.1
HEAD  HTTP/1.1
HTTP/1.1 301 Moved Permanently
HTTP/1.1 302 Found
HTTP/1.1 101 Switching Protocols
HTTP/1.1 400 Bad Request
HTTP/1.1 401 Unauthorized
HTTP/1.1 403 Forbidden
HTTP/1.1 500 Internal Server Error
HTTP/1.1 502 Bad Gateway
HTTP/1.1 503 Service Unavailable
HTTP/1.1 201 Created
HTTP/1.1 204 No Content
HTTP/1.1 304 Not Modified
HTTP/1.1 404 Not Found
Upgrade-Insecure-Requests: 1
Sec-Fetch-Site: same-origin
Sec-Fetch-Mode: cors
Sec-Fetch-Dest: empty
Access-Control-Allow-Origin: *
Strict-Transport-Security: max-age=31536000; includeSubDomains
X-Content-Type-Options: nosniff
X-Frame-Options: SAMEORIGIN
X-Request-Id: 0
X-Forwarded-For: 10.0.0.1
X-Forwarded-Proto: https
Location: http://
Referer: https://www.
Origin: http://
Vary: Accept-Encoding
Content-Encoding: gzip
Transfer-Encoding: chunked
Cache-Control: no-cache, no-store, must-revalidate
Cache-Control: max-age=0
Pragma: no-cache
Expires: 0
ETag: "
If-None-Match: "
If-Modified-Since: Thu, 01
Age: 1
Via: 1.1 proxy
Set-Cookie: [redacted:cookie:
; Path=/; HttpOnly; Secure; SameSite=Lax
Cookie: [redacted:cookie:
Authorization: Bearer [redacted:bearer:
Content-Type: application/x-www-form-urlencoded
Content-Type: application/octet-stream
Content-Type: text/plain; charset=utf-8
Content-Type: text/html; charset=utf-8
Content-Type: application/json
User-Agent: python-requests/2.
User-Agent: curl/8.
User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/1 Safari/537.36
Accept-Language: en-US,en;q=0.9
Accept-Encoding: gzip, deflate, br, zstd
Accept: application/json, text/plain, */*
Accept: */*
POST / HTTP/1.1
GET / HTTP/1.1
Host: 10.0.0.1:8080
Connection: close
Connection: keep-alive

HTTP/1.1 200 OK
Server: nginx
Date: Mon, 01 Jan 2026 00:00:00 GMT
Content-Length: 1
Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT
Accept-Ranges: bytes
Content-Length: 1024
Connection: keep-alive

""".replace(b"\n", b"\r\n")


_pack_lengths = _LENGTHS.pack
_LZ4_HEADS_1 = int(HeadsFormat.LZ4_HEADS_1)


def pack_heads(request_head: bytes, response_head: bytes) -> bytes:
    """Both heads as one blob, about a third of their size."""
    both = request_head + response_head
    packed: bytes = _compress_lz4(both, store_size=False, dict=HEADS_1)
    if len(packed) >= len(both):
        return _LENGTHS.pack(HeadsFormat.RAW, len(request_head), len(both)) + both
    return _pack_lengths(_LZ4_HEADS_1, len(request_head), len(both)) + packed


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
