"""Forwarding between real sockets: what the server hears, what the client gets, what is recorded."""

import asyncio
import hashlib
import os
import ssl
from pathlib import Path

import pytest
import trustme

from appliance.engine.settings import (
    DialSettings,
    DirectHttpSettings,
    HeaderEdits,
    LimitSettings,
    Route,
    SocksSettings,
)
from appliance.model.connection import End
from appliance.model.direction import TO_CLIENT, TO_SERVER
from appliance.model.endpoint import Endpoint
from tests.engine.harness import LOOPBACK, serving, talk, until, weir


class Origin:
    """Answers requests with scripted bytes, in order, whatever connection they come on."""

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.answers = list(answers)
        self.heard: list[bytes] = []
        self.connections = 0
        self.close = close

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    body = await reader.readexactly(int(line.split(b":")[1]))
                if line.lower() == b"transfer-encoding: chunked":
                    body = await reader.readuntil(b"0\r\n\r\n")
            self.heard.append(head + body)
            writer.write(self.answers.pop(0))
            await writer.drain()
            if self.close:
                return


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"
BYE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbye"


def direct(*routes: Route, headers: HeaderEdits | None = None, default: Endpoint | None = None) -> DirectHttpSettings:
    return DirectHttpSettings(
        bind=(LOOPBACK,),
        routes=routes,
        default=Route(upstream=default) if default else None,
        headers=headers or HeaderEdits(),
    )


async def test_a_request_reaches_its_server_and_the_response_its_client(tmp_path: Path) -> None:
    origin = Origin(OK)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        said = b"GET /x?y HTTP/1.1\r\nhOsT: a.example\r\nX-Odd:   spaced  \r\nConnection: close\r\n\r\n"
        heard = await talk(running.direct_http, said)
        assert heard == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        assert origin.heard == [b"GET /x?y HTTP/1.1\r\nhOsT: a.example\r\nX-Odd:   spaced  \r\n\r\n"]
        [(connection, closed)] = await running.records()
        assert (connection.listener, connection.server, connection.domain) == ("direct_http", server, "a.example")
        assert (closed.end, closed.to_server, closed.to_client) == (End.CLOSED, len(said), len(heard))
        assert closed.connect_ns > 0
        assert (running.shown(TO_SERVER), running.shown(TO_CLIENT)) == (said, heard)


async def test_configured_headers_are_added_and_removed(tmp_path: Path) -> None:
    edits = HeaderEdits(
        add_request=(("X-Forwarded-For", "$remote_addr"), ("X-Forwarded-Proto", "$scheme"), ("X-Host", "$host")),
        remove_request=("x-internal",),
        add_response=(("X-Proxy-Version", "1.0"),),
    )
    origin = Origin(OK)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server, headers=edits)) as running:
        heard = await talk(
            running.direct_http,
            b"GET / HTTP/1.1\r\nHost: A.example:80\r\nX-Internal: 1\r\nConnection: close, x-mine\r\nX-Mine: 1\r\n\r\n",
        )
        assert b"\r\nX-Proxy-Version: 1.0\r\n" in heard
        assert origin.heard == [
            b"GET / HTTP/1.1\r\nHost: A.example:80\r\nX-Forwarded-For: 127.0.0.1\r\n"
            b"X-Forwarded-Proto: http\r\nX-Host: a.example\r\n\r\n"
        ]


async def test_routes_choose_the_upstream_per_request_and_prefixes_are_stripped(tmp_path: Path) -> None:
    one, two = Origin(OK, OK), Origin(OK, BYE)
    async with serving(one) as first, serving(two) as second:
        routes = (
            Route(upstream=first, path_prefix="/v1/"),
            Route(upstream=second, path_prefix="/v2/", strip_prefix=True),
        )
        async with weir(tmp_path, direct_http=direct(*routes)) as running:
            paths = [b"/v1/a", b"/v2/b", b"/v1/c", b"/v2/d"]
            said = b"".join(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path for path in paths[:3])
            last = b"GET /v2/d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            heard = await talk(running.direct_http, said + last)
            assert heard.count(b"HTTP/1.1 200 OK") == 4 and heard.endswith(b"bye")
            assert [r.split()[1] for r in one.heard] == [b"/v1/a", b"/v1/c"]
            assert [r.split()[1] for r in two.heard] == [b"/b", b"/d"]


