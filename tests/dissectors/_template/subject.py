"""The protocol under law: well-formed conversations, and what an adversary could send for ever."""

from hypothesis import strategies as st

from appliance.dissectors._template import SPEC
from appliance.model.direction import TO_CLIENT, TO_SERVER
from tests.laws.subject import Subject, Turn

WORDS = st.text("ABC", min_size=1, max_size=4).map(str.encode)
TEXTS = st.text("abc +-", max_size=10).map(lambda text: text.strip().encode())


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Turns; now and then several commands in one, answered together."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 3))
        commands = [b"%b %b\r\n" % (draw(WORDS), draw(TEXTS) or b"x") for _ in range(count)]
        replies = [draw(st.sampled_from((b"+", b"-"))) + draw(TEXTS) + b"\r\n" for _ in range(count)]
        turns += [(TO_SERVER, b"".join(commands)), (TO_CLIENT, b"".join(replies))]
    return turns


SUBJECT = Subject(
    spec=SPEC,
    conversations=conversations(),
    probe=[(TO_SERVER, b"GET probe\r\n"), (TO_CLIENT, b"+found\r\n")],
    probe_target="probe",
    placed=frozenset(("start", "size", "started_ns", "ended_ns")),
    endless={
        "commands": ([], TO_SERVER, b"A b\r\n"),
        "a line": ([], TO_SERVER, b"A"),
        "replies nobody asked for": ([], TO_CLIENT, b"+\r\n"),
    },
)
