"""Reach a server: from a name or an address to a connected socket, or to a reason why not.

Addresses take a short way (one socket, one non-blocking connect, no task). Names are resolved and raced as RFC 8305
says: families interleaved, a new attempt every ``attempt_delay``, the first to connect wins, the others are closed.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any

from appliance.engine.settings import DialSettings
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

SO_MARK = 36  # asm-generic/socket.h; Python's socket module names it only from 3.13 on

Address = tuple[int, tuple[Any, ...]]  # family and what connect() takes

ENDS = {
    errno.ECONNREFUSED: End.REFUSED,
    errno.ECONNRESET: End.REFUSED,
    errno.ETIMEDOUT: End.CONNECT_TIMEOUT,
    errno.EHOSTUNREACH: End.UNREACHABLE,
    errno.EHOSTDOWN: End.UNREACHABLE,
    errno.ENETUNREACH: End.UNREACHABLE,
    errno.ENETDOWN: End.UNREACHABLE,
    errno.ENONET: End.UNREACHABLE,
    errno.EAFNOSUPPORT: End.UNREACHABLE,
    errno.EINVAL: End.UNREACHABLE,
    # A local policy: an nft drop in output, a prohibit route.
    errno.EPERM: End.DENIED,
    errno.EACCES: End.DENIED,
    # Ours ran out: descriptors, ephemeral ports, memory.
    errno.EMFILE: End.LIMITED,
    errno.ENFILE: End.LIMITED,
    errno.EADDRNOTAVAIL: End.LIMITED,
    errno.ENOBUFS: End.LIMITED,
    errno.ENOMEM: End.LIMITED,
}


class DialFailed(Exception):
    """The server was not reached. ``end`` is why, ``message`` says it in words, ``errno`` is 0 when there is none."""

    def __init__(self, end: End, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.end = end
        self.message = message
        self.errno = number


async def dial(server: Endpoint, settings: DialSettings) -> socket.socket:
    """A connected, non-blocking TCP socket to ``server``, marked as our own traffic and with TCP_NODELAY.

    Raises ``DialFailed``. Our own listeners are refused (``End.DENIED``): a proxy that dials itself loops until it
    runs out of something.
    """
    address = numeric(server)
    if address is not None:
        if _is_own(address, settings):
            raise _own_refused(server)
        return await _connect(address, server, settings, settings.connect_timeout)
    return await _dial_name(server, settings)


def numeric(server: Endpoint) -> Address | None:
    """The canonical socket address of an IP literal, None for a name. IPv4-mapped addresses become IPv4."""
    host, port = server
    try:
        if ":" not in host:
            socket.inet_pton(socket.AF_INET, host)
            return socket.AF_INET, (host, port)
        bare, _, scope = host.partition("%")
        packed = socket.inet_pton(socket.AF_INET6, bare)
        if packed.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
            return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, packed[12:]), port)
        return socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, packed), port, 0, _scope_id(scope) if scope else 0)
    except (OSError, ValueError):
        return None


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """The same addresses with families taking turns, the preferred family first (RFC 8305 §4)."""
    if not addresses:
        return []
    first = addresses[0][0]
    same = [address for address in addresses if address[0] == first]
    other = [address for address in addresses if address[0] != first]
    return [address for address in chain.from_iterable(zip_longest(same, other)) if address is not None]


async def _dial_name(server: Endpoint, settings: DialSettings) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.connect_timeout
    addresses = await _resolve(server, settings)
    foreign = [address for address in addresses if not _is_own(address, settings)]
    if not foreign:
        raise _own_refused(server)
    if len(foreign) == 1:
        return await _connect(foreign[0], server, settings, deadline - loop.time())
    return await _race(interleaved(foreign), server, settings, deadline)


async def _resolve(server: Endpoint, settings: DialSettings) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(settings.resolve_timeout):
            found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise DialFailed(
            End.NAME_NOT_FOUND, f"{server.host}: no answer from the resolver in {settings.resolve_timeout:g} s"
        ) from None
    except (OSError, UnicodeError, ValueError) as error:
        # gaierror is an OSError; labels that IDNA refuses are a UnicodeError, a NUL is a ValueError.
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DialFailed(End.NAME_NOT_FOUND, f"{server.host}: {text}") from error
    addresses = {_unmapped(family, address): None for family, _, _, _, address in found}
    if not addresses:
        raise DialFailed(End.NAME_NOT_FOUND, f"{server.host}: the resolver knows no address")
    return list(addresses)


def _unmapped(family: int, address: tuple[Any, ...]) -> Address:
    """A resolver's answer, with IPv4-mapped addresses as the IPv4 that they are."""
    if family == socket.AF_INET6 and address[0].startswith("::ffff:"):
        return numeric(Endpoint(address[0], address[1])) or (family, address)
    return family, address


