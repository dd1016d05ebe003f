"""One child process and its life: start it, talk to it, notice its end, start it again with back-off."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import appliance
from appliance.engine.control import CHANNEL_FD, Channel, ChannelClosed, Message
from appliance.observe import metrics
from appliance.observe.logging import get_logger

log = get_logger("supervisor")

# What a child needs of our environment; the rest may hold the secrets of ${env.X}.
_PASSED = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "RES_OPTIONS")
_PASSED_PREFIXES = ("LC_", "PYTHON", "COVERAGE_")
# libuv lets half of its threads (4) look up names: two slow name servers would stop every other client's look-ups.
_TUNED = {"relay": {"UV_THREADPOOL_SIZE": "64"}}


class State(StrEnum):
    """Where a child is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    WAITING = "waiting"  # for its back-off to pass
    ENDED = "ended"


@dataclass(slots=True)
class Backoff:
    """How long to wait before starting again what keeps ending: doubled each time, forgotten after a stable while."""

    first: float = 0.1
    most: float = 15.0
    stable: float = 30.0
    _next: float = 0.0

    def after(self, lived: float) -> float:
        """Seconds to wait after a life of this many seconds."""
        if lived >= self.stable or self._next == 0.0:
            self._next = self.first
        delay, self._next = self._next, min(self._next * 2, self.most)
        return delay


class StartFailed(RuntimeError):
    """A child ended before it was ready. ``exit`` is its exit code, for ours."""

    def __init__(self, name: str, reason: str, code: int) -> None:
        super().__init__(f"{name}: {reason}")
        self.code = code


class Child:
    """One role of one index. ``answer`` is asked for the child's requests (only the API asks anything)."""

    def __init__(
        self,
        role: str,
        index: int,
        start: Callable[[], Message],
        answer: Callable[[str, dict[str, Any]], Awaitable[Any]],
        *,
        module: str = "appliance.app.child",
        silence: float = 30.0,
    ) -> None:
        self.role = role
        self.index = index
        self.name = role if role == "api" else f"{role}-{index}"
        self.state = State.ENDED
        self.restarts = 0
        self.listeners: dict[str, list[str]] = {}
        self.metrics: metrics.Snapshot = {}
        self.since = time.time()
        self.reason = ""
        self._start = start
        self._answer = answer
        self._module = module
        self._silence = silence
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._ready: asyncio.Future[None] | None = None
        self._heard = 0.0
        self._failed_code = 1
        self._draining = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def keep(self, first_ready: asyncio.Future[None]) -> None:
        """Run the child until it is drained; ``first_ready`` is settled when its first start came to something.

        A child that fails at its first start is not started again: that is a mistake of the configuration or the
        machine, and ``first_ready`` gets ``StartFailed``.
        """
        backoff = Backoff()
        while not self._draining.is_set():
            self._ready = asyncio.get_running_loop().create_future()
            self._ready.add_done_callback(lambda _: None if first_ready.done() else first_ready.set_result(None))
            began = time.monotonic()
            try:
                code = await self._live()
            except OSError as error:  # no process, no descriptors, no memory: as bad as a child that ends at once
                code, self.reason = 1, f"cannot be started: {error.strerror}"
            if self._draining.is_set():
                break
            if not first_ready.done():
                first_ready.set_exception(StartFailed(self.name, self._why(code), self._failed_code))
                break
            delay = backoff.after(time.monotonic() - began)
            log.error("child ended", child=self.name, reason=self._why(code), restart_in=delay)
            self.state = State.WAITING
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), delay)
        self.state = State.ENDED

    async def drain(self, deadline: float) -> None:
        """Ask the child to finish; kill it when it has not by ``deadline`` (of the loop's clock)."""
        self._draining.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.state = State.DRAINING
        await self.tell({"type": "drain"})
        remaining = deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(process.wait(), max(0.0, remaining))
        except TimeoutError:
            log.warning("child killed: it did not finish in time", child=self.name)
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End the child at once."""
        self._draining.set()
        self._signal(signal.SIGKILL)

    async def tell(self, message: Message) -> bool:
        """Send one message; False when the child is not there to hear it."""
        if self._channel is None or self._channel.closed:
            return False
        try:
            await self._channel.send(message, within=2.0)
        except (ChannelClosed, TimeoutError):
            return False
        return True

    def check(self) -> None:
        """Kill the child if it has said nothing for too long: a stopped process is no process. ``keep`` restarts it."""
        if self.state is State.READY and time.monotonic() - self._heard > self._silence:
            log.error("child killed: it is silent", child=self.name, seconds=self._silence)
            self.reason = "silent"
            self._signal(signal.SIGKILL)

    def status(self) -> dict[str, Any]:
        """What ``weir status`` shows."""
        return {
            "role": self.role,
            "index": self.index,
            "name": self.name,
            "state": self.state.value,
            "pid": self.pid,
            "restarts": self.restarts,
            "since": self.since,
            "listeners": self.listeners,
        }

    async def _live(self) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.DEVNULL,
                env=_environment() | _TUNED.get(self.role, {}) | {CHANNEL_FD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for us: we drain in the right order
            )
        self.state, self.since, self.reason, self._failed_code = State.STARTING, time.time(), "", 1
        self._heard = time.monotonic()
        self._channel = await Channel.open(ours)
        try:
            if self._draining.is_set():
                self._signal(signal.SIGKILL)
            await self.tell({**self._start(), "type": "start", "role": self.role, "index": self.index})
            async for message in self._channel:
                await self._hear(message, self._channel)
            return await self._ended(self._process)
        finally:
            await self._channel.close()
            self._signal(signal.SIGKILL)
            await self._process.wait()
            self.metrics = {}  # of a process that is no more: it is not up, and it holds no connections

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        """The exit code of a child whose channel ended; one that stays on without a channel is killed."""
        try:
            return await asyncio.wait_for(process.wait(), 10.0)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await process.wait()

    async def _hear(self, message: Message, channel: Channel) -> None:
        self._heard = time.monotonic()
        match message.get("type"):
            case "ready":
                self.listeners = message.get("listeners", {})
                if self.state is State.STARTING:
                    self.state = State.READY
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(None)
            case "stats":
                self.metrics |= message["metrics"]
            case "failed":
                self.reason = str(message["reason"])
                self._failed_code = int(message.get("exit", 1))
            case "request":
                with contextlib.suppress(ChannelClosed, TimeoutError):
                    await self._reply(message, channel)

    async def _reply(self, message: Message, channel: Channel) -> None:
        try:
            result = await self._answer(message["name"], message.get("arguments", {}))
        except (LookupError, ValueError, OSError, RuntimeError) as error:
            await channel.answer(message, error=str(error))
        else:
            await channel.answer(message, result)

    def _why(self, code: int) -> str:
        if self.reason:
            return self.reason
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _environment() -> dict[str, str]:
    chosen = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)}
    # A child finds the same package as we did, wherever we were started from.
    root = str(Path(appliance.__file__).resolve().parent.parent)
    paths = [root, *filter(None, chosen.get("PYTHONPATH", "").split(os.pathsep))]
    return chosen | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}
