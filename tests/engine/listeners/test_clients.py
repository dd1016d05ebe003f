"""The mixed listener against the clients that people use: curl, netcat, proxychains, PySocks, httpx, aiohttp…"""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import httpx
import pytest
import requests
import socks
from aiohttp_socks import ProxyConnector
from python_socks import ProxyError, ProxyType
from python_socks.sync import Proxy

from appliance.engine.settings import DialSettings, SocksSettings
from appliance.model.connection import End
from appliance.model.endpoint import Endpoint
from tests.engine.harness import LOOPBACK, Running, serving, talk, until, weir

BODY = b"from the origin"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(BODY), BODY)
USERS = {"dev": "secret"}


async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)


@pytest.fixture
async def server() -> AsyncIterator[Endpoint]:
    async with serving(origin) as at:
        yield at


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with weir(tmp_path) as worker:
        yield worker


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Running]:
    async with weir(tmp_path, socks=SocksSettings(bind=(LOOPBACK,), users=USERS)) as worker:
        yield worker


async def run(*command: str, stdin: bytes = b"", **env: str) -> tuple[int, bytes, bytes]:
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is not installed: ./run test installs it")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=-1, stdout=-1, stderr=-1, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env}
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 20)
    return process.returncode or 0, out, err


async def curl(*options: str) -> tuple[int, bytes, bytes]:
    return await run("curl", "-sS", "--max-time", "10", *options)


@pytest.mark.parametrize(
    ("option", "scheme", "host", "listener", "domain"),
    [
        ("--socks4", "", "127.0.0.1", "socks4", None),
        ("--socks4a", "", "localhost", "socks4", "localhost"),
        ("--socks5", "", "127.0.0.1", "socks5", None),
        ("--socks5-hostname", "", "localhost", "socks5", "localhost"),
        ("--proxy", "http://", "localhost", "forward", "localhost"),
        ("--proxytunnel --proxy", "http://", "localhost", "connect", "localhost"),
    ],
)
async def test_curl(running: Running, server: Endpoint, option, scheme, host, listener, domain) -> None:
    assert await curl(*option.split(), f"{scheme}{running.mixed}", f"http://{host}:{server.port}/") == (0, BODY, b"")
    [(connection, closed)] = await running.records()
    assert (connection.listener, connection.domain) == (listener, domain)
    assert (closed.end, closed.to_client >= len(BODY)) == (End.CLOSED, True)


@pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
async def test_curl_with_a_password(guarded: Running, server: Endpoint, option) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    assert (await curl(option, str(guarded.mixed), "--proxy-user", "dev:secret", url))[:2] == (0, BODY)
    assert (await curl(option, str(guarded.mixed), "--proxy-user", "dev:wrong", url))[0] == 97
    assert (await curl(option, str(guarded.mixed), url))[0] == 97
    records = await guarded.records(3)
    assert [(c.user, end.end) for c, end in records] == [("dev", End.CLOSED), (None, End.DENIED), (None, End.DENIED)]


async def test_curl_with_a_password_over_http_and_none_over_socks4(guarded: Running, server: Endpoint) -> None:
    url = f"http://127.0.0.1:{server.port}/"
    for tunnel in ([], ["--proxytunnel"]):
        proxy = [*tunnel, "--proxy", f"http://{guarded.mixed}"]
        assert (await curl(*proxy, "--proxy-user", "dev:secret", url))[1] == BODY
        status = "%{http_connect}" if tunnel else "%{http_code}"
        refused = await curl(*proxy, "--proxy-user", "dev:wrong", "-o", "/dev/null", "-w", status, url)
        assert refused[1] == b"407"
    assert (await curl("--socks4", str(guarded.mixed), url))[0] == 97


@pytest.mark.parametrize(
    ("option", "code"),
    [("--socks5", 5), ("--socks4", 91)],
)
async def test_curl_is_told_that_a_server_refused(running: Running, option, code) -> None:
    async with serving(origin) as gone:
        pass
    number, _, text = await curl(option, str(running.mixed), f"http://127.0.0.1:{gone.port}/")
    assert number == 97 and f"({code})".encode() in text


@pytest.mark.parametrize("way", [("-X", "5"), ("-X", "4"), ("-X", "connect")])
async def test_netcat(running: Running, server: Endpoint, way) -> None:
    command = ["nc", *way, "-x", str(running.mixed), "127.0.0.1", str(server.port)]
    assert (await run(*command, stdin=b"GET / HTTP/1.1\r\n\r\n"))[1] == ANSWER


