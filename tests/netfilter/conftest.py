"""A client, a gateway and an origin, each in a network namespace of its own; tests run inside the gateway.

client --- lan0 [gateway] wan0 --- origin
10.77.1.2       .1     10.77.2.1   .2 .3
fd77:1::2       ::1    fd77:2::1   ::2 ::3
"""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from appliance.model.endpoint import Endpoint
from appliance.netfilter.interception import Interception
from appliance.netfilter.namespace import Links, Namespace
from appliance.netfilter.policy import InterceptPolicy

IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
CLIENT = {4: "10.77.1.2", 6: "fd77:1::2"}
GATEWAY = {4: "10.77.1.1", 6: "fd77:1::1"}
ORIGIN = {4: "10.77.2.2", 6: "fd77:2::2"}
OTHER_ORIGIN = {4: "10.77.2.3", 6: "fd77:2::3"}
LISTEN = {4: "127.0.0.1", 6: "::1"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 15001


@dataclass
class Lab:
    """The three namespaces. ``client`` and ``origin`` are for making sockets in."""

    client: Namespace
    gateway: Namespace
    origin: Namespace
    servers: list[asyncio.Server] = field(default_factory=list)

    async def serve(self, port: int = 80) -> None:
        """An origin on all its addresses that says who it saw, and then echoes."""
        with self.origin.entered():
            sockets = [bound(version, host, port) for version, host in ((4, "0.0.0.0"), (6, "::"))]
        for sock in sockets:
            self.servers.append(await asyncio.start_server(_say_origin, sock=sock))

    async def listen(self, port: int = PORT, own_mark: int = 2) -> list[tuple[str, Endpoint, Endpoint]]:
        """Transparent listeners that say which destination they were given; returns the list they note it in."""
        seen: list[tuple[str, Endpoint, Endpoint]] = []

        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            target, peer = sock.getsockname()[:2], writer.get_extra_info("peername")[:2]
            seen.append(("intercepted", Endpoint(*target), Endpoint(*peer)))
            writer.write(f"intercepted {Endpoint(*target)}\n".encode())
            await _echo(reader, writer)

        for version, host in LISTEN.items():
            self.servers.append(await asyncio.start_server(say, sock=bound(version, host, port, transparent=True)))
        return seen

    async def relay(self, port: int = PORT, own_mark: int = 2) -> None:
        """A small engine: transparent listeners that dial the destination they were given, and copy both ways."""

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = writer.get_extra_info("socket").getsockname()[:2]
            sock = socket.socket(writer.get_extra_info("socket").family)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, own_mark)
            await asyncio.get_running_loop().sock_connect(sock, target)
            far_reader, far_writer = await asyncio.open_connection(sock=sock)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

        for version, host in LISTEN.items():
            self.servers.append(await asyncio.start_server(connect, sock=bound(version, host, port, transparent=True)))

    async def close(self) -> None:
        """Stop the servers that tests started."""
        for server in self.servers:
            server.close()
        self.servers.clear()

    async def hear(self, target: str, port: int = 80, *, where: Namespace | None = None, mark: int = 0) -> str:
        """Connect from the client (or elsewhere) and return the first line, or the name of what went wrong."""
        with (where or self.client).entered():
            sock = socket.socket(FAMILY[ip_address(target).version])
        sock.setblocking(False)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(5.0):
                await loop.sock_connect(sock, (target, port))
                return (await loop.sock_recv(sock, 200)).decode().split("\n")[0]
        except (TimeoutError, OSError) as error:
            return type(error).__name__
        finally:
            sock.close()

    @asynccontextmanager
    async def conversation(self, target: str, port: int = 80) -> AsyncIterator["Conversation"]:
        """A connection from the client that stays open."""
        with self.client.entered():
            sock = socket.socket(FAMILY[ip_address(target).version])
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (target, port))
        reader, writer = await asyncio.open_connection(sock=sock)
        talk = Conversation(reader, writer, (await reader.readline()).decode().strip())
        try:
            yield talk
        finally:
            writer.close()


