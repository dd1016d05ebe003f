"""Interception of a network namespace, from set-up to tear-down: the one object that the supervisor holds.

Order matters. Up: switches, routing, then the table, because the table starts the diversion and the rest must be there
by then. Down: the table first, then the rest. Replacement is one transaction in the kernel.

The table belongs to this object's netlink socket. When the process dies, however it dies, the kernel removes a
fail-open table with it, and clients' new connections go straight to their servers. The rule, the route and the switches
stay; they do nothing without the table, and the next start finds and replaces them.
"""

import asyncio
import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from appliance.netfilter import messages, sysctl
from appliance.netfilter.batch import Nftables, TableState
from appliance.netfilter.errors import NetfilterError, PolicyError, RulesetRejected, TableTaken
from appliance.netfilter.messages import Message
from appliance.netfilter.policy import BypassEntry, InterceptPolicy
from appliance.netfilter.routing import Changes, Routing
from appliance.netfilter.ruleset import (
    BYPASS_PORTS,
    OWNER,
    PERSIST,
    SIGNATURE,
    Ruleset,
    Set,
    build,
    build_draining,
    bypass_set,
    port_key,
    render,
)
from appliance.netfilter.sets import difference, merge
from appliance.netfilter.sysctl import Switches
from appliance.observe.logging import get_logger

log = get_logger("netfilter")

SETTLE = 0.05
"""Seconds to wait after routing was changed by others, before it is put back."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)
P = ParamSpec("P")
_Entry = TypeVar("_Entry", bound=BypassEntry)


class Interception:
    """Interception in the network namespace of the calling thread.

    ``async with Interception() as interception: await interception.up(policy)`` leaves nothing behind. ``journal``
    names a file that keeps the switches' old values across ``kill -9``. Calls are serialised; kernel work runs beside
    the event loop. ``mended`` counts how often ``keep`` put the routing back. Raises the family of ``NetfilterError``.
    """

    def __init__(self, journal: Path | None = None, timeout: float = 5.0) -> None:
        """Open the sockets here and now: this is what ties the object to the namespace."""
        self._nftables = Nftables(timeout)
        self._routing = Routing(timeout)
        self._changes = Changes()
        self._switches = Switches(journal)
        self._policy: InterceptPolicy | None = None
        self._added: frozenset[BypassEntry] = frozenset()
        self._removed: frozenset[BypassEntry] = frozenset()
        self._busy = asyncio.Lock()
        self.mended = 0

    async def __aenter__(self) -> Self:
        """Nothing is changed before ``up``."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tear down and close."""
        try:
            await self.down()
        finally:
            self.close()

    @property
    def policy(self) -> InterceptPolicy | None:
        """What is in force, live bypass entries included; None while down."""
        return self._policy

    def fileno(self) -> int:
        """The descriptor that owns the table. It is close-on-exec; a child forked without exec must close it."""
        return self._nftables.fileno()

    def rendering(self) -> str:
        """The table in force, in nft's language; empty while down."""
        return render(build(self._policy)) if self._policy else ""

    async def up(self, policy: InterceptPolicy) -> None:
        """Intercept by this policy; what a killed run left behind is replaced. A second call replaces the first."""
        async with self._busy:
            existing = self._existing(policy.table)
            try:
                await self._install(policy, existing)
            except BaseException:
                if self._policy is None:  # half of a first set-up is worth nothing
                    self._routing.remove()
                    self._switches.restore()
                raise

    async def replace(self, policy: InterceptPolicy) -> None:
        """Change the policy without a gap: connections in progress go on, new ones meet the old or the new rules.

        Bypass entries that were added or removed live stay so.
        """
        old = self._policy
        if old is not None and (old.table != policy.table):
            raise PolicyError(["table: cannot change while the table is in force; stop first"])
        await self.up(policy)

    async def drain(self) -> None:
        """Intercept no new connection; packets of those that the listener has still reach it, until ``down``.

        Intercepted traffic of this machine itself (``own_traffic``) has no such grace: its way back cannot be told
        from that of its new connections.
        """
        async with self._busy:
            if self._policy is not None:
                existing = self._existing(self._policy.table)
                flags = existing.flags if existing else None
                await _beside_the_loop(self._apply, build_draining(self._policy), flags)

    async def down(self) -> None:
        """Take away the table, the rules, the routes, and put the switches back. Nothing else is touched."""
        async with self._busy:
            if self._policy is None:
                return
            await _beside_the_loop(self._remove_table, self._policy.table)
            await _beside_the_loop(self._routing.remove)
            self._switches.restore()
            self._policy = None

    async def clear(self, table: str) -> None:
        """Take away what a killed run left behind, without starting anew (``on_failure: closed``, say)."""
        async with self._busy:
            self._existing(table)
            await _beside_the_loop(self._remove_table, table)
            await _beside_the_loop(self._routing.remove)
            self._switches.restore()

    async def keep(self) -> None:
        """Put rules and routes back whenever somebody takes them away; runs until it is cancelled.

        Network managers flush rules that they do not know (systemd-networkd does on restart, unless
        ``ManageForeignRoutingPolicyRules=no``). The table needs no such care: nobody but its owner can change it.
        """
        while True:
            await self._changes.lost()
            await asyncio.sleep(SETTLE)  # a flush is many events
            async with self._busy:
                await self._mend()

    def close(self) -> None:
        """Close the sockets; a fail-open table still in force vanishes."""
        self._nftables.close()
        self._routing.close()
        self._changes.close()

    async def bypass(self) -> tuple[BypassEntry, ...]:
        """The bypass entries in force: networks, then TCP ports."""
        if self._policy is None:
            return ()
        return (*self._policy.bypass, *self._policy.bypass_ports)

    async def bypass_add(self, entries: Iterable[BypassEntry]) -> None:
        """Let these destinations pass from now on; thousands at once are one transaction. Known ones are no error.

        Connections already intercepted stay so.
        """
        chosen = frozenset(entries)
        async with self._busy:
            await self._change_bypass(self._added | chosen, self._removed - chosen)

    async def bypass_remove(self, entries: Iterable[BypassEntry]) -> None:
        """Intercept these destinations again. Entries that are not listed (exactly so) are no error."""
        chosen = frozenset(entries)
        async with self._busy:
            await self._change_bypass(self._added - chosen, self._removed | chosen)

    async def _install(self, policy: InterceptPolicy, existing: TableState | None) -> None:
        wanted = _with_live_entries(policy, self._added, self._removed)
        if policy.manage_sysctls:
            self._switches.set(sysctl.wanted(policy))
        else:
            self._switches.restore()
        await _beside_the_loop(self._routing.install, policy)
        await _beside_the_loop(self._apply, build(wanted), existing.flags if existing else None)
        self._policy = wanted

    async def _mend(self) -> None:
        policy = self._policy
        if policy is None or not self._routing.missing(policy):
            return
        try:
            await _beside_the_loop(self._routing.install, policy)
        except NetfilterError as error:  # loopback is down, say; its coming up brings the next event
            log.error("policy routing is gone and cannot be restored", reason=str(error), fix="weir doctor")
        else:
            self.mended += 1
            log.warning("policy routing was taken away and is restored", table=policy.routing_table)

    def _existing(self, table: str) -> TableState | None:
        """The table of this name. No other live Weir may be in this namespace, whatever its table is called.

        Two would take each other's routing for leftovers.
        """
        tables = self._nftables.tables()
        for name, state in tables.items():
            if state.owner not in (None, self._nftables.port) and (name == table or state.comment == SIGNATURE):
                raise TableTaken(name, state.owner)
        return tables.get(table)

    def _apply(self, ruleset: Ruleset, existing_flags: int | None) -> None:
        try:
            self._nftables.apply(messages.install(ruleset, existing_flags))
        except RulesetRejected as error:
            if not ruleset.flags & PERSIST or error.code not in _UNSUPPORTED:
                raise
            # Before Linux 6.9 an owned table cannot outlive its owner. Failing closed is worth more than the ownership.
            unowned = replace(ruleset, flags=ruleset.flags & ~(OWNER | PERSIST))
            self._nftables.apply(messages.install(unowned, existing_flags))

    def _remove_table(self, table: str) -> None:
        if self._nftables.table(table) is not None:
            self._nftables.apply([messages.delete_table(table)])

    async def _change_bypass(self, added: frozenset[BypassEntry], removed: frozenset[BypassEntry]) -> None:
        if self._policy is None:
            raise NetfilterError("no interception is in force, so there is nothing to bypass")
        before = self._policy
        after = _with_live_entries(before, added, removed)
        changes = [message for each in _bypass_changes(before, after) for message in each]
        if changes:
            await _beside_the_loop(self._nftables.apply, changes)
        self._policy, self._added, self._removed = after, added, removed


