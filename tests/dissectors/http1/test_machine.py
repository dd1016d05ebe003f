"""HTTP/1 by example: framing, pairing, hand-over, holes, and what is said about peers' mistakes."""

import pytest

from appliance.dissectors.http1 import SPEC, Request, Response
from appliance.dissectors.kit.spec import NEVER, Capture, Desynchronised, Event, Switched, Violation
from appliance.model.direction import TO_CLIENT, TO_SERVER, Direction
from appliance.model.exchange import Exchange, Missing

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
CONNECT = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"


class Talk:
    """A machine and its fold, told the time by a counter."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.machine = SPEC.new(capture or Capture())
        self.fold = SPEC.fold()
        self.events: list[Event] = []
        self.exchanges: list[Exchange] = []
        self.now = 0

    def client(self, data: bytes) -> "Talk":
        return self._note(self.machine.receive(TO_SERVER, data, self._tick()))

    def server(self, data: bytes) -> "Talk":
        return self._note(self.machine.receive(TO_CLIENT, data, self._tick()))

    def lose(self, direction: Direction, count: int) -> "Talk":
        return self._note(self.machine.lose(direction, count, self._tick()))

    def end(self, *directions: Direction) -> "Talk":
        for direction in directions or (TO_SERVER, TO_CLIENT):
            self._note(self.machine.close(direction, self._tick()))
        self.exchanges += self.fold.close(self.now)
        return self

    @property
    def violations(self) -> list[str]:
        return [event.kind for event in self.events if isinstance(event, Violation)]

    def _tick(self) -> int:
        self.now += 10
        return self.now

    def _note(self, events: object) -> "Talk":
        for event in events:  # type: ignore[attr-defined]
            self.events.append(event)
            self.exchanges += self.fold.add(event)
        return self


def test_an_exchange_says_who_asked_what_when_and_how_much() -> None:
    talk = Talk().client(GET[:10]).client(GET[10:]).server(OK[:-1]).server(OK[-1:])
    [exchange] = talk.exchanges
    assert (exchange.method, exchange.target, exchange.status, exchange.domain) == ("GET", "/", "200", "a.example")
    assert (exchange.started_ns, exchange.request_ended_ns, exchange.first_byte_ns, exchange.ended_ns) == (
        10,
        20,
        30,
        40,
    )
    assert (exchange.request_bytes, exchange.response_bytes) == (len(GET), len(OK))
    assert exchange.request_head == GET[:-2]
    assert exchange.response.head == b"ok"
    assert (exchange.missing, exchange.error, exchange.violations) == (0, None, ())


def test_order_and_case_of_fields_are_kept() -> None:
    head = b"GET /x HTTP/1.1\r\nhOsT:  a \r\nX-B: 1\r\nX-A: 2\r\nx-b: 3\r\n"
    assert Talk().client(head + b"\r\n").server(OK).exchanges[0].request_head == head


def test_pipelined_requests_are_answered_in_order() -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3))
    talk = Talk().client(requests).server(OK * 3)
    assert [exchange.target for exchange in talk.exchanges] == ["/0", "/1", "/2"]


def test_a_chunked_body_is_kept_without_its_chunks_and_its_trailers_are_noted() -> None:
    body = b"5;x=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 9\r\n\r\n"
    talk = Talk().client(GET).server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    [exchange] = talk.exchanges
    assert exchange.response.head == b"hello world"
    assert exchange.metadata is not None and exchange.metadata["trailers"]
    assert next(event for event in talk.events if isinstance(event, Response)).trailers == b"X-Sum: 9\r\n"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_responses_have_no_body_whatever_they_say(status: bytes) -> None:
    talk = Talk().client(GET * 2).server(b"HTTP/1.1 " + status + b"\r\nContent-Length: 9\r\n\r\n" + OK)
    assert [exchange.response.head for exchange in talk.exchanges] == [b"", b"ok"]


def test_a_response_to_head_has_no_body() -> None:
    talk = Talk().client(GET.replace(b"GET", b"HEAD") + GET).server(OK[:-2] + OK)
    assert [exchange.response.head for exchange in talk.exchanges] == [b"", b"ok"]


def test_interim_responses_belong_to_the_exchange_that_follows() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    [exchange] = Talk().client(GET).server(interim + OK).exchanges
    assert exchange.metadata == {"informational": (100, 103)}
    assert exchange.response_bytes == len(interim + OK)


def test_an_http_1_0_response_ends_with_the_connection() -> None:
    talk = Talk().client(GET).server(b"HTTP/1.0 200 OK\r\n\r\nsome").server(b"thing")
    assert talk.exchanges == []
    [exchange] = talk.end().exchanges
    assert exchange.response.head == b"something"
    assert exchange.missing == 0


def test_an_accepted_upgrade_hands_both_streams_over() -> None:
    ask = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    accept = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    talk = Talk().client(ask).client(b"early").server(accept + b"\x81\x00")
    assert talk.exchanges[0].status_code == 101
    assert talk.events[-1] == Switched("websocket", len(accept), len(ask), b"early")
    assert talk.machine.unfinished(TO_SERVER) == talk.machine.unfinished(TO_CLIENT) == NEVER


def test_an_ignored_upgrade_leaves_the_connection_to_http() -> None:
    ask = b"GET /h2 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    talk = Talk().client(ask + GET).server(OK * 2)
    assert [exchange.target for exchange in talk.exchanges] == ["/h2", "/"]


def test_connect_hands_over_after_a_2xx_and_not_otherwise() -> None:
    ask = b"CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n"
    refused = Talk().client(ask).server(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n").client(ask)
    accepted = refused.server(b"HTTP/1.1 200 Established\r\n\r\n")
    assert [exchange.status_code for exchange in accepted.exchanges] == [407, 200]
    assert accepted.exchanges[1].domain == "db.example"
    assert isinstance(accepted.events[-1], Switched)


@pytest.mark.parametrize(
    ("target", "domain"),
    [("/", "a.example"), ("*", "a.example"), ("http://B.example:81/x", "b.example"), ("http://[::1]:80/", "::1")],
)
def test_the_domain_is_the_targets_when_it_names_one(target: str, domain: str) -> None:
    request = b"OPTIONS %b HTTP/1.1\r\nHost: A.example:8080\r\n\r\n" % target.encode()
    assert Talk().client(request).server(OK).exchanges[0].domain == domain


def test_an_answer_may_come_before_the_request_has_ended() -> None:
    talk = Talk().client(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    talk.server(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    assert talk.exchanges == []
    [exchange] = talk.end().exchanges
    assert (exchange.method, exchange.status_code) == ("PUT", 413)
    assert exchange.missing & Missing.REQUEST_UNFINISHED


def test_a_request_that_is_never_answered_says_so() -> None:
    [exchange] = Talk().client(GET).end().exchanges
    assert (exchange.status, exchange.ended_ns) == ("", 0)
    assert exchange.missing == Missing.RESPONSE_UNFINISHED
    assert exchange.error == "the connection ended before the response"


def test_a_response_nobody_asked_for_is_recorded() -> None:
    [exchange] = Talk().server(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").exchanges
    assert (exchange.method, exchange.status_code) == ("", 408)
    assert exchange.error == "no request was seen for this response"


SMUGGLING = {
    "http.content-length-and-chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "http.content-length-conflict": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "http.content-length-repeated": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "http.content-length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
    "http.transfer-encoding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "http.framing-unknown": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    "http.space-before-colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "http.bare-lf": b"GET / HTTP/1.1\nHost: a\n\n",
    "http.bare-cr": b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    "http.nul": b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "http.obs-fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "http.leading-space": b"GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n",
    "http.field-name": b"GET / HTTP/1.1\r\nHost: a\r\nF@o(: b\r\n\r\n",
    "http.field-value": b"GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
    "http.field-without-colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "http.host-missing": b"GET / HTTP/1.1\r\n\r\n",
    "http.host-repeated": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "http.version": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "http.start-line-space": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "http.start-line": b"\x16\x03\x01\r\n",
    "http.start-line-too-long": b"GET /" + b"a" * 70_000,
    "http.head-too-large": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
    "http.target": b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "http.method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "http.chunk-size": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "http.chunk-end": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n",
    "http.chunk-extension": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;=\r\na\r\n0\r\n\r\n",
    "http.chunked-in-1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "http.trailer": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
    "http.data-after-close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET,
}


@pytest.mark.parametrize("kind", SMUGGLING)
def test_what_two_implementations_would_read_differently_is_named(kind: str) -> None:
    talk = Talk().client(SMUGGLING[kind])
    assert kind in talk.violations
    assert talk.end().exchanges, "the request is on record all the same"


def test_one_kind_of_violation_is_reported_once_per_message() -> None:
    assert Talk().client(b"GET / HTTP/1.1\n" + b"a: b\n" * 99 + b"\n").violations.count("http.bare-lf") == 1


def test_a_body_that_is_too_large_is_kept_at_both_ends_with_its_length_and_digest() -> None:
    content = bytes(range(256)) * 40
    talk = Talk(Capture(body_head=100, body_tail=50)).client(GET)
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    for begin in range(0, len(response), 700):
        talk.server(response[begin : begin + 700])
    [exchange] = talk.exchanges
    assert (exchange.response.head, exchange.response.tail) == (content[:100], content[-50:])
    assert exchange.response.length == len(content)
    assert exchange.response.digest is not None
    assert exchange.missing == Missing.RESPONSE_TRUNCATED


def test_when_only_heads_are_wanted_bodies_are_counted_and_not_kept() -> None:
    [exchange] = Talk(Capture(headers_only=True)).client(GET).server(OK).exchanges
    assert exchange.response == (2, b"", b"", None, 0)
    assert exchange.missing == Missing.NOT_RECORDED


# Holes


def test_a_hole_inside_a_body_of_known_length_is_skipped() -> None:
    talk = Talk().client(GET * 2).server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
    talk.lose(TO_CLIENT, 994).server(b"xyz" + OK)
    first, second = talk.exchanges
    assert (first.response.length, first.response.missing, first.response.digest) == (1000, 994, None)
    assert (first.response.head, first.response.tail) == (b"abc", b"xyz")
    assert first.missing == Missing.RESPONSE_GAP
    assert second.missing == 0


def chunked(pieces: int, size: int) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (size, b"%d" % (number % 10) * size) for number in range(pieces)) + b"0\r\n\r\n"


def test_a_large_chunked_download_of_which_the_relay_skipped_the_middle_ends_at_its_last_chunk() -> None:
    body = chunked(100, 8192)
    talk = Talk().client(GET).server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body[:300_000])
    talk.lose(TO_CLIENT, len(body) - 300_000 - 65_536).server(body[-65_536:]).client(GET).server(OK)
    first, second = talk.exchanges
    assert first.missing == Missing.RESPONSE_GAP
    assert abs(first.response.length - 819_200) < 2_000, "framing in the hole is counted as content"
    assert first.response.tail.endswith(b"9" * 8192) and b"\r\n" not in first.response.tail
    assert second.missing == 0
    assert any(isinstance(event, Desynchronised) for event in talk.events)


def test_a_chunked_download_whose_end_is_lost_is_over_when_the_client_asks_again() -> None:
    talk = Talk().client(GET).server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
    talk.lose(TO_CLIENT, 5000).client(GET).server(OK)
    first, second = talk.exchanges
    assert (first.missing, second.response.head) == (Missing.RESPONSE_GAP, b"ok")
    assert second.missing == Missing.RESPONSE_GAP, "found behind a hole: what it answers is in doubt"


def test_a_chunked_upload_whose_end_is_lost_is_over_when_the_server_answers() -> None:
    talk = Talk().client(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
    talk.lose(TO_SERVER, 5000).client(b"tail").server(OK).client(GET).server(OK)
    first, second = talk.exchanges
    assert (first.method, first.missing, first.status) == ("POST", Missing.REQUEST_GAP, "200")
    assert (second.method, second.missing) == ("GET", 0)


def test_a_response_that_was_lost_whole_leaves_its_request_on_record() -> None:
    talk = Talk().client(GET).lose(TO_CLIENT, len(OK)).client(GET).server(OK)
    assert [exchange.status for exchange in talk.exchanges] == ["", "200"]
    assert talk.exchanges[0].error == "the response was not captured"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REFUSED = b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno"
PIPELINED = {  # requests that came in one piece, and their answers
    "upgrade behind get": (GET + UPGRADE, CHUNKED + b"0\r\n\r\n" + OK),
    "connect behind get": (GET + CONNECT, CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + REFUSED),
    "upgrade behind head": (GET.replace(b"GET", b"HEAD") + UPGRADE, CHUNKED + OK),
    "get behind upgrade": (UPGRADE + GET, CHUNKED + b"0\r\n\r\n" + OK),
    "get behind connect": (CONNECT + GET, REFUSED + CHUNKED + b"0\r\n\r\n"),
    "two upgrades behind get": (GET + UPGRADE + UPGRADE, CHUNKED + b"0\r\n\r\n" + OK + CHUNKED + b"0\r\n\r\n"),
    "get behind upgrade behind get": (GET + UPGRADE + GET, CHUNKED + b"1\r\na\r\n0\r\n\r\n" + OK + OK),
}


@pytest.mark.parametrize("case", PIPELINED)
def test_wherever_a_pipelined_answer_has_a_hole_a_client_that_goes_on_is_heard(case: str) -> None:
    requests, answers = PIPELINED[case]
    for begin in range(len(answers)):
        for end in (begin + 1, begin + 20, len(answers)):
            talk = Talk().client(requests).server(answers[:begin]).lose(TO_CLIENT, min(end, len(answers)) - begin)
            talk.server(answers[end:])
            for number in (b"1", b"2"):
                talk.client(GET.replace(b"/", b"/probe" + number, 1)).server(OK[:-2] + b"n" + number)
            opaque = any(isinstance(event, Violation) and event.fatal for event in talk.events)
            answered = {exchange.target: exchange.response.head for exchange in talk.exchanges}
            assert answered.get("/probe2") == b"n2" or opaque, f"{begin}..{end}: {talk.events}"


def test_a_client_that_goes_on_behind_an_upgrade_does_not_lose_an_answer_that_is_to_come() -> None:
    talk = Talk().client(GET).lose(TO_CLIENT, len(OK)).client(UPGRADE).client(GET).server(OK).server(OK)
    assert [(exchange.target, exchange.status) for exchange in talk.exchanges] == [
        ("/", ""),
        ("/ws", "200"),
        ("/", "200"),
    ]


def test_a_client_is_heard_although_what_was_held_for_it_was_too_much() -> None:
    held = GET + b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70_000
    talk = Talk().client(UPGRADE).client(held).lose(TO_CLIENT, 2 * len(OK))
    talk.client(GET.replace(b"/", b"/on", 1)).server(OK)
    assert [exchange.target for exchange in talk.exchanges if exchange.status] == ["/on"]


def test_answers_that_a_hole_swallowed_with_a_chunked_one_do_not_shift_those_that_follow() -> None:
    talk = Talk().client(GET * 3).server(CHUNKED).lose(TO_CLIENT, 1).server(b"\r\n\r\n" + OK + CHUNKED + b"0\r\n\r\n")
    talk.client(GET.replace(b"/", b"/on", 1)).server(OK)
    assert [(exchange.target, exchange.status) for exchange in talk.exchanges[1:]] == [
        ("/", ""),
        ("/", ""),
        ("/on", "200"),
    ]


@pytest.mark.parametrize("requests", [GET * 3, GET + UPGRADE + GET, UPGRADE + CONNECT + GET])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
def test_when_nobody_knows_which_of_several_requests_was_answered_later_pairs_are_right(
    requests: bytes, interim: bytes
) -> None:
    talk = Talk().client(requests).lose(TO_CLIENT, 2 * len(OK)).server(interim + OK)
    assert sorted(exchange.status for exchange in talk.exchanges) == ["", "", "", "200"]
    talk.client(GET.replace(b"/", b"/on", 1)).server(OK[:-2] + b"on")
    last = talk.exchanges[-1]
    assert (last.target, last.response.head, last.missing) == ("/on", b"on", 0)


def test_a_status_line_that_begins_a_piece_ends_a_chunked_body_with_a_hole() -> None:
    talk = Talk().client(GET * 2).server(CHUNKED + b"5\r\nhel").lose(TO_CLIENT, 9).server(OK)
    assert [exchange.response.head for exchange in talk.exchanges] == [b"hel", b"ok"]


def test_content_behind_a_hole_that_looks_like_a_head_does_not_take_what_follows_for_its_body() -> None:
    content = b"HTTP/1.1 200 OK\r\n\r\n"
    talk = Talk().client(GET).server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r" % len(content))
    talk.lose(TO_CLIENT, 1).server(content).client(GET.replace(b"/", b"/on", 1)).server(OK)
    assert (talk.exchanges[-1].target, talk.exchanges[-1].response.head) == ("/on", b"ok")


def test_what_came_behind_a_hole_while_it_was_not_known_whose_it_is_is_read_when_it_is_ours() -> None:
    talk = Talk().client(CONNECT + GET[:-6]).lose(TO_SERVER, 6).client(GET.replace(b"/", b"/on", 1))
    talk.server(REFUSED + OK * 2)
    assert [(exchange.target, exchange.missing) for exchange in talk.exchanges] == [
        ("a.example:443", 0),
        ("/", Missing.REQUEST_GAP | Missing.REQUEST_UNFINISHED),
        ("/on", 0),
    ]


def test_of_what_a_client_said_early_the_bytes_before_a_hole_are_handed_over() -> None:
    talk = Talk().client(CONNECT + b"ear").lose(TO_SERVER, 3).client(b"ly").server(b"HTTP/1.1 200 OK\r\n\r\n")
    assert talk.events[-1] == Switched("", 19, len(CONNECT), b"ear", 5)


def test_requests_and_responses_are_told_apart_by_their_events() -> None:
    request, response = Talk().client(GET).server(OK).events
    assert isinstance(request, Request) and isinstance(response, Response)
    assert (request.direction, response.direction) == (TO_SERVER, TO_CLIENT)
    assert SPEC.encode is not None and (SPEC.encode(request), SPEC.encode(response)) == (GET, OK)
