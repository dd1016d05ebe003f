"""The server under load: nginx with one worker, and a log that holds only what proves which way a request came."""

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import ORIGIN_V4, Namespace
from appliance.tools.lab.processes import eventually, start

SMALL, LARGE = 1024, 1024 * 1024

_CONFIGURATION = """
worker_processes 1;
daemon off;
user nobody nogroup;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home}; uwsgi_temp_path {home};
    scgi_temp_path {home};
    log_format proof '$remote_addr $arg_id';
    access_log {home}/access.log proof buffer=256k flush=1s;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    server {{
        listen {address}:80 backlog=4096;
        root {home};
    }}
}}
"""


class Origin:
    """The running server and its log."""

    def __init__(self, home: Path) -> None:
        self._log = home / "access.log"

    def seen(self, run: str, at_least: int) -> list[tuple[str, str]]:
        """Peer address and request id of every request of the run, once ``at_least`` are in the log."""
        found: list[tuple[str, str]] = []

        def written() -> bool:
            found[:] = [(peer, name) for peer, name in self._lines() if name.startswith(f"{run}-")]
            return len(found) >= at_least

        eventually(written, 5.0, every=0.25)
        return found

    def _lines(self) -> Iterator[tuple[str, str]]:
        text = self._log.read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            peer, _, name = line.partition(" ")
            yield peer, name


@contextlib.contextmanager
def origin(namespace: Namespace, home: Path, cpus: tuple[int, ...]) -> Iterator[Origin]:
    """Run the server on these processors until left."""
    home.mkdir()
    home.chmod(0o755)
    (home / "small").write_bytes(secrets.token_hex(SMALL // 2).encode())
    (home / "large").write_bytes(secrets.token_bytes(LARGE))
    file = home / "nginx.conf"
    file.write_text(_CONFIGURATION.format(home=home, address=ORIGIN_V4))
    process = start(namespace, ["nginx", "-c", str(file)], log=home / "nginx.out", cpus=cpus)
    try:
        if not eventually(lambda: (home / "nginx.pid").exists() or not process.running) or not process.running:
            raise LabFailed(f"nginx did not start: {process.tail(2)}", f"nginx -t -c {file}")
        yield Origin(home)
    finally:
        process.stop()
