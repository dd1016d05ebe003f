"""Where the next page begins: an opaque token that is checked when it comes back.

A token names the list it belongs to and holds plain values. It is no secret and no capability: whoever forges one can
only ask for another page of what they may read anyway.
"""

import base64
import binascii
from typing import TypeVar

import msgspec

_MAX = 1024
T = TypeVar("T")


class CursorError(ValueError):
    """A cursor that no list of ours gave out."""


def encode(of: str, place: object) -> str:
    """The token for a place (any msgspec type) in the list ``of``."""
    return base64.urlsafe_b64encode(msgspec.json.encode([of, place])).rstrip(b"=").decode()


def decode(of: str, token: str, place: type[T]) -> T:
    """The place that a token of the list ``of`` holds. Raises ``CursorError``."""
    try:
        if len(token) > _MAX:
            raise ValueError("too long")
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        found: tuple[str, msgspec.Raw] = msgspec.json.decode(raw, type=tuple[str, msgspec.Raw])
        if found[0] != of:
            raise ValueError("of another list")
        return msgspec.json.decode(found[1], type=place)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise CursorError(
            "this cursor was not given out by this list: take `next` of the page before, as it is"
        ) from error
