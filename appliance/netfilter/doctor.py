"""Prove the intercepted path hop by hop, and name the broken hop with the command that mends it.

The static checks read what the kernel has, in the order in which a packet meets it; the probes send real connections.
Nothing is changed but for two interfaces and two namespaces that exist while the probe runs.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.netfilter import sysctl
from appliance.netfilter.batch import Nftables
from appliance.netfilter.errors import NEEDS_NET_ADMIN, NetfilterError
from appliance.netfilter.listening import listeners
from appliance.netfilter.namespace import Link, Links
from appliance.netfilter.netlink import Refused
from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.probe import Outcome, Trial, origin_address, try_live, try_sandbox
from appliance.netfilter.routing import Routing, wanted
from appliance.netfilter.ruleset import OWNER, build

START = "start Weir (systemctl start weir, or weir run --config FILE)"
RESTART = "restart Weir (systemctl restart weir): it replaces the whole table"

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
_NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """One hop: its name, whether it holds, what was found, and (when it does not hold) what to type."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


async def examine(policy: InterceptPolicy, *, probe: bool = True, patience: float = 1.5) -> list[Finding]:
    """Examine the network namespace of the calling thread.

    ``probe``: also send connections; ``patience`` is how long, in seconds, one of them may take.

    Without privileges only that is found. Never raises for what it examines.
    """
    privileges = _privileges()
    if not privileges.ok:
        return [privileges]
    findings = [privileges, *_interfaces(policy), *_forwarding(policy), *_reverse_path(policy), *_bridge(policy)]
    findings += [*_syn_cookies(policy), *_ruleset(policy), *_routing(policy), *_listeners(policy), _conntrack()]
    if probe:
        findings += await _kernel(policy, patience)
        findings += await _live(policy, findings, patience)
    return findings


def _privileges() -> Finding:
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return Finding("privileges", False, f"missing: {', '.join(missing)}", f"sudo weir doctor ({NEEDS_NET_ADMIN})")
    return Finding("privileges", True, "may change this network namespace")


def _interfaces(policy: InterceptPolicy) -> Iterator[Finding]:
    links = _links()
    for name in ("lo", *policy.interfaces):  # marked packets are delivered by way of lo
        title = f"interface {name}"
        if name not in links:
            yield Finding(
                title, False, "does not exist", "correct proxy.transparent.interfaces (ip -br link lists them)"
            )
        elif not links[name].up:
            yield Finding(title, False, "is down", f"ip link set {name} up")
        else:
            yield Finding(title, True, "is up")


def _forwarding(policy: InterceptPolicy) -> Iterator[Finding]:
    for version, _ in policy.listeners:
        switches = [sysctl.IPV4_FORWARD if version == 4 else sysctl.IPV6_FORWARD]
        switches += [f"net/ipv{version}/conf/{name}/forwarding" for name in policy.interfaces]
        off = [name for name in switches if sysctl.read(name) == "0"]
        if off:
            fix = "; ".join(f"sysctl -w {_dotted(name)}=1" for name in off)
            yield Finding(f"forwarding IPv{version}", False, f"off: {', '.join(map(_dotted, off))}", fix)
        else:
            yield Finding(f"forwarding IPv{version}", True, "on")


def _reverse_path(policy: InterceptPolicy) -> Iterator[Finding]:
    """IPv4 only: the filter looks the client up with the packet's mark and finds the local route, so it drops."""
    if policy.listen4 is None:
        return
    for name in policy.interfaces:
        filters = max(_number(f"net/ipv4/conf/{each}/rp_filter") for each in ("all", name))
        marked = [each for each in ("all", name) if _number(f"net/ipv4/conf/{each}/src_valid_mark")]
        if filters and marked:
            fix = "; ".join(f"sysctl -w net.ipv4.conf.{each}.src_valid_mark=0" for each in marked)
            detail = f"rp_filter={filters} with src_valid_mark=1 drops every intercepted IPv4 packet"
            yield Finding(f"reverse path filter {name}", False, detail, fix)
        else:
            yield Finding(
                f"reverse path filter {name}", True, f"rp_filter={filters}, src_valid_mark={int(bool(marked))}"
            )


def _syn_cookies(policy: InterceptPolicy) -> Iterator[Finding]:
    """A fail-open table diverts SYNs; with cookies for every SYN, no socket is there yet when the ACK comes."""
    if policy.on_failure == "open" and _number("net/ipv4/tcp_syncookies") > 1:
        detail = "net.ipv4.tcp_syncookies=2 answers every SYN with a cookie: intercepted connections are reset"
        yield Finding("SYN cookies", False, detail, "sysctl -w net.ipv4.tcp_syncookies=1")
    else:
        yield Finding("SYN cookies", True, "not forced")