async def _beside_the_loop(function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run kernel work in a thread. A cancellation takes effect when it is done, so that nothing is left half known."""
    working = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


def _with_live_entries(
    policy: InterceptPolicy, added: frozenset[BypassEntry], removed: frozenset[BypassEntry]
) -> InterceptPolicy:
    networks = [entry for entry in added if isinstance(entry, IPv4Network | IPv6Network)]
    ports = [entry for entry in added if isinstance(entry, int)]
    return replace(
        policy,
        bypass=_combined(policy.bypass, networks, removed),
        bypass_ports=_combined(policy.bypass_ports, ports, removed),
    )


def _combined(
    listed: tuple[_Entry, ...], added: Iterable[_Entry], removed: frozenset[BypassEntry]
) -> tuple[_Entry, ...]:
    every = dict.fromkeys([*listed, *sorted(added, key=str)])
    return tuple(entry for entry in every if entry not in removed)


def _bypass_changes(before: InterceptPolicy, after: InterceptPolicy) -> Iterable[Iterable[Message]]:
    """Deletions before additions: the sets refuse a range that overlaps one still there."""
    for version in (4, 6):
        gone, new = difference(
            merge(network for network in before.bypass if network.version == version),
            merge(network for network in after.bypass if network.version == version),
        )
        yield messages.change_elements(after.table, bypass_set(version, gone), delete=True)
        yield messages.change_elements(after.table, bypass_set(version, new))
    old, fresh = set(before.bypass_ports), set(after.bypass_ports)
    for ports, delete in ((old - fresh, True), (fresh - old, False)):
        keys = tuple(port_key(port) for port in sorted(ports))
        yield messages.change_elements(after.table, Set(BYPASS_PORTS, "inet_service", keys=keys), delete=delete)
