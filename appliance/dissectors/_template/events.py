"""What the machine reports. Named tuples, because they are made for every message."""

from typing import NamedTuple

from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction


class Command(NamedTuple):
    """A line from the client: ``word`` and ``rest``. ``start`` is its offset, ``size`` its bytes on the wire."""

    word: bytes
    rest: bytes
    start: int
    size: int
    started_ns: int
    ended_ns: int
    violations: tuple[str, ...] = ()

    @property
    def direction(self) -> Direction:
        """Where its bytes travel."""
        return TO_SERVER


class Reply(NamedTuple):
    """A line from the server."""

    ok: bool
    rest: bytes
    start: int
    size: int
    started_ns: int
    ended_ns: int
    violations: tuple[str, ...] = ()

    @property
    def direction(self) -> Direction:
        """Where its bytes travel."""
        return TO_CLIENT
