"""Pair commands with replies, in order, and say in one record what was exchanged."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from appliance.dissectors._template.events import Command, Reply
from appliance.dissectors.kit.body import whole
from appliance.dissectors.kit.spec import Capture, Desynchronised, Event
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.exchange import EMPTY, Exchange, Missing

PROTOCOL: Final = "template"
_CAPTURE: Final = Capture()


class Fold:
    """One connection's exchanges."""

    __slots__ = ("_commands",)

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()  # bounded by the machine: MAX_WAITING

    def add(self, event: Event) -> Sequence[Exchange]:
        """Take one event; return the exchanges it completes."""
        if isinstance(event, Command):
            self._commands.append(event)
        elif isinstance(event, Reply):
            return [_exchange(self._commands.popleft() if self._commands else None, event)]
        elif isinstance(event, Desynchronised) and event.direction is TO_CLIENT:
            return self._give_up(Missing.RESPONSE_GAP)
        return []

    def close(self, at: int) -> Sequence[Exchange]:
        """The connection is over: return what was left unpaired, marked so."""
        return self._give_up(Missing.RESPONSE_UNFINISHED)

    def unfinished(self, direction: Direction) -> int | None:
        """The offset of the oldest command that has no reply."""
        return self._commands[0].start if direction is TO_SERVER and self._commands else None

    def _give_up(self, missing: Missing) -> Sequence[Exchange]:
        left = [_exchange(command, None, missing) for command in self._commands]
        self._commands.clear()
        return left


def _exchange(command: Command | None, reply: Reply | None, missing: int = 0) -> Exchange:
    said = command.rest if command is not None else b""
    return Exchange(
        protocol=PROTOCOL,
        method=command.word.decode("latin-1") if command is not None else "",
        target=said.partition(b" ")[0].decode("latin-1"),
        status="" if reply is None else "ok" if reply.ok else "error",
        status_code=0,
        domain=None,
        started_ns=command.started_ns if command is not None else 0,
        request_ended_ns=command.ended_ns if command is not None else 0,
        first_byte_ns=reply.started_ns if reply is not None else 0,
        ended_ns=reply.ended_ns if reply is not None else 0,
        request_bytes=command.size if command is not None else 0,
        response_bytes=reply.size if reply is not None else 0,
        request_head=b"",
        response_head=b"",
        request=whole(said, _CAPTURE),
        response=whole(reply.rest, _CAPTURE) if reply is not None else EMPTY,
        missing=int(missing),
        error=None if command is not None else "no command was seen for this reply",
        violations=(command.violations if command is not None else ())
        + (reply.violations if reply is not None else ()),
    )