async def test_a_request_without_a_route_is_told_so(tmp_path: Path) -> None:
    nowhere = direct(Route(upstream=LOOPBACK, host="only.example"))
    async with weir(tmp_path, direct_http=nowhere) as running:
        heard = await talk(running.direct_http, GET)
        assert heard.startswith(b"HTTP/1.1 404 ") and b"default_upstream" in heard
        [(_, closed)] = await running.records()
        assert (closed.end, closed.to_client) == (End.UNREACHABLE, len(heard))


async def test_pipelined_requests_are_answered_in_order_on_one_upstream_connection(tmp_path: Path) -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(5)]
    origin = Origin(*answers, BYE)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(running.direct_http, GET * 5 + LAST)
        assert heard[: -len(BYE)] == b"".join(answers)
        assert origin.connections == 1


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n"),
        (GET, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n"),
        (GET, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", OK),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", OK),
    ],
)
async def test_every_framing_leaves_the_connection_in_step(tmp_path: Path, request_: bytes, response: bytes) -> None:
    origin = Origin(response, BYE)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        # Cut into single bytes: framing must not depend on how bytes arrive.
        heard = await talk(running.direct_http, *(bytes((b,)) for b in request_), LAST)
        assert heard == response + BYE
        assert origin.heard[0] == request_


