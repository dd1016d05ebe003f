"""Policy routing: marked packets are delivered locally, whatever their destination.

One rule (``fwmark MARK/MASK lookup TABLE``) and one route (``local default dev lo table TABLE``) for each family. Both
carry a protocol number of our own, so that what a killed run left behind is recognised and nothing else is touched.
Without them, packets that the ruleset marked vanish silently.
"""

import asyncio
import errno
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.rtnl import RTM_DELROUTE, RTM_DELRULE, RTM_GETROUTE, RTM_GETRULE, RTM_NEWROUTE, RTM_NEWRULE
from pyroute2.netlink.rtnl.fibmsg import FR_ACT_TO_TBL, fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from appliance.netfilter.errors import NetfilterError, PrivilegeMissing
from appliance.netfilter.netlink import HEADER, NETLINK_ROUTE, Answer, NetlinkSocket, Refused
from appliance.netfilter.policy import InterceptPolicy

# Shown by ``ip rule`` and ``ip route`` as "proto 87" ("W"). Numbers of known daemons are in /etc/iproute2/rt_protos.
PROTOCOL = 87

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_GROUPS = 0x40 | 0x80 | 0x400 | 0x40000  # RTMGRP_IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE; RTNLGRP_IPV6_RULE
_RTM_PROTOCOL = 5  # offset in struct rtmsg
_RT_TABLE_UNSPEC = 0  # the table's number is in its attribute, which has room for more than 255
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_HOST = 254
_RTN_LOCAL = 2


class Rule(NamedTuple):
    """A policy routing rule, as far as we use them."""

    version: int
    priority: int
    mark: int
    mask: int
    table: int


class Route(NamedTuple):
    """``local default dev lo table TABLE``."""

    version: int
    table: int
    interface: int


class Changes:
    """Tells when a rule or a route was taken away from this network namespace, by whomever."""

    def __init__(self) -> None:
        """Join the kernel's event groups."""
        self._netlink = NetlinkSocket(NETLINK_ROUTE, groups=_GROUPS)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    async def lost(self) -> None:
        """Wait until something of ours may be gone."""
        loop = asyncio.get_running_loop()
        while True:
            readable = loop.create_future()
            loop.add_reader(self._netlink.fileno(), _settle, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._netlink.fileno())
            if any(_may_be_ours(event) for event in self._netlink.events()):
                return


