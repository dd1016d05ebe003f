"""HTTP/1 under law: conversations of every framing, and what an adversary could send for ever."""

from hypothesis import strategies as st

from appliance.dissectors.http1 import SPEC
from appliance.model.direction import TO_CLIENT, TO_SERVER
from tests.laws.subject import Subject, Turn

TOKENS = st.text("abcdefXYZ-019", min_size=1, max_size=8)
VALUES = st.text("abc XYZ;=,/\"'019", max_size=12).map(str.strip)
FIELDS = st.lists(st.tuples(st.sampled_from(("Accept", "X-Thing", "Cookie", "user-agent")), VALUES), max_size=4)
CONTENT = st.binary(max_size=40) | st.sampled_from(
    (b"HTTP/1.1 200 OK\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n0\r\n\r\n")
)


@st.composite
def messages(draw: st.DrawFn, line: str, bodiless: bool = False) -> bytes:
    """A message with a body in one of the framings that leave the connection open."""
    lines = [line, *(f"{name}: {value}" for name, value in draw(FIELDS))]
    if line.startswith(("GET", "POST", "HEAD", "PUT", "OPTIONS")):
        lines.insert(1, "Host: example.com")
    framing = draw(st.sampled_from(("none", "length", "chunked")))
    if framing == "none" and not line.startswith("HTTP/"):
        body = b""
    elif framing == "chunked":
        lines.append("Transfer-Encoding: chunked")
        pieces = [piece for piece in draw(st.lists(CONTENT, max_size=3)) if piece]
        extension = draw(st.sampled_from((b"", b";a=b", b';q="x y"')))
        body = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        trailer = draw(st.sampled_from((b"", b"X-Sum: 1\r\n")))
        body += b"0\r\n" + trailer + b"\r\n"
    else:
        body = draw(CONTENT)
        lines.append(f"Content-Length: {len(body)}")
    if bodiless:
        body = b""
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[bytes, bytes]:
    method = draw(st.sampled_from(("GET", "POST", "HEAD", "PUT", "OPTIONS")))
    target = draw(st.sampled_from(("/", "/a?b=c", "*", "http://other.example:81/x")))
    status = draw(st.sampled_from((200, 204, 304, 404, 503)))
    request = draw(messages(f"{method} {target} HTTP/1.1"))
    interim = draw(
        st.sampled_from((b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"))
    )
    response = draw(messages(f"HTTP/1.1 {status} Words", bodiless=method == "HEAD" or status in (204, 304)))
    return request, interim + response


@st.composite
def handovers(draw: st.DrawFn, accepted: bool) -> tuple[bytes, bytes]:
    """A request for another protocol, and its answer."""
    if draw(st.booleans()):
        request = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
        answer = b"HTTP/1.1 200 Established\r\n\r\n" if accepted else b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno"
    else:
        request = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        answer = b"HTTP/1.1 101 Switching\r\n\r\n" if accepted else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"
    return request, answer


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Turns; now and then several requests in one, answered together."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        together = draw(st.lists(exchanges() | handovers(accepted=False), min_size=1, max_size=3))
        turns.append((TO_SERVER, b"".join(request for request, _ in together)))
        turns.append((TO_CLIENT, b"".join(response for _, response in together)))
    return turns


@st.composite
def farewells(draw: st.DrawFn) -> list[Turn]:
    """Nothing, or a hand-over after which the connection speaks no HTTP."""
    if draw(st.integers(0, 3)):
        return []
    request, answer = draw(handovers(accepted=True))
    return [(TO_SERVER, request + draw(CONTENT)), (TO_CLIENT, answer + draw(CONTENT))]


ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SUBJECT = Subject(
    spec=SPEC,
    conversations=conversations(),
    farewells=farewells(),
    probe=[
        (TO_SERVER, b"GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n"),
        (TO_CLIENT, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ],
    probe_target="/probe",
    placed=frozenset(("start", "size", "started_ns", "ended_ns")),
    endless={
        "pipelined requests": ([], TO_SERVER, ASK),
        "pipelined bare line feeds": ([], TO_SERVER, b"GET / HTTP/1.1\nHost: a\n\n"),
        "a start line": ([], TO_SERVER, b"A"),
        "a target": ([(TO_SERVER, b"GET ")], TO_SERVER, b"/a"),
        "fields": ([(TO_SERVER, ASK[:-2])], TO_SERVER, b"a: b\r\n"),
        "one field": ([(TO_SERVER, ASK[:-2] + b"a:")], TO_SERVER, b" b"),
        "blank lines": ([], TO_SERVER, b"\r\n"),
        "interim responses": ([(TO_SERVER, ASK)], TO_CLIENT, b"HTTP/1.1 100 Continue\r\n\r\n"),
        "responses nobody asked for": ([], TO_CLIENT, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        "an open body": ([(TO_SERVER, ASK)], TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n"),
        "small chunks": (
            [(TO_CLIENT, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")],
            TO_CLIENT,
            b"1\r\na\r\n",
        ),
        "trailers": (
            [(TO_CLIENT, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")],
            TO_CLIENT,
            b"a: b\r\n",
        ),
        "a chunk extension": (
            [(TO_CLIENT, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=")],
            TO_CLIENT,
            b"a",
        ),
        "a quoted chunk extension": (
            [(TO_CLIENT, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")],
            TO_CLIENT,
            b'1;a="\\"',
        ),
        "bytes behind CONNECT": ([(TO_SERVER, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")], TO_SERVER, b"x"),
        "pipelined uploads": (
            [],
            TO_SERVER,
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200000,
        ),
    },
)
