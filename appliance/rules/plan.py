"""Decide, before a byte leaves, how deep a connection is understood."""

from dataclasses import dataclass
from ipaddress import ip_address

from appliance.model.bypass import BypassRule
from appliance.model.connection import Path
from appliance.model.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """The path of one connection, and which rule chose it."""

    path: Path = Path.RELAY
    headers_only: bool = False
    why: str = ""


UNDERSTAND = Plan()


class Planner:
    """The bypass rules, compiled. The first rule that holds decides; without one everything is understood."""

    def __init__(self, rules: tuple[BypassRule, ...]) -> None:
        self._rules = rules
        self._ports = frozenset(rule.port for rule in rules if rule.port is not None)
        self._only_ports = all(rule.network is None and rule.domain is None for rule in rules)

    def plan(self, server: Endpoint, domain: str | None) -> Plan:
        """The plan for a server, given by address or name, and the name that led there if one is known."""
        if not self._rules or (self._only_ports and server.port not in self._ports):
            return UNDERSTAND
        for number, rule in enumerate(self._rules):
            if _holds(rule, server, domain):
                why = f"bypass_rules[{number}] ({rule.mode})"
                if rule.mode == "direct_proxy":
                    return Plan(Path.OPAQUE, False, why)
                return Plan(Path.RELAY, True, why)
        return UNDERSTAND


def _holds(rule: BypassRule, server: Endpoint, domain: str | None) -> bool:
    if rule.port is not None and rule.port != server.port:
        return False
    if rule.network is not None:
        try:
            address = ip_address(server.host)
        except ValueError:
            return False
        if address.version != rule.network.version or address not in rule.network:
            return False
    if rule.domain is not None:
        name = (domain or server.host).lower().rstrip(".")
        if rule.domain.startswith("*."):
            return name.endswith(rule.domain[1:].lower())
        return name == rule.domain.lower()
    return True
