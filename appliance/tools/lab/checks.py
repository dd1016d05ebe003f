"""What the lab proves, each promise by a check of its own.

A check is a generator in two acts. The first sends traffic; then it yields, and the recorder gets the time that it
needs; the second holds what came of it against the origin's own log, and the stored rows, read by the API and by SQL,
against what client and origin saw. Weir's own counters prove nothing here.
"""

import contextlib
import hashlib
import ipaddress
import socket
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from appliance.tools.lab import LabFailed
from appliance.tools.lab.clients import PROXY, WAYS, Way
from appliance.tools.lab.namespaces import (
    BYPASSED_V4,
    CLIENT_V4,
    CLIENT_V6,
    ORIGIN_V4,
    OUTSIDE_V4,
    OUTSIDE_V6,
)
from appliance.tools.lab.origins import (
    BANNER,
    BLOB_BYTES,
    CLOSED_PORT,
    ECHO_PORT,
    HELLO,
    HTTP_PORT,
    NAME,
)
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.scene import Broken, Check, Scene, agree, expect, fetched_well

PIPELINED = 5

Act = Generator[None, None, str]


def perform(scene: Scene, report: Callable[[Check], None]) -> list[Check]:
    """Run the first act of every check, then the second of each; ``report`` hears every verdict as it falls."""
    _wait_for_the_feed(scene)
    plays: list[tuple[str, Act]] = [(name, act(scene)) for name, act in CHECKS]
    verdicts: dict[str, Check] = {}
    for name, play in plays:
        with _judged(name, verdicts):
            next(play)
    scene.settle()
    for name, play in plays:
        if name not in verdicts:
            with _judged(name, verdicts):
                next(play)
        report(verdicts[name])
    return [verdicts[name] for name, _ in plays]


def _wait_for_the_feed(scene: Scene) -> None:
    # Whoever has just subscribed may miss what is under way, and an inspector looks for the API once a second: the
    # first act begins once a request has been heard of.
    def heard() -> bool:
        request_id = scene.new_id()
        scene.fetch(f"http://{NAME}/api/hello", request_id)
        return eventually(lambda: scene.told_of(request_id), 0.2)

    eventually(heard, 5.0)


@contextlib.contextmanager
def _judged(name: str, verdicts: dict[str, Check]) -> Iterator[None]:
    try:
        yield
    except StopIteration as end:
        verdicts[name] = Check(name, True, str(end.value))
    except (Broken, LabFailed, OSError) as error:
        verdicts[name] = Check(name, False, str(error))


def through(way: Way) -> Callable[[Scene], Act]:
    """The check that one road leads to the origin and into the tables."""

    def act(scene: Scene) -> Act:
        request_id = scene.new_id()
        fetched = scene.fetch(f"{way.base}/hello.txt", request_id, *way.options)
        fetched_well(fetched, hashlib.sha256(HELLO).hexdigest())
        yield
        seen = scene.seen(request_id)
        expect(seen.header == request_id, f"the origin saw the header X-Lab-Id: {seen.header!r}")
        expect(seen.peer in (OUTSIDE_V4, OUTSIDE_V6), f"the origin saw {seen.peer}: the traffic went past Weir")
        expect(way.family is None or (":" in seen.server) == (way.family == 6), f"it reached {seen.server}")
        client = CLIENT_V6 if way.client_family == 6 else CLIENT_V4
        row = scene.exchange(request_id)
        common = {"protocol": "http/1.1", "listener": way.listener, "method": "GET", "domain": way.domain}
        exchange = {
            "client_address": client,
            "client_port": fetched.port,
            "server_address": seen.server,
            "server_port": seen.server_port,
            "completeness": "complete",
            "error": None,
        }
        agree(row, common | exchange, "the API's exchange")
        expect(str(row["status"]) == "200", f"the API's exchange: status is {row['status']!r}")
        stored = {
            "source_addr": ipaddress.ip_address(client),
            "source_port": fetched.port,
            "destination_addr": ipaddress.ip_address(seen.server),
            "destination_port": seen.server_port,
            "status_code": 200,
            "completeness": 0,
        }
        record = scene.record(request_id)
        agree(record, common | stored, "the row of traffic_records")
        expect(str(record["id"]) == row["id"], "the API and the table disagree about the id")
        return f"origin {seen.server} saw {seen.peer}; stored as {row['id']}; {fetched.milliseconds:.1f} ms"

    return act


