"""The rest of Weir as the API sees it: three questions to the supervisor, asked over the channel."""

from typing import Any, Protocol

import msgspec

from appliance.api.problems import EngineAway, Refused
from appliance.engine.control import Channel, ChannelClosed, RequestFailed

_PATIENCE = 5.0  # seconds; a supervisor answers at once or not at all
_RELOAD = 30.0


class Check(msgspec.Struct, frozen=True):
    """One condition of being ready."""

    ok: bool
    detail: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How Weir is. ``checks`` has at least ``listeners``, ``ruleset`` and ``store``; ``engine`` is what the supervisor
    tells of its processes."""

    ready: bool
    checks: dict[str, Check]
    engine: dict[str, Any]


class Engine(Protocol):
    """What the API asks. Each raises ``EngineAway``."""

    async def status(self) -> dict[str, Any]:
        """The supervisor's view: ``checks`` (name to ``ok`` and ``detail``) and whatever else it knows."""

    async def metrics(self) -> dict[str, dict[str, float]]:
        """The latest snapshot of every process, by process."""

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; says what changed and what needs a restart. Raises ``Refused``."""


class Supervisor:
    """The engine behind a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def status(self) -> dict[str, Any]:
        """The supervisor's view."""
        return dict(await self._ask("status", _PATIENCE) or {})

    async def metrics(self) -> dict[str, dict[str, float]]:
        """The latest snapshots."""
        return dict(await self._ask("metrics", _PATIENCE) or {})

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again."""
        try:
            return dict(await self._ask("reload", _RELOAD) or {})
        except RequestFailed as error:
            raise Refused(str(error)) from error

    async def _ask(self, name: str, patience: float) -> Any:
        try:
            return await self._channel.request(name, within=patience)
        except RequestFailed as error:
            if name == "reload":
                raise
            raise EngineAway(f"the supervisor could not answer {name!r}: {error}") from error
        except (ChannelClosed, TimeoutError) as error:
            raise EngineAway(f"the supervisor did not answer {name!r}; is `weir run` stopping?") from error