def _bridge(policy: InterceptPolicy) -> Iterator[Finding]:
    """With br_netfilter, bridged packets pass our hook inside the bridge, where TPROXY's work is undone in ip_rcv()."""
    links = _links()
    bridged = [name for name in policy.interfaces if name in links and links[name].bridged]
    calls = [f"net/bridge/bridge-nf-call-{tool}" for tool in ("iptables", "ip6tables")]
    on = [name for name in calls if _number(name)]
    if on and bridged:
        fix = "; ".join(f"sysctl -w {_dotted(name)}=0" for name in on)
        detail = f"{', '.join(map(_dotted, on))} is on and {', '.join(bridged)} is bridged: TPROXY is undone"
        yield Finding("bridge netfilter", False, detail, fix)
    else:
        yield Finding("bridge netfilter", True, "on, but no client interface is bridged" if on else "off")


def _ruleset(policy: InterceptPolicy) -> Iterator[Finding]:
    title = f"table inet {policy.table}"
    nftables = Nftables()
    try:
        state = nftables.table(policy.table)
        if state is None:
            yield Finding(title, False, "is not there: nothing is intercepted", START)
            return
        expected = {(chain.name, rule.comment) for chain in build(policy).chains for rule in chain.rules}
        missing = sorted(expected - {(chain, comment) for chain, comment, _ in nftables.rules(policy.table)})
        interfaces = {key.rstrip(b"\0").decode() for key in nftables.keys(policy.table, "interfaces")}
    finally:
        nftables.close()
    absent = [name for name in policy.interfaces if name not in interfaces]
    if missing:
        named = ", ".join(f"{comment!r} in chain {chain}" for chain, comment in missing)
        yield Finding(title, False, f"lacks {named}", RESTART)
    elif absent:
        yield Finding(title, False, f"does not intercept {', '.join(absent)}", "weir reload, or " + RESTART)
    elif state.owner is None and policy.on_failure == "open":
        yield Finding(title, False, "has no owner: left behind, or loaded by hand", RESTART)
    else:
        owner = f", owned by netlink port {state.owner}" if state.flags & OWNER else ""
        yield Finding(title, True, f"is in force{owner}")


def _routing(policy: InterceptPolicy) -> Iterator[Finding]:
    routing = Routing()
    try:
        rules, routes = routing.rules(foreign=True), routing.routes(foreign=True)
        needed_rules, needed_routes = wanted(policy, routing.loopback)
    finally:
        routing.close()
    for rule in needed_rules:
        ip = "ip" if rule.version == 4 else "ip -6"
        command = f"{ip} rule add fwmark {rule.mark:#x}/{rule.mask:#x} lookup {rule.table} priority {rule.priority}"
        # The same rule under another priority does as well.
        there = [found for found in rules if found._replace(priority=0) == rule._replace(priority=0)]
        detail = f"priority {there[0].priority}" if there else "missing: marked packets vanish"
        yield Finding(f"routing rule IPv{rule.version}", bool(there), detail, "" if there else command)
    for route in needed_routes:
        ip = "ip" if route.version == 4 else "ip -6"
        command = f"{ip} route add local default dev lo table {route.table}"
        found = route in routes
        detail = f"local default dev lo table {route.table}" if found else "missing: marked packets vanish"
        yield Finding(f"local route IPv{route.version}", found, detail, "" if found else command)


def _listeners(policy: InterceptPolicy) -> Iterator[Finding]:
    for version, endpoint in policy.listeners:
        title = f"listener IPv{version}"
        there = listeners(endpoint)
        if there is None:
            yield Finding(title, True, "unknown: this kernel has no inet_diag")
        elif not there:
            yield Finding(title, False, f"nobody listens on {endpoint}", START)
        elif any(each.transparent is False for each in there):
            detail = f"{endpoint} is not transparent, so TPROXY cannot deliver to it"
            yield Finding(title, False, detail, "give the relays CAP_NET_RAW, or stop the other program on that port")
        else:
            yield Finding(title, True, f"{len(there)} on {endpoint}, transparent")


def _conntrack() -> Finding:
    count, most = _number("net/netfilter/nf_conntrack_count"), _number("net/netfilter/nf_conntrack_max")
    if not most:
        return Finding("conntrack", True, "not loaded; not needed for interception")
    if count > _NEARLY_FULL * most:
        fix = f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}"
        return Finding("conntrack", False, f"{count} of {most} entries in use: new connections are dropped soon", fix)
    return Finding("conntrack", True, f"{count} of {most} entries in use")