def large_download(scene: Scene) -> Act:
    """Bytes are bytes: SHA-256 at both ends, on three roads."""
    roads = ("transparent", (), 4), ("socks5", ("--socks5", PROXY), 4), ("connect", ("-p", "-x", f"http://{PROXY}"), 4)
    asked: list[tuple[str, str]] = []
    for listener, options, _ in roads:
        request_id = scene.new_id()
        fetched_well(scene.fetch(f"http://{NAME}/blob.bin", request_id, "-4", *options), scene.http.blob_sha256)
        asked.append((listener, request_id))
    yield
    for listener, request_id in asked:
        scene.seen(request_id)
        row = scene.exchange(request_id)
        agree(row, {"listener": listener}, "the API's exchange")
        expect(row["response_bytes"] > BLOB_BYTES, f"response_bytes is {row['response_bytes']}")
    return f"{BLOB_BYTES >> 20} MiB × {len(roads)}, SHA-256 {scene.http.blob_sha256[:16]}… at both ends"


def large_upload(scene: Scene) -> Act:
    """The other direction, by the file on the origin's disk."""
    body = Path(scene.http.home / "www" / "blob.bin").read_bytes()[::-1]
    request_id = scene.new_id()
    fetched = scene.fetch(f"http://{NAME}/upload/{request_id}", request_id, "-T", "-", stdin=body)
    expect(fetched.exit_code == 0 and fetched.status == 201, f"curl: {fetched.exit_code}, status {fetched.status}")
    yield
    expect(scene.http.uploaded_sha256(request_id) == hashlib.sha256(body).hexdigest(), "the origin stored other bytes")
    row = scene.exchange(request_id)
    agree(row, {"method": "PUT"}, "the API's exchange")
    expect(row["request_bytes"] > len(body), f"request_bytes is {row['request_bytes']}")
    return f"{len(body) >> 20} MiB, chunked, to {row['server_address']}; SHA-256 on the origin's disk agrees"


def pipelining(scene: Scene) -> Act:
    """Several requests written at once on one connection are as many exchanges of one connection."""
    ids = [scene.new_id() for _ in range(PIPELINED)]
    requests = "".join(
        f"GET /api/p?id={request_id} HTTP/1.1\r\nHost: {NAME}\r\n"
        f"{'Connection: close' + chr(13) + chr(10) if request_id == ids[-1] else ''}\r\n"
        for request_id in ids
    )
    with scene.network.client.connect(ORIGIN_V4, HTTP_PORT) as sock:
        port = sock.getsockname()[1]
        sock.sendall(requests.encode())
        answered = b"".join(iter(lambda: sock.recv(65536), b""))
    expect(answered.count(b"HTTP/1.1 200") == PIPELINED, f"{answered.count(b'HTTP/1.1 200')} of {PIPELINED} answers")
    yield
    seen = [scene.seen(request_id) for request_id in ids]
    expect(len({line.connection for line in seen}) == 1, "the origin saw more than one connection")
    rows = [scene.exchange(request_id) for request_id in ids]
    expect(len({row["connection_id"] for row in rows}) == 1, "the exchanges name more than one connection")
    connection = scene.connection(port, HTTP_PORT)
    wanted = {"exchanges": PIPELINED, "bytes_in": len(requests), "bytes_out": len(answered), "end_reason": "closed"}
    agree(connection, wanted, "the row of traffic_logs")
    return f"{PIPELINED} exchanges of one connection; {connection['bytes_out']} bytes back, counted exactly"


def raw_tcp(scene: Scene) -> Act:
    """What is no known protocol, and where the server speaks first: forwarded at once, counted exactly."""
    body = bytes(range(256)) * 512
    with scene.network.client.connect(ORIGIN_V4, ECHO_PORT) as sock:
        port = sock.getsockname()[1]
        greeting = sock.recv(1024)
        sock.sendall(body)
        sock.shutdown(socket.SHUT_WR)  # half-close: the echo must still come
        echoed = b"".join(iter(lambda: sock.recv(65536), b""))
    expect(greeting == BANNER, f"the server's greeting arrived as {greeting[:40]!r}")
    expect(echoed == body, f"{len(echoed)} of {len(body)} bytes came back")
    yield
    expect(scene.echo.connections == [(OUTSIDE_V4, len(body))], f"the origin saw {scene.echo.connections}")
    wanted = {"protocol": "tcp", "path": "relay", "listener": "transparent", "exchanges": 0, "end_reason": "closed"}
    sizes = {"bytes_in": len(body), "bytes_out": len(BANNER) + len(body)}
    agree(scene.connection(port, ECHO_PORT), wanted | sizes, "the row of traffic_logs")
    return f"greeting first, half-close kept, {sizes['bytes_in']} bytes in and {sizes['bytes_out']} out"