async def test_a_response_that_ends_with_its_connection_ends_the_clients_too(tmp_path: Path) -> None:
    origin = Origin(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nall of it", close=True)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(running.direct_http, GET)
        assert heard == b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nall of it"


async def test_a_kept_connection_that_the_server_closed_is_replaced(tmp_path: Path) -> None:
    origin = Origin(OK, OK, BYE, close=True)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(running.direct_http, GET + GET + LAST)
        assert heard == OK + OK + BYE
        assert origin.connections == 3


async def test_expect_continue_is_the_servers_to_answer(tmp_path: Path) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        reader, writer = await asyncio.open_connection(*running.direct_http)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_a_refused_expectation_closes_since_nobody_knows_if_the_body_comes(tmp_path: Path) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(
            running.direct_http, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert heard.startswith(b"HTTP/1.1 417") and b"Connection: close" in heard and heard.endswith(b"no")


async def test_an_upgrade_becomes_a_tunnel_with_half_close(tmp_path: Path) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\nUpgrade: echo\r\n" in head and b"\r\nConnection: Upgrade\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nhi ")
        writer.write(await reader.read())

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        said = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly "
        heard = await talk(running.direct_http, said, b"and late", eof=True)
        assert heard.endswith(b"\r\n\r\nhi early and late")
        [(_, closed)] = await running.records()
        assert (closed.end, closed.to_server) == (End.CLOSED, len(said) + 8)


async def test_a_switch_that_nobody_asked_for_is_a_bad_gateway(tmp_path: Path) -> None:
    origin = Origin(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        said = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        said += b"Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"
        assert (await talk(running.direct_http, said)).startswith(b"HTTP/1.1 502 ")
        assert b"Upgrade" not in origin.heard[0]


@pytest.mark.parametrize(
    "said",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_smuggling_suspects_and_garbage_get_a_400_and_no_second_chance(tmp_path: Path, said: bytes) -> None:
    origin = Origin(OK, OK)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(running.direct_http, said + LAST)
        assert heard.startswith(b"HTTP/1.1 400 ") and b"Connection: close" in heard
        assert heard.count(b"HTTP/1.1 ") == 1
        assert origin.heard == []


async def test_a_transfer_coding_we_cannot_frame_is_not_implemented(tmp_path: Path) -> None:
    async with weir(tmp_path, direct_http=direct(default=LOOPBACK)) as running:
        said = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
        assert (await talk(running.direct_http, said)).startswith(b"HTTP/1.1 501 ")


async def test_a_head_without_an_end_is_cut_off(tmp_path: Path) -> None:
    async with weir(tmp_path, direct_http=direct(default=LOOPBACK)) as running:
        heard = await talk(running.direct_http, b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyy\r\n" * 4000)
        assert heard.startswith(b"HTTP/1.1 431 ")


async def test_a_head_that_dribbles_meets_its_deadline(tmp_path: Path) -> None:
    async with weir(tmp_path, direct_http=direct(default=LOOPBACK), handshake_timeout=0.5) as running:
        heard = await talk(running.direct_http, b"GET / HTTP/1.1\r\nHost: ")
        assert heard.startswith(b"HTTP/1.1 408 ")
        assert (await running.records())[0][1].end is End.HANDSHAKE_TIMEOUT


async def test_a_server_that_is_not_there_is_a_bad_gateway_with_words(tmp_path: Path) -> None:
    async with serving(Origin()) as gone:
        pass
    async with weir(tmp_path, direct_http=direct(default=gone)) as running:
        heard = await talk(running.direct_http, GET)
        assert heard.startswith(b"HTTP/1.1 502 ") and b"connection refused" in heard
        assert (await running.records())[0][1].end is End.REFUSED


async def test_a_server_that_never_answers_is_a_gateway_timeout(tmp_path: Path) -> None:
    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        serving(origin) as server,
        weir(tmp_path, direct_http=direct(default=server), idle_timeout=0.5) as running,
    ):
        assert (await talk(running.direct_http, GET)).startswith(b"HTTP/1.1 504 ")


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", b"HTTP/1.1 200 OK\r\nX"]
)
async def test_a_response_that_is_none_is_a_bad_gateway(tmp_path: Path, answer: bytes) -> None:
    async with (
        serving(Origin(answer, close=True)) as server,
        weir(tmp_path, direct_http=direct(default=server)) as running,
    ):
        assert (await talk(running.direct_http, GET)).startswith(b"HTTP/1.1 502 ")


async def test_a_response_that_breaks_off_is_not_passed_on_as_whole(tmp_path: Path) -> None:
    origin = Origin(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", close=True)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        try:
            heard = await talk(running.direct_http, GET)
        except ConnectionResetError:
            heard = b""
        assert b"HTTP/1.1 502" not in heard and len(heard.partition(b"\r\n\r\n")[2]) < 10
        assert (await running.records())[0][1].end is End.SERVER_RESET


async def test_bytes_nobody_asked_for_never_answer_the_next_request(tmp_path: Path) -> None:
    origin = Origin(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", BYE)
    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        heard = await talk(running.direct_http, GET + LAST)
        assert heard == OK + BYE and origin.connections == 2


async def test_an_early_answer_is_heard_although_the_body_is_still_coming(tmp_path: Path) -> None:
    async with serving(Origin()) as gone:
        pass
    async with weir(tmp_path, direct_http=direct(default=gone)) as running:
        body = os.urandom(300_000)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert (await talk(running.direct_http, head, body)).startswith(b"HTTP/1.1 502 ")


async def test_a_client_that_leaves_frees_its_server(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()
        finally:
            left.set()

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        _, writer = await asyncio.open_connection(*running.direct_http)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        await until(lambda: bool(running.worker.gate.live))
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.wait_for(left.wait(), 5)
        assert (await running.records())[0][1].end in (End.CLIENT_GONE, End.CLIENT_RESET)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_large_bodies_pass_whole_and_a_reader_that_stalls_costs_one_buffer(tmp_path: Path, way: str) -> None:
    size = 24 << 20
    block = os.urandom(1 << 16)
    expected = hashlib.sha256(block * (size // len(block))).hexdigest()
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
            sent += len(block)

    async def swallow(reader: asyncio.StreamReader) -> str:
        await until(lambda: sent > 0)
        before = -1
        while before != sent:  # stalled: nothing moves any more
            before = sent
            await asyncio.sleep(0.15)
        assert sent < 14 << 20  # kernel buffers and one write buffer, not the body
        digest, left = hashlib.sha256(), size
        while left:
            data = await reader.read(min(left, 1 << 18))
            digest.update(data)
            left -= len(data)
        return digest.hexdigest()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if way == "up":
            digest = (await swallow(reader)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(writer)

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        reader, writer = await asyncio.open_connection(*running.direct_http, limit=1 << 16)
        if way == "up":
            writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(writer)
            heard = await reader.readuntil(b"\r\n\r\n") and await reader.readexactly(64)
            assert heard.decode() == expected
        else:
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
            assert await swallow(reader) == expected
        writer.close()


async def test_absolute_form_is_forwarded_in_origin_form_and_host_follows_the_uri(tmp_path: Path) -> None:
    origin = Origin(OK, BYE)
    async with serving(origin) as server, weir(tmp_path) as running:
        said = (
            b"GET http://%b/a?b HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\n\r\n"
            b"OPTIONS http://%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ) % ((str(server).encode(),) * 2)
        heard = await talk(running.mixed, *(said[n : n + 7] for n in range(0, len(said), 7)))
        assert heard.endswith(b"bye")
        assert origin.heard == [
            b"GET /a?b HTTP/1.1\r\nHost: %b\r\n\r\n" % str(server).encode(),
            b"OPTIONS * HTTP/1.1\r\nHost: %b\r\n\r\n" % str(server).encode(),
        ]
        [(connection, closed)] = await running.records()
        assert (connection.listener, connection.server) == ("forward", server)
        assert (closed.to_server, closed.to_client) == (len(said), len(heard))
        assert running.shown(TO_SERVER) == said


async def test_one_client_may_ask_for_several_servers(tmp_path: Path) -> None:
    one, two = Origin(OK), Origin(BYE)
    async with serving(one) as first, serving(two) as second, weir(tmp_path) as running:
        said = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n\r\n"
        last = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        heard = await talk(running.mixed, said % str(first).encode() + last % str(second).encode())
        assert heard == OK + BYE


async def test_every_forwarded_request_proves_its_user(tmp_path: Path) -> None:
    origin = Origin(OK)
    socks = SocksSettings(bind=(LOOPBACK,), users={"dev": "secret"})
    async with serving(origin) as server, weir(tmp_path, socks=socks) as running:
        proof = b"Proxy-Authorization: Basic ZGV2OnNlY3JldA==\r\n"
        said = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\n%b\r\n"
        to = str(server).encode()
        heard = await talk(running.mixed, said % (to, proof) + said % (to, b""))
        assert heard.startswith(OK) and heard[len(OK) :].startswith(b"HTTP/1.1 407 ")
        assert b"Proxy-Authorization" not in origin.heard[0]
        [(connection, closed)] = await running.records()
        assert (connection.user, closed.end) == ("dev", End.DENIED)


async def test_weir_does_not_forward_to_itself(tmp_path: Path) -> None:
    dial = DialSettings(own_addresses=frozenset({Endpoint("127.0.0.1", 4711)}))
    async with weir(tmp_path, dial=dial) as running:
        heard = await talk(running.mixed, b"GET http://localhost:4711/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert heard.startswith(b"HTTP/1.1 403 ")


async def test_a_server_over_tls_is_reached_and_its_certificate_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    origin = Origin(BYE)
    for trusted, status in ((authority, b"200"), (stranger, b"502")):
        trust = ssl.create_default_context()
        trusted.configure_trust(trust)
        monkeypatch.setattr("appliance.engine.forward.upstream._tls", lambda trust=trust: trust)
        async with serving(origin, ssl=context) as server:
            route = Route(upstream=Endpoint("localhost", server.port), use_tls=True)
            settings = DirectHttpSettings(bind=(LOOPBACK,), routes=(route,))
            async with weir(tmp_path / status.decode(), direct_http=settings) as running:
                heard = await talk(running.direct_http, LAST)
                assert heard.startswith(b"HTTP/1.1 " + status)
                if trusted is stranger:
                    assert b"certificate" in heard
    assert len(origin.heard) == 1


async def test_a_client_beyond_the_limits_is_told_to_come_back(tmp_path: Path) -> None:
    limits = LimitSettings(max_connections=1)
    async with weir(tmp_path, direct_http=direct(default=LOOPBACK), limits=limits) as running:
        _, writer = await asyncio.open_connection(*running.direct_http)
        await until(lambda: len(running.worker.gate.live) == 1)
        assert (await talk(running.direct_http)).startswith(b"HTTP/1.1 503 ")
        writer.close()


async def test_a_drain_lets_an_exchange_finish_and_ends_its_connection(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        writer.write(OK)

    async with serving(origin) as server, weir(tmp_path, direct_http=direct(default=server)) as running:
        at = running.direct_http
        heard = asyncio.ensure_future(talk(at, GET))
        await until(lambda: bool(running.worker.gate.live))
        _, idle = await asyncio.open_connection(*at)
        await until(lambda: len(running.worker.gate.live) == 2)
        draining = asyncio.ensure_future(running.worker.drain(10))
        await until(lambda: running.worker.gate.draining)
        go_on.set()
        assert b"Connection: close" in await heard
        await asyncio.wait_for(draining, 5)
        ends = {closed.end for _, closed in running.closed}
        assert ends == {End.CLOSED, End.DRAINED}
        idle.close()
