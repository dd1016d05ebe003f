"""Send a real connection along the intercepted path and see where it ends.

A client and an origin are made in two nameless namespaces, one veth each into the gateway. The client's interface has
the reserved name that every table of ours intercepts, so the table in force is proven as it is. The origin says whose
address it saw; the table's counter says whether the packet was handed to the listener.
"""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_interface

from appliance.netfilter import sysctl
from appliance.netfilter.batch import Nftables
from appliance.netfilter.interception import Interception
from appliance.netfilter.namespace import Links, Namespace, dont_wait_for_addresses
from appliance.netfilter.policy import PROBE_INTERFACE, InterceptPolicy
from appliance.netfilter.ruleset import listener_rule

PROBE_PORT = 7
_ORIGIN_INTERFACE = "weir-origin"
_NEAR = "eth0"
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TRANSPARENT = {4: (socket.SOL_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}  # IP_TRANSPARENT, IPV6_TRANSPARENT

# Benchmarking ranges (RFC 2544, RFC 5180): never routed on the Internet, and nobody's private network.
_CLIENT_LINK = {4: ("198.19.255.1/30", "198.19.255.2/30"), 6: ("2001:2:0:ff01::1/64", "2001:2:0:ff01::2/64")}
_ORIGIN_LINK = {4: ("198.19.255.5/30", "198.19.255.6/30"), 6: ("2001:2:0:ff02::1/64", "2001:2:0:ff02::2/64")}


class Outcome(Enum):
    """What became of the probe's connection."""

    RELAYED = "reached the original destination through the listener"
    ANSWERED = "was taken by the listener, but did not arrive at its original destination"
    STRAIGHT = "went straight to the server, past the listener"
    REFUSED = "was refused"
    VANISHED = "vanished after the ruleset had handed it to the listener"
    LOST = "was lost before the ruleset saw it, or was not forwarded"


@dataclass(frozen=True, slots=True)
class Trial:
    """One probe: what happened, which address the origin saw (None: nothing), and whether plain UDP was forwarded."""

    outcome: Outcome
    origin_saw: str | None
    forwarded: bool


def origin_address(version: int) -> str:
    """The probe's destination."""
    return str(ip_interface(_ORIGIN_LINK[version][1]).ip)


async def try_live(policy: InterceptPolicy, timeout: float = 1.5) -> dict[int, Trial]:
    """Probe the table in force in this namespace, one family after the other; ``timeout`` in seconds for each.

    Needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Raises ``Refused`` (EEXIST) when another probe is under way.
    """
    nftables = Nftables()
    try:
        with _course(like=policy.interfaces[0] if policy.interfaces else "default") as course:
            return {
                version: await course.run(version, policy.table, nftables, timeout) for version, _ in policy.listeners
            }
    finally:
        nftables.close()


async def try_sandbox(policy: InterceptPolicy, timeout: float = 1.5) -> dict[int, str]:
    """Whether this kernel can do it at all: the policy's table in a namespace of its own, with a listener of ours.

    Returns the destination that the listener saw for each family; it is right when it is ``origin_address``.
    """
    gateway = Namespace()
    try:
        with gateway.entered():
            interception = Interception()
            sockets = {
                version: _listening(version, at.host, at.port, transparent=True) for version, at in policy.listeners
            }
        try:
            async with interception:
                await interception.up(_sandboxed(policy))
                with _course(gateway=gateway) as course:
                    return {
                        version: await course.destination(sock, version, timeout) for version, sock in sockets.items()
                    }
        finally:
            for sock in sockets.values():
                sock.close()
    finally:
        gateway.close()


class _Course:
    """The client's and the origin's namespaces, wired to the gateway."""

    def __init__(self, client: Namespace, origin: Namespace) -> None:
        self.client = client
        self.origin = origin

    async def run(self, version: int, table: str, nftables: Nftables, timeout: float) -> Trial:
        """Connect, and put together what client, origin and table saw."""
        saw: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        secret = secrets.token_hex(8).encode()

        async def arrive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                said = await reader.readexactly(len(secret))
                if said == secret and not saw.done():
                    saw.set_result(str(writer.get_extra_info("peername")[0]))
            writer.close()

        with self.origin.entered():
            sock = _listening(version, origin_address(version), PROBE_PORT)
        before = handed_over(nftables, table, version)
        async with await asyncio.start_server(arrive, sock=sock):
            error = await self._knock(version, secret, saw, timeout)
        was_handed = handed_over(nftables, table, version) > before
        seen = saw.result() if saw.done() and not saw.cancelled() else None
        forwarded = await self._forwarded(version, secret, timeout / 3)
        return Trial(_outcome(error, seen, was_handed=was_handed), seen, forwarded)

    async def destination(self, sock: socket.socket, version: int, timeout: float) -> str:
        """Connect and return the destination that a transparent listener sees, or what went wrong."""
        loop = asyncio.get_running_loop()
        client = self._client_socket(version)
        try:
            async with asyncio.timeout(timeout):
                connecting = asyncio.ensure_future(loop.sock_connect(client, (origin_address(version), PROBE_PORT)))
                try:
                    accepted, _ = await loop.sock_accept(sock)
                    await connecting
                finally:
                    connecting.cancel()
        except (OSError, TimeoutError) as error:
            return f"nothing ({type(error).__name__})"
        finally:
            client.close()
        with accepted:
            return str(accepted.getsockname()[0])

    async def _knock(self, version: int, secret: bytes, saw: "asyncio.Future[str]", timeout: float) -> OSError | None:
        loop = asyncio.get_running_loop()
        with self._client_socket(version) as client:
            try:
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(client, (origin_address(version), PROBE_PORT))
                    await loop.sock_sendall(client, secret)
            except OSError as error:  # TimeoutError is one of them
                return error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(saw), timeout)
        return None

    async def _forwarded(self, version: int, secret: bytes, timeout: float) -> bool:
        """Whether what is not intercepted gets through: a datagram, here."""
        loop = asyncio.get_running_loop()
        with self.origin.entered():
            origin = socket.socket(_FAMILY[version], socket.SOCK_DGRAM)
        with self.client.entered():
            client = socket.socket(_FAMILY[version], socket.SOCK_DGRAM)
        with origin, client:
            for sock in (origin, client):
                sock.setblocking(False)
            origin.bind((origin_address(version), PROBE_PORT))
            try:
                async with asyncio.timeout(timeout):
                    await loop.sock_connect(client, (origin_address(version), PROBE_PORT))
                    await loop.sock_sendall(client, secret)
                    return await loop.sock_recv(origin, len(secret)) == secret
            except OSError:
                return False

    def _client_socket(self, version: int) -> socket.socket:
        with self.client.entered():
            client = socket.socket(_FAMILY[version])
        client.setblocking(False)
        return client


