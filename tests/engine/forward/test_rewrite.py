from appliance.engine.forward.head import Request, Response, parse_request, parse_response
from appliance.engine.forward.rewrite import Edits, Variables, request_head, response_head, upgrade_of
from appliance.engine.settings import HeaderEdits

NO_EDITS = Edits(HeaderEdits())
WHO = Variables("192.0.2.1", "http", "a.example")


def request(*lines: str, version: str = "1.1") -> Request:
    parsed = parse_request("\r\n".join((f"GET /a HTTP/{version}", "Host: a.example", *lines)).encode())
    assert isinstance(parsed, Request)
    return parsed


def sent(parsed: Request, edits: Edits = NO_EDITS, host: bytes | None = None) -> list[str]:
    head = request_head(parsed, b"/b", host, edits, WHO)
    assert head.endswith(b"\r\n\r\n")
    return head.decode().split("\r\n")[:-2]


def answered(*lines: str, status: str = "200 OK", close: bool = False, edits: Edits = NO_EDITS) -> list[str]:
    parsed = parse_response("\r\n".join((f"HTTP/1.0 {status}", *lines)).encode())
    assert isinstance(parsed, Response)
    return response_head(parsed, edits, WHO, close=close).decode().split("\r\n")[:-2]


def test_kept_lines_keep_order_case_and_spacing() -> None:
    lines = ["x-B:2", "X-a:   1", "x-B:  3"]
    assert sent(request(*lines)) == ["GET /b HTTP/1.1", "Host: a.example", *lines]


def test_hop_by_hop_headers_end_here_and_so_does_what_connection_names() -> None:
    lines = ["Connection: close, x-mine, host, content-length", "X-Mine: 1", "Keep-Alive: 5", "TE: gzip"]
    proxies = ["Proxy-Connection: close", "Proxy-Authorization: Basic x", "Upgrade: websocket", "X: y"]
    assert sent(request(*lines, *proxies, "Content-Length: 3")) == [
        "GET /b HTTP/1.1",
        "Host: a.example",
        "X: y",
        "Content-Length: 3",
    ]


def test_a_given_host_replaces_the_clients_in_place() -> None:
    assert sent(request("X: y"), host=b"b.example:81")[1:] == ["Host: b.example:81", "X: y"]


def test_an_http_1_0_request_stays_one() -> None:
    assert sent(request("Connection: keep-alive", version="1.0")) == [
        "GET /b HTTP/1.0",
        "Host: a.example",
        "Connection: close",
    ]


def test_what_is_removed_is_the_clients_and_what_is_added_is_ours() -> None:
    edits = Edits(
        HeaderEdits(
            add_request=(("X-Real-IP", "$remote_addr"), ("X-Where", "$scheme://$host $other")),
            remove_request=("x-real-ip",),
            add_response=(("X-Proxy-Version", "1.0"),),
        )
    )
    assert sent(request("X-Real-IP: 10.0.0.1"), edits)[2:] == [
        "X-Real-IP: 192.0.2.1",
        "X-Where: http://a.example $other",
    ]
    assert answered("X: y", edits=edits) == ["HTTP/1.1 200 OK", "X: y", "X-Proxy-Version: 1.0"]


def test_upgrades_pass_but_not_to_h2c() -> None:
    assert upgrade_of(request("Connection: Upgrade", "Upgrade: websocket"))
    assert sent(request("Connection: Upgrade", "Upgrade: websocket"))[2:] == [
        "Upgrade: websocket",
        "Connection: Upgrade",
    ]
    assert not upgrade_of(request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"))
    assert not upgrade_of(request("Upgrade: websocket"))
    assert not upgrade_of(request("Connection: Upgrade", "Upgrade: websocket", version="1.0"))


def test_responses_lose_their_hop_and_say_when_this_connection_ends() -> None:
    assert answered("Connection: keep-alive, X-Hop", "X-Hop: 1", "X: y") == ["HTTP/1.1 200 OK", "X: y"]
    assert answered("X: y", close=True) == ["HTTP/1.1 200 OK", "X: y", "Connection: close"]
    switched = answered("Upgrade: websocket", "Connection: upgrade", status="101 Switching Protocols")
    assert switched == ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
