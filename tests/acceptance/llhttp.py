"""Judge the HTTP/1 dissector by llhttp's own test cases.

Run as ``python -m tests.acceptance.llhttp DIR``, where DIR holds llhttp's ``test/request`` and ``test/response``
(markdown). Every case goes through httptools (llhttp in strict mode) and through the dissector. Held: the same number
of complete messages; a violation wherever llhttp stops with an error; nothing raises. Where llhttp stops, messages
count up to the first violation that it stops at, because the dissector, as an observer, reads on where it can.

One case differs and is meant to: ``GET /`` without a version (HTTP/0.9), whose response would have no head. The
dissector calls it ``http.start-line`` and stays opaque.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import httptools

from appliance.dissectors.http1 import SPEC, Request, Response
from appliance.dissectors.kit.spec import Capture, Violation
from appliance.model.direction import TO_CLIENT, TO_SERVER

CASE = re.compile(r"<!-- meta=(\{.*?\}) -->\s*```http\n(.*?)```\s*```log\n(.*?)```", re.DOTALL)
PAUSES = ("21", "22", "23")  # llhttp's error codes for being paused, by its user or by an upgrade
# What the dissector reports and llhttp lets pass: they do not end the count.
LET_PASS = frozenset(
    (
        "http.host-missing",
        "http.host-repeated",
        "http.status",
        "http.chunked-in-1.0",
        "http.transfer-encoding",
        "http.framing-unknown",
        "http.content-length-repeated",
        "http.incomplete-message",
    )
)
MEANT = b"GET /\r\n\r\n"  # HTTP/0.9, see above


@dataclass(frozen=True)
class Case:
    name: str
    request: bool
    wire: bytes
    error: str  # llhttp's words; empty when it accepts


@dataclass(frozen=True)
class Verdict:
    messages: int
    stopped: bool
    why: str


def cases(directory: Path) -> list[Case]:
    """Every case that is meant for strict mode."""
    found = []
    for file in sorted(directory.glob("re*/*.md")):
        content = file.read_text()
        for match in CASE.finditer(content):
            kind = re.search(r'"type":\s*"([a-z-]+)"', match[1])
            if kind is None or kind[1] not in ("request", "response"):
                continue
            error = re.search(r'error code=(\d+) reason="(.*?)"\n', match[3])
            stops = error is not None and error[1] not in PAUSES
            line = content[: match.start()].count("\n") + 1
            name = f"{file.parent.name}/{file.name}:{line}"
            found.append(Case(name, kind[1] == "request", wire(match[2]), error[2] if error and stops else ""))
    return found


def wire(source: str) -> bytes:
    """A case's bytes, by the substitutions of llhttp's own test runner."""
    source = source.removesuffix("\n")
    source = re.sub(r"\\(\r\n|\r|\n)", "", source)
    source = re.sub(r"\r\n|\r|\n", "\r\n", source)
    for escape, meaning in (("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t"), ("\\f", "\f")):
        source = source.replace(escape, meaning)
    source = re.sub(r"\\x([0-9a-fA-F]+)", lambda match: chr(int(match[1], 16)), source)
    source = re.sub(r"\\([0-7]{1,3})", lambda match: chr(int(match[1], 8)), source)
    source = re.sub(r"\$\{'(.)'\.repeat\((\d+)\)\}", lambda match: match[1] * int(match[2]), source)
    return source.encode()


def by_httptools(case: Case) -> Verdict:
    class Counter:
        messages = 0

        def on_message_complete(self) -> None:
            self.messages += 1

    counter = Counter()
    parser = httptools.HttpRequestParser(counter) if case.request else httptools.HttpResponseParser(counter)
    try:
        parser.feed_data(case.wire)
    except httptools.HttpParserUpgrade:
        return Verdict(counter.messages, False, "upgrade")
    except httptools.HttpParserError as error:
        return Verdict(counter.messages, True, str(error))
    return Verdict(counter.messages, False, "")


def by_dissector(case: Case, stopped: bool) -> tuple[Verdict, list[str]]:
    machine = SPEC.new(Capture())
    direction = TO_SERVER if case.request else TO_CLIENT
    events = list(machine.receive(direction, case.wire, 0))
    open_end = len(events)
    events += machine.close(direction, 0)
    messages = 0
    violations = [event.kind for event in events if isinstance(event, Violation)]
    for event in events[:open_end]:
        if stopped and isinstance(event, Violation) and (event.kind not in LET_PASS or event.fatal):
            break
        if isinstance(event, Request | Response) and event.complete:
            messages += 1
    return Verdict(messages, bool(violations), ""), violations


def judge(directory: Path) -> int:
    """Print the differences and the numbers; return how many cases differ."""
    agreed = differences = errors = unseen = 0
    for case in cases(directory):
        theirs = by_httptools(case)
        try:
            ours, violations = by_dissector(case, theirs.stopped)
        except Exception as error:  # a raise is what is looked for
            print(f"RAISED  {case.name}: {error!r}")  # noqa: T201
            differences += 1
            continue
        errors += bool(case.error or theirs.stopped)
        named = [kind for kind in violations if kind not in ("http.host-missing", "http.incomplete-message")]
        if (case.error or theirs.stopped) and not named:
            unseen += 1
            print(f"UNSEEN  {case.name}: {case.error or theirs.why}; only {violations}")  # noqa: T201
        if ours.messages == theirs.messages:
            agreed += 1
        else:
            differences += case.wire != MEANT
            meant = "MEANT" if case.wire == MEANT else "COUNT"
            print(  # noqa: T201
                f"{meant}   {case.name}: httptools {theirs.messages} ({theirs.why or 'accepts'}), "
                f"ours {ours.messages} {violations}; llhttp's case: {case.error or 'accepts'}"
            )
    print(f"{agreed} agree, {differences} differ unmeant; of {errors} errors {unseen} are no violation")  # noqa: T201
    return differences + unseen


if __name__ == "__main__":
    sys.exit(1 if judge(Path(sys.argv[1])) else 0)
