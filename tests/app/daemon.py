"""A real ``weir run`` for tests: its own state directory and ports, its log, and a promise that nothing is left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 40.0
WEIR = [sys.executable, "-m", "appliance.app"]
ROOT = Path(__file__).parents[2]
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("WEIR")} | {"PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def until(holds: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE
    while not (found := holds()):
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.1)
    return found


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == pid and stat[0] != "Z":
                found.append(int(entry.name))
    return found


@dataclass
class Daemon:
    home: Path
    document: dict[str, Any]
    port: int
    api: int
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def file(self) -> Path:
        return self.home / "weir.yaml"

    def configure(self, **sections: Any) -> None:
        self.file.write_text(json.dumps(self.document | sections))

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*WEIR, "run", "--config", str(self.file)], stderr=log, stdout=log, env=ENVIRON, start_new_session=True
            )
        return self.process

    def wait_ready(self) -> None:
        assert self.process is not None
        until(lambda: self.events("ready") or self.process.poll() is not None, "weir run is ready")  # type: ignore[union-attr]
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        return (self.home / "log").read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def weir(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*WEIR, *arguments], capture_output=True, text=True, env=ENVIRON, timeout=DEADLINE)

    def status(self) -> dict[str, Any]:
        done = self.weir("status", "--api", f"http://127.0.0.1:{self.api}", "-o", "json")
        return dict(json.loads(done.stdout)["engine"]) if done.stdout else {}

    def child(self, name: str) -> dict[str, Any]:
        return next(child for child in self.status().get("processes", []) if child["name"] == name)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)


@contextmanager
def daemon(**sections: Any) -> Iterator[Daemon]:
    """A configured daemon, not started."""
    home = Path(tempfile.mkdtemp(prefix="weir-app-test-"))
    home.chmod(0o755)  # the service user goes through it
    port, api = free_port(), free_port()
    document: dict[str, Any] = {
        "state_dir": str(home / "state"),
        "proxy": {"bind_address": f"127.0.0.1:{port}"},
        "api": {"bind_address": f"127.0.0.1:{api}"},
        "engine": {"workers": 1, "user": "nobody", "timeouts": {"drain": "5s"}, "tap": {"ring_size": "4MB"}},
    }
    found = Daemon(home, document | sections, port, api)
    found.configure()
    try:
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            left = children_of(found.process.pid)
            found.process.kill()
            found.process.wait()
            for pid in left:
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "children follow their supervisor")
        shutil.rmtree(home, ignore_errors=True)
