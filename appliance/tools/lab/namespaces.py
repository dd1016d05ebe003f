"""Build client – gateway – origin out of network namespaces and veth pairs, by netlink only.

    client eth0 192.0.2.2 ── lan0 192.0.2.1 gateway 198.51.100.1 wan0 ── eth0 198.51.100.2–4 origin
           2001:db8:1::2          2001:db8:1::1     2001:db8:2::1             2001:db8:2::2–4

Names are unique per run, so several networks stand side by side. A network is a context manager: leaving it ends
every process that lives in its namespaces, whoever started it, and removes the namespaces, and with them every route,
rule and firewall table inside. Addresses are those of documentation (RFC 5737, RFC 3849).
"""

import contextlib
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, netns

from appliance.tools.lab import LabFailed

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
PREFIX = "weirlab"
CLIENT_V4, CLIENT_V6 = "192.0.2.2", "2001:db8:1::2"
GATEWAY_V4, GATEWAY_V6 = "192.0.2.1", "2001:db8:1::1"
OUTSIDE_V4, OUTSIDE_V6 = "198.51.100.1", "2001:db8:2::1"
ORIGIN_V4, ORIGIN_V6 = "198.51.100.2", "2001:db8:2::2"
BYPASSED_V4, BYPASSED_V6 = "198.51.100.3", "2001:db8:2::3"
SPARE_V4, SPARE_V6 = "198.51.100.4", "2001:db8:2::4"
LAN, WAN = "lan0", "wan0"

_IFA_F_NODAD = 0x02  # no duplicate address detection: addresses work at once (linux/if_addr.h)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One network namespace, named as ``ip netns`` names it."""

    name: str

    @property
    def path(self) -> Path:
        """Where the kernel keeps the namespace alive."""
        return NETNS_DIRECTORY / self.name

    def call(self, function: Callable[[], T]) -> T:
        """Run a function inside the namespace and return what it returns (or raise what it raises).

        It runs in a thread of its own, because a network namespace belongs to a thread (setns(2)); sockets that it
        makes stay in the namespace wherever they are used.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                netns.setns(self.name)
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter_and_call, name=f"inside {self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def connect(self, host: str, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection made from inside; the timeout is in seconds and stays on the socket."""
        return self.call(lambda: socket.create_connection((host, port), timeout=timeout))

    def listen(self, host: str, port: int) -> socket.socket:
        """A listening TCP socket inside; port 0 lets the kernel choose."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return self.call(lambda: socket.create_server((host, port), family=family, backlog=512))

    def command(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` inside; the process keeps its id (nsenter only replaces itself)."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def processes(self) -> list[int]:
        """Every process that lives in the namespace, whoever started it."""
        try:
            inside = self.path.stat()
        except FileNotFoundError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    theirs = (entry / "ns" / "net").stat()
                    if (theirs.st_dev, theirs.st_ino) == (inside.st_dev, inside.st_ino):
                        found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def end_processes(self, patience: float = 3.0) -> list[int]:
        """SIGTERM, then after ``patience`` seconds SIGKILL, to all that live here; returns who was still there."""
        pids = self.processes()
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.02)
        return pids

    def remove(self) -> None:
        """Take the namespace away, and everything of the kernel's that lives in it."""
        with contextlib.suppress(FileNotFoundError):
            netns.remove(self.name)


@dataclass(frozen=True, slots=True)
class Network:
    """The three namespaces of one run."""

    run: str
    client: Namespace
    gateway: Namespace
    origin: Namespace

    @property
    def namespaces(self) -> tuple[Namespace, Namespace, Namespace]:
        """All three, gateway first: it is the one to be stopped first."""
        return (self.gateway, self.client, self.origin)

    def take_down(self) -> list[int]:
        """End what still runs inside, remove the namespaces; returns the processes that had to be ended."""
        ended = [pid for namespace in self.namespaces for pid in namespace.end_processes()]
        for namespace in self.namespaces:
            namespace.remove()
        return ended


@contextlib.contextmanager
def network(prefix: str = PREFIX) -> Iterator[Network]:
    """Build the network, hand it over, take it down whatever happens. Needs root."""
    if os.geteuid() != 0:
        raise LabFailed("network namespaces need root", "run it with sudo", 4)
    run = f"{prefix}-{secrets.token_hex(3)}"
    built = Network(run, *(Namespace(f"{run}-{role}") for role in ("client", "gateway", "origin")))
    try:
        _build(built)
        yield built
    finally:
        built.take_down()


def leftovers(prefix: str = PREFIX) -> list[Namespace]:
    """Namespaces of labs that were killed before they could tidy up (or that still run)."""
    if not NETNS_DIRECTORY.is_dir():
        return []
    return [Namespace(entry.name) for entry in sorted(NETNS_DIRECTORY.glob(f"{prefix}-*"))]


def _build(built: Network) -> None:
    try:
        for namespace in built.namespaces:
            netns.create(namespace.name)
        with IPRoute(netns=built.gateway.name) as gateway:
            for inside, peer in ((LAN, built.client), (WAN, built.origin)):
                gateway.link("add", ifname=inside, kind="veth", peer={"ifname": "eth0", "net_ns_fd": peer.name})
    except OSError as error:
        raise LabFailed(
            f"the kernel refused a network namespace or a veth pair: {error}",
            "run it as root on a kernel with CONFIG_NET_NS and CONFIG_VETH (not in an unprivileged container)",
            4,
        ) from error
    for namespace in built.namespaces:
        namespace.call(_skip_duplicate_detection)
    _address(built.client, {"eth0": (f"{CLIENT_V4}/24", f"{CLIENT_V6}/64")}, (GATEWAY_V4, GATEWAY_V6))
    _address(
        built.gateway,
        {LAN: (f"{GATEWAY_V4}/24", f"{GATEWAY_V6}/64"), WAN: (f"{OUTSIDE_V4}/24", f"{OUTSIDE_V6}/64")},
        (),
    )
    outside = (ORIGIN_V4, BYPASSED_V4, SPARE_V4), (ORIGIN_V6, BYPASSED_V6, SPARE_V6)
    _address(
        built.origin,
        {"eth0": (*(f"{host}/24" for host in outside[0]), *(f"{host}/64" for host in outside[1]))},
        (OUTSIDE_V4, OUTSIDE_V6),
    )
    built.gateway.call(_forward)


def _address(namespace: Namespace, interfaces: dict[str, tuple[str, ...]], gateways: tuple[str, ...]) -> None:
    with IPRoute(netns=namespace.name) as ip:
        ip.link("set", index=1, state="up")
        for name, networks in interfaces.items():
            index = ip.link_lookup(ifname=name)[0]
            ip.link("set", index=index, state="up")
            for text in networks:
                address, _, length = text.partition("/")
                extra = {"flags": _IFA_F_NODAD} if ":" in address else {}
                ip.addr("add", index=index, address=address, prefixlen=int(length), **extra)
        for gateway in gateways:
            v6 = ":" in gateway
            family = socket.AF_INET6 if v6 else socket.AF_INET
            ip.route("add", dst="::/0" if v6 else "default", gateway=gateway, family=family)


# /proc/sys/net shows the namespace of the thread that opens it, so neither function needs a remount.


def _skip_duplicate_detection() -> None:
    # A gateway asks for neighbours from its link-local address, which would be tentative for the first two seconds.
    for key in Path("/proc/sys/net/ipv6/conf").glob("*/accept_dad"):
        key.write_text("0")


def _forward() -> None:
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", key).write_text("1")
