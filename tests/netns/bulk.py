"""A server and a client for large bodies that hash what they send and receive, each in its own book.

The reader may stall in the middle until it is told to go on, so that whatever lies between has to hold its breath.
"""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from urllib.parse import parse_qs, urlsplit

from appliance.tools.lab.namespaces import ORIGIN_V4, ORIGIN_V6, Namespace

PORT = 8081
PIECE = 256 * 1024
STALL_BUFFER = 64 * 1024  # a reader that stalls shall not have the kernel read for it


@dataclass(slots=True)
class Transfer:
    """One body: what one end knows of it."""

    total: int
    bytes: int = 0
    sha256: str | None = None
    stall_at: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    error: str | None = None

    def send(self, sock: socket.socket, seed: int) -> None:
        """Send ``total`` bytes that follow from the seed."""
        digest = hashlib.sha256()
        for piece in pieces(seed, self.total):
            sock.sendall(piece)
            digest.update(piece)
            self.bytes += len(piece)
        self.sha256 = digest.hexdigest()

    def receive(self, sock: socket.socket, first: bytes) -> None:
        """Read ``total`` bytes, ``first`` among them; hold on in the middle if told so."""
        digest = hashlib.sha256(first)
        self.bytes = len(first)
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        while self.bytes < self.total:
            if self.stall_at is not None and self.bytes >= self.stall_at:
                self.stall_at = None
                self.stalled.set()
                self.go_on.wait(60)
            count = sock.recv_into(view[: self.total - self.bytes])
            if not count:
                raise ConnectionError(f"the stream ended after {self.bytes} of {self.total} bytes")
            digest.update(view[:count])
            self.bytes += count
        self.sha256 = digest.hexdigest()


def pieces(seed: int, total: int) -> Iterator[bytes]:
    """``total`` bytes; no two pieces are the same, so that one lost, doubled or moved shows in the hash."""
    block = Random(seed).randbytes(PIECE - 8)
    number = 0
    while total > 0:
        yield (number.to_bytes(8, "big") + block)[:total]
        total -= PIECE
        number += 1


class BulkOrigin:
    """``GET /ID?bytes=N&seed=S`` is answered with such a body; of ``PUT /ID`` with ``&stall=AT`` the body is read.

    ``transfers`` is its book, by id.
    """

    def __init__(self) -> None:
        self.transfers: dict[str, Transfer] = {}

    def serve(self, sock: socket.socket) -> None:
        """One client, request by request."""
        sock.settimeout(90)
        while (request := _head(sock)) is not None:
            head, rest = request
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            url = urlsplit(target)
            query = {name: int(values[0]) for name, values in parse_qs(url.query).items()}
            transfer = Transfer(query["bytes"], stall_at=query.get("stall"))
            self.transfers[url.path[1:]] = transfer
            try:
                if method == "GET":
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % transfer.total)
                    transfer.send(sock, query["seed"])
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALL_BUFFER)
                    transfer.receive(sock, rest)
                    sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            except OSError as error:
                transfer.error = repr(error)
                return


def _head(sock: socket.socket) -> tuple[bytes, bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(PIECE)
        if not piece:
            return None
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


@contextlib.contextmanager
def bulk_origin(namespace: Namespace, port: int = PORT) -> Iterator[BulkOrigin]:
    """Listen on both families until left."""
    origin = BulkOrigin()
    listeners = [namespace.listen(host, port) for host in (ORIGIN_V4, ORIGIN_V6)]

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            origin.serve(sock)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threads = [threading.Thread(target=accept, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        yield origin
    finally:
        for listener in listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
            listener.close()
        for thread in threads:
            thread.join(5)


def download(sock: socket.socket, target: str, host: str, transfer: Transfer, seed: int) -> int:
    """GET; the count of all bytes received. ``transfer`` fills while it lasts."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALL_BUFFER)
    sock.sendall(_request("GET", f"{target}?bytes={transfer.total}&seed={seed}", host))
    answered = _head(sock)
    assert answered is not None and b" 200 " in answered[0]
    transfer.receive(sock, answered[1])
    return len(answered[0]) + 4 + transfer.total


def upload(sock: socket.socket, target: str, host: str, transfer: Transfer, seed: int, stall_at: int) -> int:
    """PUT to a server that stalls; the count of all bytes sent."""
    request = _request("PUT", f"{target}?bytes={transfer.total}&stall={stall_at}", host, transfer.total)
    sock.sendall(request)
    transfer.send(sock, seed)
    answered = _head(sock)
    assert answered is not None and b" 204 " in answered[0]
    return len(request) + transfer.total


def _request(method: str, target: str, host: str, length: int = 0) -> bytes:
    body = f"Content-Length: {length}\r\n" if method == "PUT" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{body}\r\n".encode()
