"""What an inspector knows beyond single connections: the protocols, and what each server spoke last time."""

from collections.abc import Iterable

from appliance.dissectors.kit.detect import Detection, Recent
from appliance.dissectors.kit.spec import ProtocolSpec
from appliance.model.connection import Connection
from appliance.model.endpoint import Endpoint


class Knowledge:
    """The registered protocols by name, hints by port (from the configuration), hints by destination (learned)."""

    def __init__(self, specs: Iterable[ProtocolSpec], ports: dict[int, str], cache_size: int) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._ports = {port: self._specs[name] for port, name in ports.items() if name in self._specs}
        self._recent = Recent(cache_size)

    def spec(self, name: str) -> ProtocolSpec | None:
        """The protocol of this name, None when it is not registered."""
        return self._specs.get(name)

    def detection(self, connection: Connection) -> Detection:
        """An open question for a new connection, with the best hint there is."""
        server = connection.server
        hint = self._recent.get(server) or self._ports.get(server.port)
        return Detection(tuple(self._specs.values()), server.port, hint)

    def learn(self, server: Endpoint, protocol: str) -> None:
        """A server has answered in this protocol."""
        spec = self._specs.get(protocol)
        if spec is not None:
            self._recent.remember(server, spec)
