"""Nonsense on every listener: each connection is recorded, answered where its protocol can, and no error of ours."""

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.tools.lab import product
from appliance.tools.lab.clients import REVERSE_PORT, SOCKS_PORT
from appliance.tools.lab.namespaces import (
    GATEWAY_V4,
    GATEWAY_V6,
    ORIGIN_V4,
    OUTSIDE_V4,
    Network,
)
from appliance.tools.lab.origins import CLOSED_PORT, HTTP_PORT, HttpOrigin
from appliance.tools.lab.product import API_PORT, Weir
from tests.netns import roads, vitals
from tests.netns.conftest import make_place

TRANSPARENT_PORT = 15001
RANDOM = random.Random(7)
SOCKS4 = b"\x04\x01\x00\x50" + socket.inet_aton(ORIGIN_V4) + b"somebody\x00"
SOCKS4A = b"\x04\x01\x00\x50\x00\x00\x00\x01somebody\x00origin.lab\x00"
SOCKS5 = b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0aorigin.lab\x00\x50"
CONNECT = b"CONNECT 198.51.100.2:80 HTTP/1.1\r\nHost: 198.51.100.2:80\r\n\r\n"
ABSOLUTE = b"GET http://198.51.100.2/ HTTP/1.1\r\nHost: 198.51.100.2\r\n\r\n"
GARBAGE = {
    "nothing": b"",
    "zeros": bytes(4096),
    "noise": RANDOM.randbytes(70_000),
    "lines": b"\r\n" * 20_000,
    "endless-head": b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"x" * 200_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + RANDOM.randbytes(508),
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "socks5-no-methods": b"\x05\x00",
    "socks5-bind": b"\x05\x01\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
    "socks5-wrong-type": b"\x05\x01\x00\x05\x01\x00\x09\x00\x00",
    "socks5-empty-name": b"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50",
    "socks5-binary-name": b"\x05\x01\x00\x05\x01\x00\x03\x05\xff\xfe\x00\x80\x20\x00\x50",
    "socks4-bind": b"\x04\x02\x00\x50\x01\x02\x03\x04\x00",
    "socks4-endless-user": b"\x04\x01\x00\x50\x01\x02\x03\x04" + b"u" * 100_000,
    "connect-no-port": b"CONNECT nowhere HTTP/1.1\r\n\r\n",
    "connect-port-99999": b"CONNECT origin.lab:99999 HTTP/1.1\r\n\r\n",
    "absolute-ftp": b"GET ftp://origin.lab/ HTTP/1.1\r\nHost: origin.lab\r\n\r\n",
    "two-lengths": b"POST http://198.51.100.2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "bad-chunks": b"POST http://198.51.100.2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "not-utf8": b"GET http://198.51.100.2/\xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n",
}
DOORS = {
    "mixed": (GATEWAY_V4, SOCKS_PORT),
    "mixed-v6": (GATEWAY_V6, SOCKS_PORT),
    "reverse": (GATEWAY_V4, REVERSE_PORT),
    "transparent": (ORIGIN_V4, HTTP_PORT),
}
ENDS = {
    *("closed", "client_gone", "client_reset", "server_reset", "protocol_error", "denied"),
    *("unreachable", "refused", "name_not_found", "connect_timeout"),
}


@pytest.fixture(scope="module")
def weir(network: Network, home: Path, hosts: Path, cluster: Path) -> Iterator[Weir]:
    """A Weir that has logged no error when everything is over."""
    place = make_place(home / "bad-input", cluster)
    document = product.configuration(place / "state")
    document["limits"] = {"per_source_rate": None, "per_source_connections": None}
    document["engine"] |= {"timeouts": {"handshake": 1, "connect": 2}}
    with product.weir(network.gateway, place, document, hosts=hosts) as running:
        yield running
    assert vitals.said(running, "error", "critical") == []
    assert "Traceback" not in running.process.log.read_text()