class Routing:
    """The policy routing of the network namespace in which this was made."""

    def __init__(self, timeout: float = 5.0) -> None:
        """Open the socket; ``timeout`` in seconds bounds every call."""
        self._netlink = NetlinkSocket(NETLINK_ROUTE, timeout)
        self.loopback = socket.if_nametoindex("lo")

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def install(self, policy: InterceptPolicy) -> None:
        """Make rules and routes be exactly the policy's; leftovers under other numbers go.

        What is needed is added first and what is not is removed after, so that a replacement leaves no hole.
        """
        rules, routes = wanted(policy, self.loopback)
        for route in routes:
            self._add(_route_message(route), RTM_NEWROUTE, f"the local route of table {route.table}")
        for rule in rules:
            self._add(_rule_message(rule), RTM_NEWRULE, f"the routing rule for mark {rule.mark:#x}")
        self._remove(set(self.rules()) - set(rules), set(self.routes()) - set(routes))

    def missing(self, policy: InterceptPolicy) -> bool:
        """Whether the kernel lacks any rule or route that the policy needs."""
        rules, routes = wanted(policy, self.loopback)
        return not (set(rules) <= set(self.rules(foreign=True)) and set(routes) <= set(self.routes(foreign=True)))

    def remove(self) -> None:
        """Take away every rule and route that carries our protocol number."""
        self._remove(set(self.rules()), set(self.routes()))

    def rules(self, *, foreign: bool = False) -> list[Rule]:
        """Our fwmark rules; with ``foreign``, everybody's."""
        return [
            rule for version in FAMILY for rule, protocol in self._rules(version) if foreign or protocol == PROTOCOL
        ]

    def routes(self, *, foreign: bool = False) -> list[Route]:
        """Our local default routes; with ``foreign``, everybody's."""
        return [
            route for version in FAMILY for route, protocol in self._routes(version) if foreign or protocol == PROTOCOL
        ]

    def _rules(self, version: int) -> Iterator[tuple[Rule, int]]:
        request = fibmsg()
        request["family"] = FAMILY[version]
        request["header"]["type"] = RTM_GETRULE
        for answer in self._netlink.dump(request):
            message = fibmsg(answer.data)
            message.decode()
            mark = message.get_attr("FRA_FWMARK")
            if mark is None or message["action"] != FR_ACT_TO_TBL:
                continue
            found = Rule(
                version,
                message.get_attr("FRA_PRIORITY") or 0,
                mark,
                message.get_attr("FRA_FWMASK") or 0xFFFFFFFF,
                message.get_attr("FRA_TABLE") or message["table"],
            )
            yield found, message.get_attr("FRA_PROTOCOL") or 0

    def _routes(self, version: int) -> Iterator[tuple[Route, int]]:
        request = rtmsg()
        request["family"] = FAMILY[version]
        request["type"] = _RTN_LOCAL
        request["header"]["type"] = RTM_GETROUTE
        for answer in self._netlink.dump(request):
            message = rtmsg(answer.data)
            message.decode()
            if message["type"] != _RTN_LOCAL or message["dst_len"]:  # kernels before 4.20 do not filter
                continue
            table = message.get_attr("RTA_TABLE") or message["table"]
            yield Route(version, table, message.get_attr("RTA_OIF") or 0), message["proto"]

    def _add(self, message: Any, kind: int, what: str) -> None:
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_CREATE | NLM_F_EXCL
        try:
            self._netlink.ask(message)
        except Refused as error:
            # There already: ours from before, or the administrator's own, which we then leave alone for good.
            if error.errno != errno.EEXIST:
                raise _explained(error, f"adding {what}") from error

    def _remove(self, rules: set[Rule], routes: set[Route]) -> None:
        for rule in rules:
            self._delete(_rule_message(rule), RTM_DELRULE, f"the routing rule for mark {rule.mark:#x}")
        for route in routes:
            self._delete(_route_message(route), RTM_DELROUTE, f"the local route of table {route.table}")

    def _delete(self, message: Any, kind: int, what: str) -> None:
        message["header"]["type"] = kind
        message["header"]["flags"] = 0
        try:
            self._netlink.ask(message)
        except Refused as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):  # somebody was faster
                raise _explained(error, f"removing {what}") from error


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _may_be_ours(event: Answer) -> bool:
    """A deleted rule, a deleted route with our protocol number, or events that were lost. Others' routes are many."""
    if event.type == RTM_DELROUTE:
        return event.data[HEADER.size + _RTM_PROTOCOL] == PROTOCOL
    return event.type not in (RTM_NEWRULE, RTM_NEWROUTE)


def wanted(policy: InterceptPolicy, loopback: int) -> tuple[list[Rule], list[Route]]:
    """What the policy needs, one rule and one route for each family with a listener."""
    rules, routes = [], []
    for version, _ in policy.listeners:
        rules.append(Rule(version, policy.rule_priority, policy.mark, policy.mask, policy.routing_table))
        routes.append(Route(version, policy.routing_table, loopback))
    return rules, routes


def _rule_message(rule: Rule) -> Any:
    message = fibmsg()
    message["family"] = FAMILY[rule.version]
    message["table"] = _RT_TABLE_UNSPEC
    message["action"] = FR_ACT_TO_TBL
    message["attrs"] = [
        ("FRA_TABLE", rule.table),
        ("FRA_PRIORITY", rule.priority),
        ("FRA_FWMARK", rule.mark),
        ("FRA_FWMASK", rule.mask),
        ("FRA_PROTOCOL", PROTOCOL),
    ]
    return message


def _route_message(route: Route) -> Any:
    message = rtmsg()
    message["family"] = FAMILY[route.version]
    message["table"] = _RT_TABLE_UNSPEC
    message["proto"] = PROTOCOL
    # The kernel wants host scope for IPv4 local routes and ignores it for IPv6.
    message["scope"] = _RT_SCOPE_HOST if route.version == 4 else _RT_SCOPE_UNIVERSE
    message["type"] = _RTN_LOCAL
    message["attrs"] = [("RTA_TABLE", route.table), ("RTA_OIF", route.interface)]
    return message


def _explained(error: Refused, doing: str) -> NetfilterError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return PrivilegeMissing(doing)
    hint = " (try: ip link set lo up)" if error.errno == errno.ENETDOWN else ""
    return NetfilterError(f"{doing} failed: {error.strerror}{hint}")
