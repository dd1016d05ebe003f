import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.app.children import Backoff, Child, StartFailed, State

DEADLINE = 20.0


async def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.01)


async def echo(name: str, arguments: dict[str, Any]) -> Any:
    if name != "echo":
        raise LookupError(name)
    return arguments


@asynccontextmanager
async def running(
    config: dict[str, Any],
    answer: Callable[[str, dict[str, Any]], Awaitable[Any]] = echo,
    silence: float = 30.0,
) -> AsyncIterator[Child]:
    child = Child("relay", 0, lambda: {"config": config}, answer, module="tests.app.fake_child", silence=silence)
    first = asyncio.get_running_loop().create_future()
    keeping = asyncio.create_task(child.keep(first))
    try:
        await asyncio.wait_for(first, DEADLINE)
        yield child
    finally:
        await child.drain(asyncio.get_running_loop().time() + 5)
        await asyncio.wait_for(keeping, DEADLINE)
    assert child.state is State.ENDED and child.pid is None


async def test_a_child_is_ready_tells_its_listeners_and_ends_when_drained() -> None:
    async with running({}) as child:
        pid = child.pid
        assert pid is not None and child.state is State.READY
        assert child.listeners == {"mixed": ["127.0.0.1:1"]} and child.metrics["weir_up"] == 1.0
        assert child.status()["name"] == "relay-0"
    assert not Path(f"/proc/{pid}").exists()


async def test_a_killed_child_is_started_again() -> None:
    async with running({}) as child:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.state is State.READY and child.pid not in (None, first))
        assert child.restarts == 1


async def test_a_child_that_fails_at_its_first_start_says_why_and_is_not_started_again() -> None:
    with pytest.raises(StartFailed, match="relay-0: the port is taken") as caught:
        async with running({"fail": "the port is taken"}):
            pass
    assert caught.value.code == 4
    with pytest.raises(StartFailed, match="killed by SIGKILL"):
        async with running({"crash_at_start": True}):
            pass


async def test_a_child_that_does_not_finish_is_killed_at_the_deadline() -> None:
    async with running({"deaf": True}) as child:
        began = time.monotonic()
        await child.drain(asyncio.get_running_loop().time() + 0.3)
        assert 0.2 < time.monotonic() - began < 5
        assert child.pid is None


async def test_a_stopped_child_is_noticed_killed_and_started_again() -> None:
    async with running({}, silence=0.2) as child:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        end = time.monotonic() + DEADLINE
        while child.pid in (None, first):
            child.check()
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


async def test_requests_are_answered_and_the_environment_s_secrets_stay_with_us(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOCKS_PASSWORD", "hunter2")
    monkeypatch.setenv("LC_TIME", "C")
    async with running({"ask": True}) as child:
        await until(lambda: "answer" in child.metrics)
        seen: Any = child.metrics["answer"]
        assert seen["pid"] == child.pid
        assert "LC_TIME" in seen["environ"] and "SOCKS_PASSWORD" not in seen["environ"]


async def test_a_reload_reaches_the_child() -> None:
    async with running({}) as child:
        assert await child.tell({"type": "reload", "config": {"number": 7}})
        await until(lambda: child.metrics.get("reloads") == 7)
    assert not await child.tell({"type": "reload", "config": {}})


def test_back_off_doubles_up_to_a_bound_and_forgets_after_a_stable_life() -> None:
    backoff = Backoff(first=0.1, most=1.0, stable=30.0)
    assert [backoff.after(0.0) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.after(31.0) == 0.1
    assert backoff.after(0.0) == 0.2


async def test_waiting_out_a_back_off_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "after", lambda self, lived: 60.0)
    async with running({}) as child:
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: child.state is State.WAITING)
        began = time.monotonic()
    assert time.monotonic() - began < 5
