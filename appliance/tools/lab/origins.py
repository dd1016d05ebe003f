"""Real servers for the lab, each with a log of its own: what they saw is the truth that Weir's rows are held against.

HTTP/1.1 is Debian's nginx with a JSON access log; raw TCP is a small server here that speaks first and then echoes,
which is what a proxy that waits for the client's first byte would get wrong.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import BYPASSED_V4, BYPASSED_V6, ORIGIN_V4, ORIGIN_V6, Namespace
from appliance.tools.lab.processes import eventually, start

NAME = "origin.lab"
HTTP_PORT, ECHO_PORT, CLOSED_PORT = 80, 7007, 7008
HELLO = b"hello from the origin behind the weir\n"
BLOB_BYTES = 3 * 1024 * 1024
BANNER = b"220 the lab's echo server speaks first\r\n"

_NGINX = """
worker_processes 1;
daemon off;
user nobody nogroup;
pid {home}/nginx.pid;
error_log {home}/error.log;
events {{ worker_connections 8192; }}
http {{
    client_body_temp_path {home}/temp; proxy_temp_path {home}/temp; fastcgi_temp_path {home}/temp;
    uwsgi_temp_path {home}/temp; scgi_temp_path {home}/temp;
    log_format seen escape=json '{{"id":"$arg_id","header":"$http_x_lab_id","method":"$request_method",'
        '"uri":"$request_uri","host":"$http_host","authorization":"$http_authorization",'
        '"peer":"$remote_addr","peer_port":$remote_port,'
        '"server":"$server_addr","server_port":$server_port,"status":$status,"body_bytes":$body_bytes_sent,'
        '"connection":$connection}}';
    access_log {home}/access.log seen;
    default_type application/octet-stream;
    types {{ text/plain txt; application/json json; }}
    keepalive_requests 10000000;
    client_max_body_size 0;
    server {{
        {listen}
        root {home}/www;
        location /upload/ {{ dav_methods PUT; }}
        location /api/ {{
            default_type application/json;
            return 200 '{{"path":"$uri","method":"$request_method"}}\\n';
        }}
    }}
}}
"""


class Seen(NamedTuple):
    """One request as the origin saw it."""

    id: str
    header: str
    method: str
    uri: str
    host: str
    authorization: str
    peer: str
    peer_port: int
    server: str
    server_port: int
    status: int
    body_bytes: int
    connection: int


class HttpOrigin:
    """A running nginx: its pages, its uploads, and its own log."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.blob_sha256 = hashlib.sha256((home / "www" / "blob.bin").read_bytes()).hexdigest()

    def seen(self) -> list[Seen]:
        """Every request that nginx has answered so far."""
        log = self.home / "access.log"
        text = log.read_text() if log.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        return [Seen(**json.loads(line)) for line in complete.splitlines()]

    def uploaded_sha256(self, name: str) -> str | None:
        """The hash of an uploaded file as it lies on the origin's disk."""
        path = self.home / "www" / "upload" / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


@contextlib.contextmanager
def http_origin(
    namespace: Namespace,
    home: Path,
    addresses: tuple[str, ...] = (ORIGIN_V4, ORIGIN_V6, BYPASSED_V4, BYPASSED_V6),
    port: int = HTTP_PORT,
) -> Iterator[HttpOrigin]:
    """Run nginx in the namespace, with its files under ``home``, until left."""
    if shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
        raise LabFailed("nginx is not installed", "./run lab installs it; or apt-get install nginx")
    _furnish(home)
    listen = " ".join(f"listen {f'[{host}]' if ':' in host else host}:{port};" for host in addresses)
    configuration = home / "nginx.conf"
    configuration.write_text(_NGINX.format(home=home, listen=listen))
    process = start(namespace, ["nginx", "-c", str(configuration)], log=home / "nginx.out")
    try:
        if (
            not eventually(lambda: not process.running or _answers(namespace, addresses[0], port))
            or not process.running
        ):
            raise LabFailed(f"nginx did not start: {process.tail(2)}", f"nginx -t -c {configuration}")
        yield HttpOrigin(home)
    finally:
        process.stop()


def _furnish(home: Path) -> None:
    for folder in ("temp", "www", "www/upload"):
        (home / folder).mkdir(parents=True)
    shutil.chown(home / "www" / "upload", "nobody")
    (home / "www" / "hello.txt").write_bytes(HELLO)
    (home / "www" / "blob.bin").write_bytes(secrets.token_bytes(BLOB_BYTES))
    for path in (home, *home.rglob("www*")):
        path.chmod(0o755)


def _answers(namespace: Namespace, host: str, port: int) -> bool:
    try:
        namespace.connect(host, port, 1.0).close()
    except OSError:
        return False
    return True


class EchoOrigin:
    """The raw TCP server's own log: for each connection the peer's address and how many bytes came."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, int]] = []


@contextlib.contextmanager
def echo_origin(namespace: Namespace, host: str = ORIGIN_V4, port: int = ECHO_PORT) -> Iterator[EchoOrigin]:
    """Listen until left: send the banner, echo what comes, close when the peer has finished."""
    origin = EchoOrigin()
    listener = namespace.listen(host, port)

    def serve(connection: socket.socket, peer: str) -> None:
        received = 0
        with connection, contextlib.suppress(OSError):
            connection.sendall(BANNER)
            while data := connection.recv(65536):
                received += len(data)
                connection.sendall(data)
        origin.connections.append((peer, received))

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the lab is over
            while True:
                connection, peer = listener.accept()
                threading.Thread(target=serve, args=(connection, peer[0]), daemon=True).start()

    thread = threading.Thread(target=accept, name="echo origin", daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        listener.close()
        thread.join(5)
