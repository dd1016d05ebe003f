"""Which way bytes travel on a connection."""

from enum import IntEnum


class Direction(IntEnum):
    """The two directions of a connection, named by where the bytes go."""

    TO_SERVER = 0
    TO_CLIENT = 1

    @property
    def opposite(self) -> "Direction":
        """The other direction."""
        return Direction(1 - self)


TO_SERVER = Direction.TO_SERVER
TO_CLIENT = Direction.TO_CLIENT
