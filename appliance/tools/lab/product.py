"""The product as the lab runs it: the real command, a generated configuration, and ways to ask it and its database.

Nothing here looks inside Weir. It is started as ``weir run --config FILE`` in the gateway, asked over its HTTP API,
and its rows are read by SQL.
"""

import asyncio
import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import asyncpg
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect as websocket

from appliance.record.settings import EmbeddedSettings
from appliance.tools.lab import LabFailed
from appliance.tools.lab.clients import REVERSE_PORT, SOCKS_PORT
from appliance.tools.lab.namespaces import BYPASSED_V4, LAN, ORIGIN_V4, ORIGIN_V6, Namespace
from appliance.tools.lab.origins import HTTP_PORT
from appliance.tools.lab.processes import Process, start

WEIR = (sys.executable, "-m", "appliance.app")
API_HOST, API_PORT = "127.0.0.1", 8088
SERVICE_USER = "weir"


def configuration(state: Path) -> dict[str, Any]:
    """What the lab's Weir is told: everything at once, one address bypassed. JSON is YAML."""
    return {
        "state_dir": str(state),
        "proxy": {
            "mode": "hybrid",
            "bind_address": [f"0.0.0.0:{SOCKS_PORT}", f"[::]:{SOCKS_PORT}"],
            "transparent": {"interfaces": [LAN], "ports": "all"},
            "direct_http": {
                "bind_address": [f"0.0.0.0:{REVERSE_PORT}", f"[::]:{REVERSE_PORT}"],
                "upstream_routing": [{"host": "shop.lab", "upstream": f"{ORIGIN_V4}:{HTTP_PORT}"}],
                "default_upstream": {"upstream": f"[{ORIGIN_V6}]:{HTTP_PORT}"},
            },
        },
        "protocols": {"bypass_rules": [{"address": BYPASSED_V4, "mode": "direct_proxy"}]},
        "storage": {"dsn": "embedded"},
        "api": {"bind_address": f"{API_HOST}:{API_PORT}"},
        "engine": {"workers": 1, "inspectors": 1},
        "logging": {"level": "info", "format": "json"},
    }


@dataclass(slots=True)
class Weir:
    """A running Weir in a namespace."""

    namespace: Namespace
    process: Process
    state: Path
    ready_after: float

    def get(self, path: str, **parameters: str | int) -> Any:
        """Ask the API; the parsed answer. Raises ``LabFailed`` when it does not answer 200."""
        return self._ask("GET", f"{path}?{urlencode(parameters)}" if parameters else path)

    def post(self, path: str, document: Mapping[str, Any]) -> Any:
        """Write through the API."""
        return self._ask("POST", path, json.dumps(document))

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics``, by name and labels as written."""
        samples = {}
        for line in self._ask("GET", "/metrics", parse=False).splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def sql(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Run a statement on the embedded database, past Weir."""
        return asyncio.run(self._sql(statement, arguments))

    def exchanges(self, marker: str) -> list[dict[str, Any]]:
        """Every exchange, by the API, whose target holds the marker."""
        rows: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.get("/api/v1/exchanges", limit=200, **({"cursor": cursor} if cursor else {}))
            rows += [row for row in page["items"] if marker in (row.get("target") or "")]
            cursor = page.get("next")
            if not cursor:
                return rows

    def stop(self, patience: float = 20.0) -> int:
        """SIGTERM and wait: the exit code of a clean stop is 0."""
        return self.process.stop(patience)

    async def _sql(self, statement: str, arguments: Sequence[object]) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(dsn=EmbeddedSettings(directory=self.state / "postgres").dsn, timeout=10)
        try:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    def _ask(self, method: str, path: str, body: str | None = None, parse: bool = True) -> Any:
        connection = http.client.HTTPConnection(API_HOST, API_PORT, timeout=10)
        try:
            connection.sock = self.namespace.connect(API_HOST, API_PORT)
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            text = response.read().decode()
        except OSError as error:
            raise LabFailed(
                f"{method} {path}: the API did not answer: {error}", f"read {self.process.log}", 5
            ) from error
        finally:
            connection.close()
        if response.status >= 300:
            raise LabFailed(f"{method} {path}: {response.status} {text[:300]}", f"read {self.process.log}")
        return json.loads(text) if parse and text else text


@contextlib.contextmanager
def weir(
    namespace: Namespace,
    home: Path,
    document: Mapping[str, Any] | None = None,
    *,
    hosts: Path | None = None,
    cpus: Sequence[int] | None = None,
    timeout: float = 90.0,
) -> Iterator[Weir]:
    """Start Weir in the namespace and hand it over once ``GET /ready`` says so; stop it when left.

    ``home`` receives its configuration, its log and its state (one that is there already is taken up); ``timeout`` is
    how long it may take to be ready (the first start makes a database cluster).
    """
    state = home / "state"
    _make_for_service_user(state)
    file = home / "weir.yaml"
    file.write_text(json.dumps(document or configuration(state), indent=2))
    before = time.monotonic()
    process = start(namespace, [*WEIR, "run", "--config", str(file)], log=home / "weir.log", hosts=hosts, cpus=cpus)
    running = Weir(namespace, process, state, 0.0)
    try:
        _wait_until_ready(running, timeout)
        running.ready_after = time.monotonic() - before
        yield running
    finally:
        running.stop()


def _make_for_service_user(state: Path) -> None:
    state.mkdir(parents=True, exist_ok=True)
    state.chmod(0o750)
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):  # no such user: Weir itself says what to do
            pwd.getpwnam(SERVICE_USER)
            shutil.chown(state, SERVICE_USER, SERVICE_USER)


def _wait_until_ready(running: Weir, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    last = "it has not opened its API"
    while time.monotonic() < deadline:
        if not running.process.running:
            code = running.process.wait(0)
            raise LabFailed(f"weir run ended with {code}:\n{running.process.tail()}", "read the lines above")
        try:
            running.get("/ready")
            return
        except LabFailed as failure:
            last = failure.cause
        time.sleep(0.05)
    running.process.signal(signal.SIGTERM)
    raise LabFailed(f"Weir was not ready after {timeout:g} s ({last}):\n{running.process.tail()}", "weir doctor", 6)


class LiveFeed:
    """A listener on the live feed: keeps every event that it hears, and tells ``on_event`` of each in its thread."""

    def __init__(self, running: Weir, on_event: Callable[[dict[str, Any]], None]) -> None:
        sock = running.namespace.connect(API_HOST, API_PORT)
        try:
            self._socket = websocket(f"ws://{API_HOST}:{API_PORT}/api/v1/live", sock=sock, open_timeout=5)
        except (OSError, WebSocketException) as error:
            sock.close()
            raise LabFailed(f"the live feed did not open: {error}", f"read {running.process.log}", 5) from error
        self.heard: list[dict[str, Any]] = []
        self._on_event = on_event
        self._thread = threading.Thread(target=self._listen, name="live feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError, WebSocketException):
            self._socket.close()
        self._thread.join(5)

    def _listen(self) -> None:
        with contextlib.suppress(OSError, WebSocketException):
            for message in self._socket:
                document = json.loads(message)
                for event in document if isinstance(document, list) else [document]:
                    self.heard.append(event)
                    self._on_event(event)