def bypassed(scene: Scene) -> Act:
    """An address that is not to be understood: it passes, and nothing of its content is stored."""
    request_id = scene.new_id()
    fetched = scene.fetch(f"http://{BYPASSED_V4}/hello.txt", request_id)
    fetched_well(fetched, hashlib.sha256(HELLO).hexdigest())
    yield
    seen = scene.seen(request_id)
    expect(not scene.records(request_id), "it was recorded as an exchange")
    how = "in the kernel" if seen.peer == CLIENT_V4 else "through the engine, unread"
    if seen.peer != CLIENT_V4:
        expect(scene.connection(fetched.port, HTTP_PORT)["path"] in ("opaque", "bypass"), "its path is not opaque")
    return f"{BYPASSED_V4} answered {how}; no exchange stored"


def refused_by_the_server(scene: Scene) -> Act:
    """A server that refuses is told to the client in its protocol, and recorded as what it is."""
    request_id = scene.new_id()
    fetched = scene.fetch(f"http://{ORIGIN_V4}:{CLOSED_PORT}/", request_id, "--socks5", PROXY)
    # SOCKS5 reply 5, connection refused (RFC 1928 §6): curl says so and ends with 97.
    expect(fetched.exit_code == 97 and "(5)" in fetched.error, f"curl: {fetched.exit_code} {fetched.error}")
    yield
    rows = scene.connections_to(CLOSED_PORT)
    expect(rows == [{"end_reason": "refused", "listener": "socks5"}], f"traffic_logs has {rows}")
    return "curl heard SOCKS5 reply 5; the row says refused"


def secrets_stay_out(scene: Scene) -> Act:
    """A token reaches the origin untouched and is nowhere in what the API tells or the database's files hold."""
    request_id = scene.new_id()
    token = f"s3cr3t{hashlib.sha256(request_id.encode()).hexdigest()}"
    fetched = scene.fetch(f"http://{NAME}/api/private", request_id, "--oauth2-bearer", token, "--cookie", f"s={token}")
    expect(fetched.exit_code == 0 and fetched.status == 200, f"curl: {fetched.exit_code}, status {fetched.status}")
    yield
    expect(scene.seen(request_id).authorization == f"Bearer {token}", "the origin did not get the token as it was sent")
    row = scene.exchange(request_id)
    told = str(scene.weir.get(f"/api/v1/exchanges/{row['id']}"))
    expect(token not in told, "the API tells the token")
    expect(request_id in told, "the API's exchange is not the one asked for")
    database = scene.weir.state / "postgres" / "data"
    holders = [path for path in database.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    expect(not holders, f"the token lies in {holders[:3]}")
    return "Authorization and Cookie reached the origin; not in the API's answer, not in the database's files"


def live_feed(scene: Scene) -> Act:
    """The live feed told of a request while it happened."""
    request_id = scene.new_id()
    scene.fetch(f"http://{NAME}/api/live", request_id)
    yield
    eventually(lambda: scene.told_of(request_id), scene.patience())
    expect(scene.told_of(request_id), "the live feed did not tell of it")
    return f"{len(scene.live.heard)} events heard"


def statistics(scene: Scene) -> Act:
    """The statistics name the origin."""
    yield
    domains = scene.weir.get("/stats/top-domains", limit=10)
    expect(NAME in str(domains), f"/stats/top-domains is {str(domains)[:200]}")
    return f"/stats/top-domains counts {NAME}"


CHECKS: tuple[tuple[str, Callable[[Scene], Act]], ...] = (
    *((way.name, through(way)) for way in WAYS),
    ("large bodies arrive byte for byte", large_download),
    ("a large upload arrives byte for byte", large_upload),
    ("pipelined requests on one connection", pipelining),
    ("raw TCP where the server speaks first", raw_tcp),
    ("a bypassed address passes unread", bypassed),
    ("a refusing server", refused_by_the_server),
    ("secrets are not stored", secrets_stay_out),
    ("the live feed", live_feed),
    ("statistics", statistics),
)