def handed_over(nftables: Nftables, table: str, version: int) -> int:
    """How many connections the table has handed to this family's listener so far."""
    wanted = listener_rule(version)
    return sum(packets for _, comment, packets in nftables.rules(table) if comment == wanted)


def _outcome(error: OSError | None, origin_saw: str | None, *, was_handed: bool) -> Outcome:
    if origin_saw is not None:
        return Outcome.RELAYED if was_handed else Outcome.STRAIGHT
    if error is None:
        return Outcome.ANSWERED
    if isinstance(error, ConnectionRefusedError):
        return Outcome.REFUSED
    return Outcome.VANISHED if was_handed else Outcome.LOST


@contextmanager
def _course(*, gateway: Namespace | None = None, like: str = "default") -> Iterator[_Course]:
    """Wire a client and an origin to the gateway (None: the namespace of the calling thread), and take them away again.

    ``like``: the interface that the client's stands in for.
    """
    inside = gateway.entered if gateway else contextlib.nullcontext
    client, origin = Namespace(), Namespace()
    try:
        with inside():
            _wire(PROBE_INTERFACE, client, _CLIENT_LINK, like)
        try:
            with inside():
                _wire(_ORIGIN_INTERFACE, origin, _ORIGIN_LINK, like)
            yield _Course(client, origin)
        finally:
            with inside():
                for name in (PROBE_INTERFACE, _ORIGIN_INTERFACE):
                    _unwire(name)
    finally:
        client.close()
        origin.close()


def _wire(name: str, far: Namespace, addresses: dict[int, tuple[str, str]], like: str) -> None:
    links = Links()
    try:
        links.add_veth(name, _NEAR, far)
        dont_wait_for_addresses(name)
        # The same switches decide over the probe's packets as over those of real clients.
        for version, switches in ((4, ("forwarding", "rp_filter", "src_valid_mark")), (6, ("forwarding",))):
            for switch in switches:
                value = sysctl.read(f"net/ipv{version}/conf/{like}/{switch}")
                if value is not None:
                    sysctl.write(f"net/ipv{version}/conf/{name}/{switch}", value)
        links.set_up(name)
        for near_address, _ in addresses.values():
            links.add_address(name, ip_interface(near_address))
    finally:
        links.close()
    with far.entered():
        links = Links()
        links.set_up(_NEAR)
        for near_address, far_address in addresses.values():
            links.add_address(_NEAR, ip_interface(far_address))
            links.add_default_route(ip_interface(near_address).ip)
        links.close()


def _unwire(name: str) -> None:
    links = Links()
    if name in links.all():
        links.remove(name)
    links.close()


def _sandboxed(policy: InterceptPolicy) -> InterceptPolicy:
    return replace(policy, interfaces=(PROBE_INTERFACE,), own_traffic=False, manage_sysctls=False)


def _listening(version: int, host: str, port: int, *, transparent: bool = False) -> socket.socket:
    sock = socket.socket(_FAMILY[version])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if transparent:
        sock.setsockopt(*_TRANSPARENT[version], 1)
    sock.bind((host, port))
    sock.listen()
    sock.setblocking(False)
    return sock