@dataclass
class Conversation:
    """What was said first, and a way to go on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    first_line: str

    async def echo(self, text: str) -> str:
        self.writer.write(f"{text}\n".encode())
        async with asyncio.timeout(5.0):
            return (await self.reader.readline()).decode().strip()


def bound(version: int, host: str, port: int, *, transparent: bool = False) -> socket.socket:
    """A listening socket in the namespace of the calling thread."""
    sock = socket.socket(FAMILY[version])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if transparent:
        level, option = (socket.SOL_IP, IP_TRANSPARENT) if version == 4 else (socket.IPPROTO_IPV6, IPV6_TRANSPARENT)
        sock.setsockopt(level, option, 1)
    sock.bind((host, port))
    sock.listen(1024)
    sock.setblocking(False)
    return sock


def look(*command: str) -> str:
    """What an administrator's command prints, in the namespace of the calling thread."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def do(command: str) -> None:
    """What an administrator (or a saboteur) types."""
    subprocess.run(command.split(), check=True, capture_output=True)


def switch(name: str, value: str) -> None:
    Path("/proc/sys", name).write_text(value)


def kernel_state() -> dict[str, object]:
    """Everything that an interception could leave behind, as the administrator's own commands show it."""
    switches = {}
    for version in (4, 6):
        for path in Path(f"/proc/sys/net/ipv{version}/conf").glob("*/*"):
            if path.name in ("forwarding", "send_redirects", "accept_ra", "rp_filter", "src_valid_mark"):
                switches[str(path)] = path.read_text()
    return {
        "ruleset": look("nft", "list", "ruleset"),
        "rules": look("ip", "rule") + look("ip", "-6", "rule"),
        "routes": look("ip", "route", "show", "table", "all") + look("ip", "-6", "route", "show", "table", "all"),
        "links": look("ip", "-br", "link"),
        "forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "switches": switches,
    }


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The namespaces, wired up, forwarding still off; the test's thread is inside the gateway."""
    if os.geteuid() != 0:
        pytest.fail("these tests make network namespaces: run them as root (sudo ./run test)")
    made = Lab(Namespace(), Namespace(), Namespace())
    with made.gateway.entered():
        links = Links()
        links.add_veth("lan0", "eth0", made.client)
        links.add_veth("wan0", "eth0", made.origin)
        for name, addresses in (("lan0", ("10.77.1.1/24", "fd77:1::1/64")), ("wan0", ("10.77.2.1/24", "fd77:2::1/64"))):
            _wire(links, name, addresses)
        links.close()
        ends = (
            (made.client, ("10.77.1.2/24", "fd77:1::2/64"), GATEWAY),
            (
                made.origin,
                ("10.77.2.2/24", "10.77.2.3/24", "fd77:2::2/64", "fd77:2::3/64"),
                {4: "10.77.2.1", 6: "fd77:2::1"},
            ),
        )
        for end, addresses, gateways in ends:
            with end.entered():
                links = Links()
                _wire(links, "eth0", addresses)
                for gateway in gateways.values():
                    links.add_default_route(ip_address(gateway))
                links.close()
        yield made
    for each in (made.client, made.gateway, made.origin):
        each.close()


@pytest.fixture
async def interception(lab: Lab) -> AsyncIterator[Interception]:
    """An interception of the lab's gateway that is not up yet."""
    async with Interception() as made:
        yield made
    await lab.close()


@pytest.fixture
def policy() -> InterceptPolicy:
    return InterceptPolicy(interfaces=("lan0",))


def _wire(links: Links, name: str, addresses: tuple[str, ...]) -> None:
    links.set_up(name)
    for address in addresses:
        links.add_address(name, ip_interface(address))


async def _say_origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"origin saw {writer.get_extra_info('peername')[0]}\n".encode())
    await _echo(reader, writer)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
