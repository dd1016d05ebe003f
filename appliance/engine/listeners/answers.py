"""The few HTTP answers that are ours: what a proxy says when it cannot do what it was asked (RFC 9110 §15)."""

from appliance.model.connection import End

REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

STATUS = {
    End.DENIED: 403,
    End.LIMITED: 503,
    End.DRAINED: 503,
    End.CONNECT_TIMEOUT: 504,
    End.IDLE_TIMEOUT: 504,
    End.HANDSHAKE_TIMEOUT: 408,
    End.PROTOCOL_ERROR: 400,
}

CHALLENGE = b'Proxy-Authenticate: Basic realm="weir", charset="UTF-8"\r\n'


def answer(status: int, text: str, extra: bytes = b"", *, body: bool = True) -> bytes:
    """A whole response that closes the connection. ``extra`` is header lines, each with its CRLF.

    ``text`` says what failed, for the person at the other end; ``body`` is False for answers to HEAD.
    """
    content = f"weir: {text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n"
    ).encode()
    return b"%b%b\r\n%b" % (head, extra, content if body else b"")


def status_of(end: End) -> int:
    """The status for a server that could not be reached; 502 unless the reason has its own."""
    return STATUS.get(end, 502)
