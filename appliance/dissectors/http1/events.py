"""What the HTTP/1 machine reports: whole requests and responses, when their last byte has come.

Named tuples: one of each is made per exchange.
"""

from typing import NamedTuple

from appliance.dissectors.http1.fields import Fields
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.exchange import Body, Missing

UNANSWERED = -1  # the number of a response for which no request was seen


class Request(NamedTuple):
    """A request, or as much of it as came.

    ``number`` counts requests; responses carry it. ``head`` is the start line and the fields as sent, without the
    blank line that ends them. ``start`` is the offset from which a reader must resume to see this message again, and
    ``size`` its bytes on the wire. ``missing`` is a ``Missing`` value.
    """

    number: int
    method: str
    target: str
    version: str
    head: bytes
    fields: Fields
    body: Body
    trailers: bytes
    chunked: bool
    start: int
    size: int
    started_ns: int
    ended_ns: int
    missing: int = 0
    violations: tuple[str, ...] = ()

    @property
    def direction(self) -> Direction:
        """Where its bytes travel."""
        return TO_SERVER

    @property
    def complete(self) -> bool:
        """Whether its end was seen."""
        return not self.missing & Missing.REQUEST_UNFINISHED


class Response(NamedTuple):
    """A response, interim ones (1xx) included. ``status`` 0: none came, and none will."""

    number: int
    status: int
    reason: str
    version: str
    head: bytes
    fields: Fields
    body: Body
    trailers: bytes
    chunked: bool
    start: int
    size: int
    started_ns: int
    ended_ns: int
    missing: int = 0
    violations: tuple[str, ...] = ()

    @property
    def direction(self) -> Direction:
        """Where its bytes travel."""
        return TO_CLIENT

    @property
    def complete(self) -> bool:
        """Whether its end was seen."""
        return not self.missing & Missing.RESPONSE_UNFINISHED

    @property
    def interim(self) -> bool:
        """Whether another response to the same request follows (RFC 9110 §15.2); 101 is the last HTTP response."""
        return 100 <= self.status < 200 and self.status != 101