def tell(network: Network, door: tuple[str, int], data: bytes) -> tuple[int, bytes]:
    """Say this, say no more, and hear what there is to hear: our port, and the answer."""
    heard = b""
    with network.client.connect(*door, timeout=10.0) as sock:
        port: int = sock.getsockname()[1]
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                heard += piece
        except TimeoutError:
            raise
        except OSError:
            pass  # a reset, wherever it found us
    return port, heard


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_garbage_is_answered_or_refused_and_recorded(
    door: tuple[str, int], network: Network, http: HttpOrigin, weir: Weir
) -> None:
    since = vitals.now()
    ports = {tell(network, door, data)[0]: name for name, data in GARBAGE.items()}
    for row in vitals.rows_of(weir, set(ports), since):
        assert row["end_reason"] in ENDS, f"{ports[row['source_port']]}: {row['end_reason']}"
        if row["end_reason"] == "protocol_error":
            assert row["error"], f"{ports[row['source_port']]}: no word of what was wrong"
    assert weir.get("/ready")["ready"] is True


def test_who_connects_and_says_nothing_is_let_go(network: Network, http: HttpOrigin, weir: Weir) -> None:
    since = vitals.now()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(network.client.connect(*door, timeout=10)) for door in list(DOORS.values())[:3]]
        for sock in silent:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(4096)[:5] in (b"", b"HTTP/")
        ports = {sock.getsockname()[1] for sock in silent}
    assert {row["end_reason"] for row in vitals.rows_of(weir, ports, since)} == {"handshake_timeout"}


@pytest.mark.parametrize("message", [SOCKS4, SOCKS4A, SOCKS5, CONNECT, ABSOLUTE])
def test_a_greeting_cut_at_any_byte_is_no_error_of_ours(
    message: bytes, network: Network, http: HttpOrigin, weir: Weir
) -> None:
    since = vitals.now()
    ports = {tell(network, DOORS["mixed"], message[:length])[0]: length for length in range(len(message))}
    ends = {ports[row["source_port"]]: row["end_reason"] for row in vitals.rows_of(weir, set(ports), since)}
    assert set(ends) == set(range(len(message)))
    assert set(ends.values()) <= {"client_gone", "protocol_error"}


@pytest.mark.parametrize("host", [GATEWAY_V4, OUTSIDE_V4, "127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("port", [SOCKS_PORT, REVERSE_PORT, TRANSPARENT_PORT, API_PORT])
def test_nobody_reaches_weir_itself_through_weir(host: str, port: int, network: Network, weir: Weir) -> None:
    since = vitals.now()
    on_the_wire = host in (GATEWAY_V4, OUTSIDE_V4)
    nobody_listens = on_the_wire and port in (API_PORT, TRANSPARENT_PORT)
    refused = {2, 5} if nobody_listens else {2}  # RFC 1928 §6: not allowed by ruleset, connection refused
    with network.client.connect(GATEWAY_V4, SOCKS_PORT, timeout=10) as sock:
        sock.sendall(b"\x05\x01\x00")
        assert roads.exactly(sock, 2) == b"\x05\x00"
        sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + struct.pack(">H", port))
        assert roads.exactly(sock, 2)[1] in refused
        mine = sock.getsockname()[1]
    row = vitals.row_of(weir, mine, since)
    assert row["end_reason"] in {"denied", "refused"}


@pytest.mark.parametrize("host", [GATEWAY_V4, OUTSIDE_V4, GATEWAY_V6])
@pytest.mark.parametrize("port", [API_PORT, TRANSPARENT_PORT])
def test_what_is_bound_to_loopback_is_not_reached_from_the_wire(
    host: str, port: int, network: Network, weir: Weir
) -> None:
    with pytest.raises(ConnectionRefusedError):
        network.client.connect(host, port, timeout=5)


def test_a_closed_port_is_a_reset_and_a_reply_and_a_row(network: Network, weir: Weir) -> None:
    since = vitals.now()
    with network.client.connect(ORIGIN_V4, CLOSED_PORT) as sock:
        first = sock.getsockname()[1]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with network.client.connect(GATEWAY_V4, SOCKS_PORT) as sock:
        second = sock.getsockname()[1]
        sock.sendall(b"\x05\x01\x00")
        assert roads.exactly(sock, 2) == b"\x05\x00"
        sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(ORIGIN_V4) + struct.pack(">H", CLOSED_PORT))
        assert roads.exactly(sock, 2)[1] == 5  # connection refused
    assert {row["end_reason"] for row in vitals.rows_of(weir, {first, second}, since)} == {"refused"}
