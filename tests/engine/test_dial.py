import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.dial import Address, DialFailed, dial, interleaved, numeric
from appliance.engine.settings import DialSettings
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint

SETTINGS = DialSettings(connect_timeout=2.0, attempt_delay=0.05, resolve_timeout=2.0)


@contextmanager
def listening(host: str = "127.0.0.1", backlog: int = 8) -> Iterator[Endpoint]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        sock.listen(backlog)
        yield Endpoint(host, sock.getsockname()[1])


@contextmanager
def silent() -> Iterator[Endpoint]:
    """A listener whose queue is full: further SYNs get no answer."""
    with listening(backlog=0) as server:
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(server)
            fillers.append(filler)
        yield server
        for filler in fillers:
            filler.close()


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch):
    """Make a name resolve to these addresses, in this order."""

    def answer(*addresses: Endpoint) -> None:
        found = []
        for host, port in addresses:
            family, where = numeric(Endpoint(host, port)) or pytest.fail("literals only")
            found.append((family, socket.SOCK_STREAM, 6, "", where))

        async def getaddrinfo(*_args, **_kwargs):
            return found

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    return answer


async def failure(server: Endpoint, settings: DialSettings = SETTINGS) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        (await dial(server, settings)).close()
    assert caught.value.message
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_is_connected_without_blocking_and_without_delay(host) -> None:
    with listening(host) as server, await dial(server, SETTINGS) as sock:
        assert sock.getpeername()[:2] == server
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_mapped_address_is_dialed_as_ipv4() -> None:
    with listening() as server, await dial(Endpoint("::ffff:127.0.0.1", server.port), SETTINGS) as sock:
        assert sock.family == socket.AF_INET


async def test_own_sockets_carry_the_mark() -> None:
    with listening() as server:
        try:
            sock = await dial(server, replace(SETTINGS, mark=0x77))
        except DialFailed as refused:
            assert refused.end is End.DENIED  # no CAP_NET_ADMIN here: said, not ignored
        else:
            with sock:
                assert sock.getsockopt(socket.SOL_SOCKET, 36) == 0x77


async def test_a_refusal_is_named() -> None:
    with listening() as server:
        pass
    refused = await failure(server)
    assert (refused.end, refused.errno) == (End.REFUSED, errno.ECONNREFUSED)
    assert str(server) in refused.message


async def test_silence_times_out() -> None:
    with silent() as server:
        assert (await failure(server, replace(SETTINGS, connect_timeout=0.1))).end is End.CONNECT_TIMEOUT


@pytest.mark.parametrize("host", ["no-such-name.invalid", "x" * 64 + ".example", "a..b", "nul\0name"])
async def test_names_that_lead_nowhere_are_named(host) -> None:
    assert (await failure(Endpoint(host, 80))).end is End.NAME_NOT_FOUND


async def test_a_resolver_that_does_not_answer_times_out(monkeypatch) -> None:
    async def never(*_args, **_kwargs):
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    assert (await failure(Endpoint("a.example", 80), replace(SETTINGS, resolve_timeout=0.02))).end is End.NAME_NOT_FOUND


async def test_a_name_reaches_the_family_that_answers(resolves) -> None:
    with listening() as server:
        resolves(Endpoint("::1", server.port), server)
        with await dial(Endpoint("both.example", server.port), SETTINGS) as sock:
            assert sock.family == socket.AF_INET


async def test_a_silent_first_address_costs_one_attempt_delay(resolves) -> None:
    with silent() as dead, listening() as server:
        resolves(dead, server)
        started = asyncio.get_running_loop().time()
        with await dial(Endpoint("both.example", 1), SETTINGS) as sock:
            assert sock.getpeername()[1] == server.port
        assert asyncio.get_running_loop().time() - started < 1.0


async def test_losers_of_the_race_are_closed(resolves) -> None:
    with silent() as dead, listening() as server:
        resolves(dead, dead, server)
        with await dial(Endpoint("both.example", 1), SETTINGS):
            assert len(asyncio.all_tasks()) == 1


async def test_when_every_address_fails_the_last_reason_is_told(resolves) -> None:
    with listening() as first, listening() as second:
        pass
    resolves(first, second)
    assert (await failure(Endpoint("both.example", 1))).end is End.REFUSED


async def test_a_dial_that_is_cancelled_leaves_nothing(resolves) -> None:
    with silent() as dead:
        resolves(dead, dead)
        task = asyncio.ensure_future(dial(Endpoint("both.example", 1), SETTINGS))
        await asyncio.sleep(0.08)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("own", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.1.2.3"),
        ("0.0.0.0", "127.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("::1", "::"),
    ],
)
async def test_weir_does_not_dial_itself(own, host) -> None:
    settings = replace(SETTINGS, own_addresses=frozenset({Endpoint(own, 4711), Endpoint("::1", 4711)}))
    assert (await failure(Endpoint(host, 4711), settings)).end is End.DENIED


async def test_other_addresses_and_other_ports_are_not_its_own() -> None:
    with listening("127.0.0.2") as server:
        own = frozenset({Endpoint("127.0.0.1", server.port), Endpoint("0.0.0.0", 1)})
        (await dial(server, replace(SETTINGS, own_addresses=own))).close()


addresses = st.lists(st.tuples(st.sampled_from([socket.AF_INET, socket.AF_INET6]), st.tuples(st.integers())))


@given(addresses)
def test_interleaving_keeps_every_address_and_each_familys_order(found: list[Address]) -> None:
    mixed = interleaved(found)
    for family in (socket.AF_INET, socket.AF_INET6):
        assert [a for a in mixed if a[0] == family] == [a for a in found if a[0] == family]
    assert len(mixed) == len(found)
    assert mixed[:1] == found[:1]
    both = min(sum(a[0] == f for a in found) for f in (socket.AF_INET, socket.AF_INET6))
    assert all(a[0] != b[0] for a, b in pairwise(mixed[: 2 * both]))