async def _kernel(policy: InterceptPolicy, patience: float) -> list[Finding]:
    """Whether this kernel can do what the policy asks, tried in a namespace of its own."""
    fix = "modprobe -a nft_tproxy nft_socket nft_fib_inet nf_tables"
    try:
        seen = await try_sandbox(policy, patience)
    except (NetfilterError, OSError) as error:
        return [Finding("kernel", False, f"cannot do it, even in an empty namespace: {error}", fix)]
    wrong = [f"IPv{version}: the listener saw {at}" for version, at in seen.items() if at != origin_address(version)]
    if wrong:
        return [Finding("kernel", False, f"in an empty namespace, {'; '.join(wrong)}", fix)]
    return [Finding("kernel", True, "intercepts in an empty namespace, original destinations kept")]


async def _live(policy: InterceptPolicy, so_far: list[Finding], patience: float) -> list[Finding]:
    """Real connections through the table in force."""
    if any(finding.name == f"table inet {policy.table}" and finding.detail.startswith("is not") for finding in so_far):
        return [Finding("live path", False, "not tried: no table is in force", START)]
    try:
        trials = await try_live(policy, patience)
    except (NetfilterError, OSError) as error:
        if isinstance(error, Refused) and error.errno == errno.EEXIST:
            return [
                Finding("live path", False, "not tried: another doctor's probe is under way", "wait, and try again")
            ]
        return [Finding("live path", False, f"not tried: {error}", "modprobe veth")]
    broken = [finding for finding in so_far if not finding.ok]
    return [finding for version, trial in trials.items() for finding in _judge(policy, version, trial, broken)]


def _judge(policy: InterceptPolicy, version: int, trial: Trial, broken: list[Finding]) -> Iterator[Finding]:
    title = f"live path IPv{version}"
    if trial.outcome is Outcome.RELAYED:
        yield Finding(title, True, f"a connection {trial.outcome.value}, which saw {trial.origin_saw}")
    else:
        cause, fix = _cause(trial.outcome, policy)
        other = "IPv6" if version == 4 else "IPv4"
        suspects = [finding for finding in broken if other not in finding.name]
        if suspects:
            cause = "because of " + ", ".join(finding.name for finding in suspects)
            fix = "; ".join(finding.fix for finding in suspects)
        yield Finding(title, False, f"a connection {trial.outcome.value}: {cause}", fix)
    forward = f"forwarded path IPv{version}"
    if trial.forwarded:
        yield Finding(forward, True, "what is not intercepted gets through")
    else:
        fix = f"sysctl -w net.ipv{version}.{'ip_forward' if version == 4 else 'conf.all.forwarding'}=1"
        if not any(finding.name == f"forwarding IPv{version}" for finding in broken):
            fix = "look for drops at hook forward (Docker sets policy drop): nft list ruleset; iptables -S FORWARD"
        yield Finding(forward, False, "what is not intercepted does not get through", fix)


def _cause(outcome: Outcome, policy: InterceptPolicy) -> tuple[str, str]:
    """Why a probe fails, and what to type, when every static check holds."""
    match outcome:
        case Outcome.ANSWERED:
            return "the listener took it, but could not connect onward", "see Weir's log"
        case Outcome.STRAIGHT:
            return (
                "the ruleset did not hand it over: nobody listens, or another table accepted or marked it first",
                "look for chains of other tables at prerouting: nft list ruleset",
            )
        case Outcome.REFUSED:
            return "nobody listens and the policy fails closed, or another firewall rejects", START
        case Outcome.VANISHED:
            # Intercepted packets are delivered locally, so a firewall that protects the gateway itself sees them.
            allow = f"meta mark and {policy.mask:#x} == {policy.mark:#x} accept"
            return (
                "another firewall drops what is delivered to this machine (ufw, firewalld, a chain at hook input)",
                f"let marked packets in, at the top of its input chain: nft insert rule inet TABLE CHAIN {allow}",
            )
        case _:
            return (
                "another firewall drops it before our table or at hook forward",
                "look for drops at prerouting and forward: nft list ruleset",
            )


def _links() -> dict[str, Link]:
    links = Links()
    try:
        return links.all()
    finally:
        links.close()


def _number(name: str) -> int:
    value = sysctl.read(name)
    return int(value) if value is not None and value.isdigit() else 0


def _dotted(name: str) -> str:
    return name.replace("/", ".")
