"""Identities that sort by time: UUIDv7 (RFC 9562 §5.7) from a clock and a source of uniqueness, both given."""

import struct

_PACK = struct.Struct("!QQ").pack
_RAND_A = 0x7000
_VARIANT = 0x8000000000000000


def uuid7(at_ns: int, discriminator: int) -> bytes:
    """Sixteen bytes: milliseconds of ``at_ns``, version and variant bits, and 74 bits of ``discriminator``.

    The same arguments give the same id, so whoever replays an observation mints the same identity again.
    """
    return _PACK(
        (at_ns // 1_000_000 << 16) | _RAND_A | (discriminator >> 62 & 0xFFF),
        _VARIANT | (discriminator & 0x3FFFFFFFFFFFFFFF),
    )


def floor(at_ns: int) -> bytes:
    """The smallest identity that can be minted at or after this millisecond: the lower bound of a time window."""
    return _PACK((at_ns // 1_000_000 << 16) | _RAND_A, _VARIANT)
