"""Make a service inside a namespace reachable from the host's loopback, for as long as the lab stays up."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from appliance.tools.lab.namespaces import Namespace

_CHUNK = 65536


@contextlib.contextmanager
def doorway(namespace: Namespace, host: str, port: int) -> Iterator[int]:
    """Forward ``127.0.0.1:PORT`` of the host to ``host:port`` inside; yields PORT (the same where it is free)."""
    listener = _listener(port)

    def carry(outside: socket.socket) -> None:
        with outside, contextlib.suppress(OSError), namespace.connect(host, port) as inside:
            inside.settimeout(None)
            back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
            back.start()
            _copy(outside, inside)
            back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the lab is over
            while True:
                threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, name="doorway", daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
