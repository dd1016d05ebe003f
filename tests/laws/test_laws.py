"""What holds for every registered protocol, whatever bytes come (docs/architecture.md, the shape of a protocol)."""

import gc
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.dissectors.kit.spec import Capture, Desynchronised, Switched, Violation
from appliance.model.direction import Direction
from tests.laws.subject import (
    CLOSED,
    Step,
    Subject,
    cuts,
    damaged,
    feed,
    fold,
    run,
    steps_of,
    stripped,
    subjects,
    with_holes,
)

MEMORY_BOUND = 24 * 1024 * 1024  # of one connection's machine and fold, whatever its peers send
FLOOD = 12 * 1024 * 1024
SMALL = Capture(body_head=16, body_tail=8)

every_protocol = pytest.mark.parametrize("subject", subjects(), ids=lambda subject: subject.name)
bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@every_protocol
@bounded
@given(data=st.data())
def test_events_do_not_depend_on_how_bytes_were_cut(subject: Subject, data: st.DataObject) -> None:
    turns = data.draw(subject.conversations) + data.draw(subject.farewells)
    if data.draw(st.booleans()):
        turns = data.draw(damaged(turns))
    steps = steps_of(turns)
    capture = data.draw(st.sampled_from((Capture(), SMALL, Capture(headers_only=True))))
    pieces = data.draw(cuts(steps))
    _same(run(subject.spec, pieces + CLOSED, capture), run(subject.spec, steps + CLOSED, capture))


@every_protocol
@bounded
@given(data=st.data())
def test_no_bytes_make_it_raise(subject: Subject, data: st.DataObject) -> None:
    turns = data.draw(st.lists(st.tuples(st.sampled_from(Direction), st.binary(max_size=200)), max_size=6))
    said = data.draw(damaged(data.draw(subject.conversations)))
    steps = data.draw(with_holes(data.draw(cuts(steps_of(said + turns + said))), 3))
    steps.insert(data.draw(st.integers(0, len(steps))), Step(data.draw(st.sampled_from(Direction)), close=True))
    folded = subject.spec.fold()
    list(fold(folded, run(subject.spec, steps)))
    folded.close(1)


@every_protocol
@bounded
@given(data=st.data())
def test_after_a_hole_it_finds_the_next_message_or_says_that_it_will_not(subject: Subject, data: st.DataObject) -> None:
    steps = data.draw(with_holes(steps_of(data.draw(subject.conversations))))
    events = run(subject.spec, steps + steps_of(subject.probe) * 2)  # the first may be needed to find the beat
    opaque = any(isinstance(event, Switched) or (isinstance(event, Violation) and event.fatal) for event in events)
    found = [exchange for exchange in fold(subject.spec.fold(), events) if exchange.target == subject.probe_target]
    assert found or opaque


@every_protocol
@bounded
@given(data=st.data())
def test_a_hole_is_never_silent(subject: Subject, data: st.DataObject) -> None:
    steps = data.draw(with_holes(steps_of(data.draw(subject.conversations))))
    events = run(subject.spec, steps + CLOSED)
    assert any(
        isinstance(event, Desynchronised | Switched | Violation) or getattr(event, "missing", 0) for event in events
    )


@every_protocol
@bounded
@given(data=st.data())
def test_what_is_encoded_decodes_to_the_same(subject: Subject, data: st.DataObject) -> None:
    encode = subject.spec.encode
    if encode is None:
        pytest.skip("this protocol is not written")
    events = [
        event for event in run(subject.spec, steps_of(data.draw(subject.conversations))) if hasattr(event, "direction")
    ]
    again = run(subject.spec, [Step(event.direction, encode(event)) for event in events])
    again = [event for event in again if hasattr(event, "direction")]
    assert [stripped(event, subject.placed) for event in again] == [stripped(event, subject.placed) for event in events]


@every_protocol
@bounded
@given(data=st.data())
def test_a_fresh_machine_resumes_with_exactly_the_exchanges_not_yet_returned(
    subject: Subject, data: st.DataObject
) -> None:
    turns = data.draw(subject.conversations) + data.draw(subject.farewells)
    if data.draw(st.booleans()):
        turns = data.draw(damaged(turns))
    steps = data.draw(with_holes(data.draw(cuts(steps_of(turns + subject.probe))), data.draw(st.integers(0, 2))))
    for direction in data.draw(st.permutations(Direction)):
        steps.insert(data.draw(st.integers(max(0, len(steps) - 3), len(steps))), Step(direction, close=True))
    steps = _nothing_after_the_end(steps)
    crash = data.draw(st.integers(0, len(steps)))

    expected, _ = _exchanges(subject, steps, len(steps))
    returned, offsets = _exchanges(subject, steps, crash, finish=False)
    resumed, _ = _exchanges(subject, _from(steps, offsets), 10**9)
    _same(returned + resumed, expected)


