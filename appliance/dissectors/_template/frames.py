"""Lines on the wire and as values: no state, no direction."""


def read_command(line: bytes) -> tuple[bytes, bytes]:
    """A command's word and the rest; the line comes without its end."""
    word, _, rest = line.partition(b" ")
    return word, rest


def read_reply(line: bytes) -> tuple[bool, bytes] | None:
    """Whether it went well and what is said about it; None when the line is no reply."""
    return (line[:1] == b"+", line[1:]) if line[:1] in (b"+", b"-") else None