async def _race(
    addresses: Sequence[Address], server: Endpoint, settings: DialSettings, deadline: float
) -> socket.socket:
    """RFC 8305 §5. Failures start the next attempt at once; the last failure is told when all have failed."""
    loop = asyncio.get_running_loop()
    waiting: Iterator[Address] = iter(addresses)
    running: set[asyncio.Task[socket.socket]] = set()
    failure = DialFailed(End.CONNECT_TIMEOUT, f"{server}: no answer in {settings.connect_timeout:g} s")
    more = True
    try:
        while True:
            address = next(waiting, None) if more else None
            more = address is not None
            if address is not None:
                attempt = _connect(address, server, settings, deadline - loop.time())
                running.add(loop.create_task(attempt, name=f"dial {server} at {address[0]}"))
            if not running:
                raise failure
            done, running = await asyncio.wait(
                running,
                timeout=settings.attempt_delay if more else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner, failed = _sort_out(done)
            if winner is not None:
                return winner
            failure = failed or failure
    finally:
        await _stop(running)


def _sort_out(done: set[asyncio.Task[socket.socket]]) -> tuple[socket.socket | None, DialFailed | None]:
    """The first connected socket among finished attempts (others are closed), and the last failure."""
    winner: socket.socket | None = None
    failure: DialFailed | None = None
    for task in done:
        error = task.exception()
        if isinstance(error, DialFailed):
            failure = error
        elif error is not None:
            raise error
        elif winner is None:
            winner = task.result()
        else:
            task.result().close()
    return winner, failure


async def _stop(running: set[asyncio.Task[socket.socket]]) -> None:
    """End the attempts that lost; one that connected in the same moment is closed."""
    for task in running:
        task.cancel()
    for result in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(result, socket.socket):
            result.close()


async def _connect(address: Address, server: Endpoint, settings: DialSettings, timeout: float) -> socket.socket:
    """One attempt. ``timeout`` is a timer and a future rather than a task: this runs for every connection."""
    family, where = address
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise _failed(server, error.errno or 0) from error
    try:
        if settings.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, settings.mark)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.connect_ex(where)
        if number == errno.EINPROGRESS:
            number = await _finished(sock, timeout)
            if number == errno.EINPROGRESS:
                raise DialFailed(End.CONNECT_TIMEOUT, f"{server}: no answer in {settings.connect_timeout:g} s")
        if number:
            raise _failed(server, number)
    except OSError as error:
        sock.close()
        raise _failed(server, error.errno or 0) from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _finished(sock: socket.socket, timeout: float) -> int:
    """Wait for a connect under way: its errno, 0 when connected, EINPROGRESS when time is up."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    timer = loop.call_later(max(timeout, 0.0), _set, ready, False)
    loop.add_writer(sock, _set, ready, True)
    try:
        if not await ready:
            return errno.EINPROGRESS
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    finally:
        timer.cancel()
        loop.remove_writer(sock)


def _set(future: "asyncio.Future[bool]", value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _failed(server: Endpoint, number: int) -> DialFailed:
    end = ENDS.get(number, End.UNREACHABLE)
    return DialFailed(end, f"{server}: {os.strerror(number).lower()}", number)


def _own_refused(server: Endpoint) -> DialFailed:
    return DialFailed(End.DENIED, f"{server} is Weir itself")


def _scope_id(scope: str) -> int:
    return int(scope) if scope.isdigit() else socket.if_nametoindex(scope)


def _is_own(address: Address, settings: DialSettings) -> bool:
    hosts = _own_hosts(settings.own_addresses).get(address[1][1])
    return hosts is not None and _reaches(address, hosts)


@lru_cache(maxsize=8)
def _own_hosts(own: frozenset[Endpoint]) -> dict[int, frozenset[str]]:
    """Our listeners' hosts by port, canonical; nearly every dial is answered by the port alone."""
    by_port: dict[int, set[str]] = {}
    for endpoint in own:
        address = numeric(endpoint)
        by_port.setdefault(endpoint.port, set()).add(address[1][0] if address else endpoint.host)
    return {port: frozenset(hosts) for port, hosts in by_port.items()}


def _reaches(address: Address, hosts: frozenset[str]) -> bool:
    """Whether a connect to this address ends at one of ``hosts`` on this machine."""
    family, where = address
    host = where[0]
    if host in hosts:
        return True
    if host in ("0.0.0.0", "::"):
        # Linux connects the unspecified address to loopback.
        return True
    # A v6 wildcard socket takes IPv4 too unless IPV6_V6ONLY is set: be careful rather than clever.
    wildcard = "::" in hosts or (family == socket.AF_INET and "0.0.0.0" in hosts)
    return wildcard and _is_local(address)


def _is_local(address: Address) -> bool:
    """Whether the address belongs to this host (this network namespace): only then can a socket be bound to it."""
    family, where = address
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((where[0], 0, *where[2:]))
        except OSError:
            return False
    return True