@every_protocol
def test_memory_is_bounded_whatever_is_sent(subject: Subject) -> None:
    for name, (turns, direction, for_ever) in subject.endless.items():
        machine, folded = subject.spec.new(Capture()), subject.spec.fold()
        for step in steps_of(turns):
            list(fold(folded, feed(machine, step, 1)))
        piece = for_ever * max(1, 32768 // len(for_ever))
        for _ in range(FLOOD // len(piece)):
            list(fold(folded, feed(machine, Step(direction, piece), 1)))
        assert _weight(machine) + _weight(folded) < MEMORY_BOUND, name


@every_protocol
def test_work_is_linear_in_bytes(subject: Subject) -> None:
    for name, (turns, direction, for_ever) in subject.endless.items():
        for size in (1, 1024):
            piece = (for_ever * (size // len(for_ever) + 1))[:size]
            small = min(_seconds(subject, turns, direction, piece, 50) for _ in range(3))
            large = min(_seconds(subject, turns, direction, piece, 400) for _ in range(3))
            assert large < 8 * 4 * small + 0.005, f"{name}: 8 × the bytes took {large / small:.0f} × the time"


@every_protocol
def test_importing_it_imports_nothing_that_does_input_or_output(subject: Subject) -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        f"import {subject.package}\n"
        "banned = {'asyncio', 'socket', 'ssl', 'random', 'logging', 'asyncpg', 'uvloop', 'appliance.observe'}\n"
        "print(*sorted(banned & (set(sys.modules) - before)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def _same(got: list[Any], expected: list[Any]) -> None:
    """Equal, or the first difference; pytest's own comparison of long lists is unreadable."""
    for place, (one, other) in enumerate(zip(got, expected, strict=False)):
        assert one == other, f"at {place}"
    assert len(got) == len(expected), f"got {got[len(expected) :]}, expected {expected[len(got) :]}"


def _nothing_after_the_end(steps: list[Step]) -> list[Step]:
    ended: set[Direction] = set()
    kept = []
    for step in steps:
        if step.direction not in ended:
            kept.append(step)
        if step.close:
            ended.add(step.direction)
    return kept


def _exchanges(
    subject: Subject, steps: list[tuple[int, Step]] | list[Step], count: int, *, finish: bool = True
) -> tuple[list[Any], dict[Direction, int]]:
    """The exchanges of the first ``count`` steps, and where a fresh machine must resume."""
    machine, folded = subject.spec.new(Capture()), subject.spec.fold()
    numbered = [step if isinstance(step, tuple) else (at, step) for at, step in enumerate(steps)]
    exchanges = [exchange for at, step in numbered[:count] for exchange in fold(folded, feed(machine, step, at + 1))]
    offsets = {}
    for direction in Direction:
        waiting = folded.unfinished(direction)
        offset = machine.unfinished(direction)
        offsets[direction] = offset if waiting is None else min(waiting, offset)
    if finish:
        exchanges += folded.close(10**6)
    return exchanges, offsets


def _from(steps: list[Step], offsets: dict[Direction, int]) -> list[tuple[int, Step]]:
    """What a restarted inspector feeds: in the old order, without what lies before the offsets."""
    totals = dict.fromkeys(Direction, 0)
    for step in steps:
        totals[step.direction] += step.size
    over = [direction for direction in Direction if offsets[direction] > totals[direction]]
    result: list[tuple[int, Step]] = [(0, Step(direction, close=True)) for direction in over]
    seen = dict.fromkeys(Direction, 0)
    for at, step in enumerate(steps):
        if step.direction in over:
            continue
        begin = seen[step.direction]
        seen[step.direction] += step.size
        before = max(0, offsets[step.direction] - begin)
        if step.close:
            result.append((at, step))
        elif before < step.size:
            lost = step.lost - before if step.lost else 0
            result.append((at, Step(step.direction, step.data[before:], lost)))
    return result


def _seconds(
    subject: Subject, turns: list[tuple[Direction, bytes]], direction: Direction, piece: bytes, n: int
) -> float:
    machine, folded = subject.spec.new(Capture()), subject.spec.fold()
    for step in steps_of(turns):
        list(fold(folded, feed(machine, step, 1)))
    begin = time.perf_counter()
    for _ in range(n):
        list(fold(folded, feed(machine, Step(direction, piece), 1)))
    return time.perf_counter() - begin


def _weight(root: object) -> int:
    """Bytes held by an object and everything it refers to, classes and modules aside."""
    seen: set[int] = set()
    pending, total = [root], 0
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, type | type(sys) | type(_weight)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        pending += gc.get_referents(thing)
    return total