@pytest.mark.parametrize("kind", ["socks4", "socks5", "http"])
async def test_proxychains(running: Running, server: Endpoint, tmp_path: Path, kind) -> None:
    config = tmp_path / "proxychains.conf"
    config.write_text(f"strict_chain\nquiet_mode\n[ProxyList]\n{kind} 127.0.0.1 {running.mixed.port}\n")
    command = ["proxychains4", "-f", str(config), "curl", "-sS", f"http://127.0.0.1:{server.port}/"]
    assert (await run(*command))[1] == BODY


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h", "http"])
async def test_requests_and_pysocks(running: Running, server: Endpoint, scheme) -> None:
    proxies = {"http": f"{scheme}://{running.mixed}"}
    answer = await asyncio.to_thread(requests.get, f"http://127.0.0.1:{server.port}/", proxies=proxies, timeout=10)
    assert answer.content == BODY


@pytest.mark.parametrize("kind", [socks.SOCKS4, socks.SOCKS5, socks.HTTP])
async def test_pysocks(running: Running, server: Endpoint, kind) -> None:
    def fetch() -> bytes:
        with socks.socksocket() as sock:
            sock.set_proxy(kind, *running.mixed)
            sock.connect(server)
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return sock.makefile("rb").read()

    assert await asyncio.to_thread(fetch) == ANSWER


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
async def test_httpx(guarded: Running, server: Endpoint, scheme) -> None:
    proxy = f"{scheme}://dev:secret@{guarded.mixed}"
    if scheme != "http":
        pytest.importorskip("socksio")
    async with httpx.AsyncClient(proxy=proxy) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/")).content == BODY


@pytest.mark.parametrize("scheme", ["http", "socks4", "socks5"])
async def test_aiohttp_socks(running: Running, server: Endpoint, scheme) -> None:
    connector = ProxyConnector.from_url(f"{scheme}://{running.mixed}")
    url = f"http://127.0.0.1:{server.port}/"
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as answer:
        assert await answer.read() == BODY


@pytest.mark.parametrize("kind", [ProxyType.SOCKS5, ProxyType.HTTP])
async def test_python_socks_hears_of_a_wrong_password(guarded: Running, server: Endpoint, kind) -> None:
    proxy = Proxy.create(kind, *guarded.mixed, username="dev", password="wrong")
    with pytest.raises(ProxyError):
        await asyncio.to_thread(proxy.connect, *server, timeout=5)


async def test_a_server_that_speaks_first_is_heard_without_delay(running: Running) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        assert await reader.readline() == b"QUIT\r\n"

    async with serving(banner) as at:
        reader, writer = await asyncio.open_connection(*running.mixed)
        writer.write(b"\x05\x01\x00" + b"\x05\x01\x00\x01" + socket.inet_aton(at.host) + at.port.to_bytes(2, "big"))
        await reader.readexactly(2 + 10)
        assert await asyncio.wait_for(reader.readline(), 2) == b"220 welcome\r\n"
        writer.write(b"QUIT\r\n")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "said", [b"\x05", b"\x05\x01", b"\x04\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03\xff", b"CONNECT a", b"\x00\xff" * 99]
)
async def test_garbage_and_truncated_handshakes_end_quietly(running: Running, said) -> None:
    await talk(running.mixed, said, eof=True)
    [(_, closed)] = await running.records()
    assert closed.end in (End.PROTOCOL_ERROR, End.CLIENT_GONE) and closed.error


async def test_a_client_that_says_nothing_is_let_go(tmp_path: Path) -> None:
    async with weir(tmp_path, handshake_timeout=0.5) as running:
        with suppress(ConnectionResetError):
            assert await talk(running.mixed) == b""
        assert (await running.records())[0][1].end is End.HANDSHAKE_TIMEOUT


async def test_clients_outside_the_allow_list_are_not_heard(tmp_path: Path, server: Endpoint) -> None:
    socks_settings = SocksSettings(bind=(LOOPBACK,), allow=(ip_network("192.0.2.0/24"),))
    async with weir(tmp_path, socks=socks_settings) as running:
        assert (await curl("--socks5", str(running.mixed), f"http://127.0.0.1:{server.port}/"))[0] == 97
        assert (await running.records())[0][1].end is End.DENIED


async def test_weir_does_not_dial_itself(tmp_path: Path) -> None:
    async with weir(tmp_path, dial=DialSettings(own_addresses=frozenset({Endpoint("0.0.0.0", 4711)}))) as running:
        code, _, text = await curl("--socks5-hostname", str(running.mixed), "http://localhost:4711/")
        assert code == 97 and b"(2)" in text
        await until(lambda: bool(running.closed))
        assert running.closed[0][1].end is End.DENIED
