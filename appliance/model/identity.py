"""Identities that sort by time: UUIDv7 (RFC 9562 §5.7, §6.2 method 3) from a clock and randomness, both given."""

import struct

_PACK = struct.Struct("!QQ").pack
_VERSION = 0x7000
_VARIANT = 0x8000000000000000
_MILLISECOND = 1_000_000  # ns


def uuid7(at_ns: int, randomness: int) -> bytes:
    """Sixteen bytes: ``at_ns`` to a quarter of a microsecond, version and variant, 62 bits of ``randomness``."""
    milliseconds, rest = divmod(at_ns, _MILLISECOND)
    return _PACK(
        milliseconds << 16 | _VERSION | rest * 4096 // _MILLISECOND,
        _VARIANT | randomness & 0x3FFFFFFFFFFFFFFF,
    )


def floor(at_ns: int) -> bytes:
    """The smallest identity that can be minted in this millisecond: the lower bound of a time window."""
    return _PACK(at_ns // _MILLISECOND << 16 | _VERSION, _VARIANT)
