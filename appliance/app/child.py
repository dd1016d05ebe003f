"""The entry of every child process: import, become the service user, then do what the role is for.

Started by the supervisor as ``python -m appliance.app.child`` with its end of the channel in ``WEIR_CHANNEL_FD``. The
first message says who we are and what is configured. When the channel ends, so do we.
"""

import asyncio
import encodings.idna  # noqa: F401  looked up by name at the first getaddrinfo, when we may not read files any more
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from appliance.app import wiring
from appliance.app.config.document import Document
from appliance.app.errors import Exit
from appliance.app.privileges import KEPT, drop, service_user
from appliance.engine.control import Channel, ChannelClosed, Message
from appliance.observe import logging, metrics
from appliance.observe.process import LoopLag

log = logging.get_logger("child")

# What is sent is shown to a user and logged; a traceback's text may be long.
_LONGEST_REASON = 2000


def main() -> None:
    """Run one child to its end; the exit code is the supervisor's only clue when the channel broke."""
    # The supervisor decides when we end. Ctrl-C in a terminal reaches the whole foreground group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_run(_live()))


def _run(work: Coroutine[Any, Any, Exit]) -> Exit:
    try:
        import uvloop
    except ImportError:  # not built for this machine: slower, but whole
        return asyncio.run(work)
    return Exit(uvloop.run(work))


async def _live() -> Exit:
    channel = await Channel.inherited()
    try:
        return await _serve(channel)
    finally:
        await channel.close()


async def _serve(channel: Channel) -> Exit:
    start = await channel.receive()
    if start is None or start["type"] != "start":
        return Exit.FAILED
    role, index = start["role"], int(start["index"])
    name = role if role == "api" else f"{role}-{index}"
    document = Document.model_validate(start["config"])
    logging.conceal(start.get("secrets", ()))
    logging.configure(document.logging.level, document.logging.format, process=name)
    channel.translate = _translate(role)
    vitals = None
    try:
        # In this order: what the role imports may be unreadable for the service user.
        work = _roles()[role](document, index, channel)
        drop(service_user(document.engine.user), KEPT[role])
        vitals = asyncio.create_task(_vitals(channel), name="vitals")
        await work()
    except asyncio.CancelledError:
        raise
    except Exception as error:  # the last place that can say why this process ends
        log.exception("child failed", role=role)
        with suppress(ChannelClosed, TimeoutError):
            await channel.send({"type": "failed", "reason": _reason(error), "exit": _exit_code(error)})
        return Exit(_exit_code(error))
    finally:
        if vitals is not None:
            vitals.cancel()
            await asyncio.gather(vitals, return_exceptions=True)
    return Exit.OK


def _roles() -> dict[str, Callable[[Document, int, Channel], Callable[[], Awaitable[None]]]]:
    return {"relay": _relay, "inspector": _inspector, "api": _api}


def _relay(document: Document, index: int, channel: Channel) -> Callable[[], Awaitable[None]]:
    from appliance.engine import worker

    settings = wiring.relay(document)
    return lambda: worker.serve(settings, index, channel)


def _inspector(document: Document, index: int, channel: Channel) -> Callable[[], Awaitable[None]]:
    from appliance.engine.inspect import process

    settings, record = wiring.inspect(document), wiring.record(document)
    return lambda: process.serve(settings, record, index, channel)


def _api(document: Document, index: int, channel: Channel) -> Callable[[], Awaitable[None]]:
    from appliance.api import process

    settings = wiring.api(document)
    process.prepare()
    return lambda: process.serve(settings, channel)


def _translate(role: str) -> Callable[[Message], Message]:
    """Put the role's new settings beside the document of a reload."""
    build: dict[str, Callable[[Document], dict[str, Any]]] = {
        "relay": lambda document: {"settings": wiring.relay(document)},
        "inspector": lambda document: {"settings": wiring.inspect(document), "record": wiring.record(document)},
        "api": lambda document: {"settings": wiring.api(document)},
    }

    def translate(message: Message) -> Message:
        if message.get("type") != "reload":
            return message
        logging.conceal(message.get("secrets", ()))
        document = Document.model_validate(message["config"])
        logging.set_level(document.logging.level)
        return message | build[role](document)

    return translate


async def _vitals(channel: Channel) -> None:
    """Once a second, how late the event loop runs. The supervisor kills a child that says nothing for long."""
    registry = metrics.Registry()
    lag = LoopLag()
    registry.set(metrics.UP, 1)
    watching = asyncio.create_task(lag.watch(), name="loop lag")
    try:
        while True:
            await asyncio.sleep(1)
            registry.set(metrics.LOOP_LAG_SECONDS, lag.take())
            await channel.send({"type": "stats", "metrics": registry.snapshot()})
    except (ChannelClosed, TimeoutError):
        return  # the role notices the end of the channel itself
    finally:
        watching.cancel()


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _reason(error: BaseException) -> str:
    texts = [str(leaf) or type(leaf).__name__ for leaf in _leaves(error)]
    return "; ".join(texts)[:_LONGEST_REASON]


def _exit_code(error: BaseException) -> int:
    first = _leaves(error)[0]
    code = getattr(first, "exit", None)
    if isinstance(code, Exit):
        return int(code)
    return int(Exit.PRIVILEGE if isinstance(first, PermissionError) else Exit.FAILED)


if __name__ == "__main__":
    main()
