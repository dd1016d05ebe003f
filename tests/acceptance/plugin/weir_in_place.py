"""A pytest plug-in that runs python-socks' and aiohttp-socks' suites with Weir in the place of their proxy server.

Both suites start ``tests.proxy_server.ProxyServer(config=[ProxyConfig…])``. This module is loaded by ``-p`` before
their conftest and puts its own class there: one Weir per entry, because their chains go through several of them. It
runs under the suites' own interpreter, so it needs the standard library only.

Environment: WEIR_PROXY_COMMAND (``{config}`` is replaced by a configuration file), WEIR_PROXY_CONFIG (lines that are
appended to every configuration), WEIR_PROXY_STOPPED (start, then stop: what does the suite say?).
"""

import asyncio
import json
import os
import shlex
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tests.config as suite
import tests.proxy_server
import tests.utils

READY_WITHIN = 90.0
STOPPED = bool(os.environ.get("WEIR_PROXY_STOPPED"))


class WeirServer:
    """Stands in for the suites' ProxyServer."""

    def __init__(self, config: Iterable[Any]) -> None:
        self.config = list(config)
        self._directory = tempfile.TemporaryDirectory(prefix="weir-suite-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._fronts: list[TlsFront] = []
        self._names = SlowNames()

    def start(self) -> None:
        root = Path(self._directory.name)
        self._names.start()
        resolver = root / "resolv.conf"
        resolver.write_text(f"nameserver {SlowNames.ADDRESS}\n")
        waiting = []
        for number, entry in enumerate(self.config):
            host, port = entry.host, entry.port
            if getattr(entry, "ssl_certfile", None):
                # Weir's listener is plain here; TLS ends in front of it.
                host, port = "127.0.0.1", _free_port()
                self._fronts.append(TlsFront(entry, port))
            self._processes.append(_spawn(root / str(number), resolver, entry, host, port))
            waiting.append((host, port))
        for at, process in zip(waiting, self._processes, strict=True):
            _wait(at, process)
        for front in self._fronts:
            front.start()
        if STOPPED:
            self._stop()

    def terminate(self) -> None:
        self._stop()
        for front in self._fronts:
            front.stop()
        self._names.stop()
        self._directory.cleanup()

    shutdown = terminate

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)


class TlsFront:
    """Ends TLS and passes the bytes on to a port of Weir's."""

    def __init__(self, entry: Any, port: int) -> None:
        self._entry = entry
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._entry.ssl_certfile, self._entry.ssl_keyfile)
        serve = asyncio.start_server(self._serve, self._entry.host, self._entry.port, ssl=context)
        self._loop.run_until_complete(serve)
        self._ready.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            weir_reader, weir_writer = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(_pass_on(reader, weir_writer), _pass_on(weir_reader, writer))
        except OSError:
            pass
        finally:
            writer.close()


class SlowNames:
    """A name server that knows the suites' names, and takes as long as their own proxies take to connect (10 ms).

    The suites test a client's time-out of 1 ms against that delay; without it Weir answers too early for them.
    """

    ADDRESS = "127.0.53.77"
    DELAY = 0.01

    def __init__(self) -> None:
        self._known = {
            suite.TEST_HOST_NAME_IPV4: (socket.AF_INET, "127.0.0.1"),
            suite.PROXY_HOST_NAME_IPV4: (socket.AF_INET, "127.0.0.1"),
            suite.TEST_HOST_NAME_IPV6: (socket.AF_INET6, "::1"),
            suite.PROXY_HOST_NAME_IPV6: (socket.AF_INET6, "::1"),
        }
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.2)
        self._going = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._socket.bind((self.ADDRESS, 53))
        self._thread.start()

    def stop(self) -> None:
        self._going = False
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while self._going:
            try:
                query, client = self._socket.recvfrom(512)
            except TimeoutError:
                continue
            timer = threading.Timer(self.DELAY, self._socket.sendto, (self.answer(query), client))
            timer.daemon = True
            timer.start()

    def answer(self, query: bytes) -> bytes:
        """The response of RFC 1035 §4.1 to one A or AAAA question; an unknown name does not exist."""
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        known = self._known.get(".".join(labels).lower())
        kind = {1: socket.AF_INET, 28: socket.AF_INET6}.get(int.from_bytes(question[-4:-2], "big"))
        record = b""
        if known is not None and known[0] == kind:
            address = socket.inet_pton(*known)
            record = b"\xc0\x0c" + question[-4:] + (60).to_bytes(4, "big") + len(address).to_bytes(2, "big") + address
        flags = b"\x81\x80" if known is not None else b"\x81\x83"
        return query[:2] + flags + b"\0\1" + (b"\0\1" if record else b"\0\0") + bytes(4) + question + record


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def _spawn(directory: Path, resolver: Path, entry: Any, host: str, port: int) -> "subprocess.Popen[bytes]":
    directory.mkdir(mode=0o755)
    config = directory / "weir.yaml"
    # SOCKS4 has a user id and no password: nothing that a listener could ask for (RFC 1929 came with version 5).
    users = [{"username": entry.username, "password": entry.password}] if entry.password else []
    section = {
        "mode": "socks",
        "bind_address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "socks": {"auth_method": "username_password" if users else "none", **({"users": users} if users else {})},
    }
    extra = os.environ.get("WEIR_PROXY_CONFIG", "").replace("{port}", str(_free_port()))
    state = json.dumps(str(directory / "state"))
    config.write_text(f"state_dir: {state}\nproxy: {json.dumps(section)}\n{extra}\n")
    for path in (directory.parent, directory, resolver, config):
        path.chmod(0o755)
    command = shlex.split(os.environ["WEIR_PROXY_COMMAND"].replace("{config}", str(config)))
    # A mount namespace of its own gives the process a resolver of its own.
    script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
    log = (directory / "log").open("wb")
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, str(resolver), *command],
        stdout=log,
        stderr=log,
        cwd=os.environ.get("WEIR_PROXY_CWD") or None,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )


def _wait(at: tuple[str, int], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not tests.utils.is_connectable(host=at[0], port=at[1]):
        if process.poll() is not None or time.monotonic() > deadline:
            log = (Path(process.args[-1]).parent / "log").read_text(errors="replace")[-2000:]  # type: ignore[index]
            raise RuntimeError(f"Weir does not listen on {at}: exit {process.poll()}, it said: {log}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


tests.proxy_server.ProxyServer = WeirServer
if STOPPED:
    tests.utils.wait_until_connectable = lambda **_at: True
