"""The channel between the supervisor and a child: JSON lines over a socketpair, both ways.

Down come ``start``, ``drain``, ``reload`` and requests; up come ``ready``, ``stats`` and requests of the API. An answer
finds the request that waits for it; every other message is handed to whoever iterates over the channel. The end of
the stream means that the other side is gone, whatever happened to it: a child then drains and exits, so that no child
outlives its supervisor.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

Message = dict[str, Any]

CHANNEL_FD = "WEIR_CHANNEL_FD"

# One message: a whole configuration or one process's metrics fits many times.
MAX_MESSAGE = 4 * 1024 * 1024
# Messages that arrived and were not taken yet; beyond, we stop reading and the sender waits.
MAX_WAITING = 256

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class ChannelClosed(ConnectionError):
    """The other side of the channel is gone."""


class RequestFailed(RuntimeError):
    """The other side answered a request with an error; the text is its explanation."""


class Channel:
    """One end of the channel. Open it with ``Channel.open``; close it with ``close``.

    ``translate``, when given, is applied to each message before it is handed out. The composition root uses it to put
    frozen ``settings`` beside the ``config`` of a ``reload``, so that no package below has to know the document.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        translate: Callable[[Message], Message] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue(MAX_WAITING)
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._ended = False
        self.translate = translate
        self._task = asyncio.get_running_loop().create_task(self._read(), name="channel")

    @classmethod
    async def open(cls, sock: socket.socket) -> "Channel":
        """Take over a connected stream socket. Works on asyncio's loop and on uvloop."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_MESSAGE)
        return cls(reader, writer)

    @classmethod
    async def inherited(cls) -> "Channel":
        """The channel that the supervisor left open for this process; its descriptor is in the environment."""
        try:
            descriptor = int(os.environ.pop(CHANNEL_FD))
        except (KeyError, ValueError):
            raise ChannelClosed(
                f"{CHANNEL_FD} does not name a descriptor: children are started by `weir run`"
            ) from None
        return await cls.open(socket.socket(fileno=descriptor))

    @classmethod
    async def pair(cls) -> "tuple[Channel, Channel]":
        """Two connected ends in one process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return await cls.open(ours), await cls.open(theirs)

    @property
    def closed(self) -> bool:
        """Whether the other side is gone or ``close`` was called."""
        return self._ended

    async def send(self, message: Message, *, within: float = 10.0) -> None:
        """Send one message; waits while the other side does not read.

        Raises ``ChannelClosed`` when the other side is gone, ``TimeoutError`` when it has not read for ``within``
        seconds (the message is queued all the same).
        """
        if self._ended:
            raise ChannelClosed("the other side of the channel is gone")
        try:
            self._writer.write(_encode(message) + b"\n")
            async with asyncio.timeout(within):
                await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            raise ChannelClosed(f"the other side of the channel is gone ({error})") from error

    async def request(self, name: str, /, *, within: float = 10.0, **arguments: Any) -> Any:
        """Ask the other side for something; returns its result.

        Raises ``RequestFailed`` with the other side's explanation, ``ChannelClosed``, or ``TimeoutError``.
        """
        number = next(self._ids)
        future = self._requests[number] = asyncio.get_running_loop().create_future()
        try:
            await self.send({"type": "request", "id": number, "name": name, "arguments": arguments}, within=within)
            async with asyncio.timeout(within):
                return await future
        finally:
            self._requests.pop(number, None)

    async def answer(self, request: Message, result: Any = None, *, error: str | None = None) -> None:
        """Answer a message of type ``request``; with ``error`` the asker's call raises ``RequestFailed``."""
        reply: Message = {"type": "answer", "id": request["id"]}
        reply |= {"error": error} if error is not None else {"result": result}
        await self.send(reply)

    async def receive(self) -> Message | None:
        """The next message that is not an answer; None when the other side is gone (and from then on)."""
        message = await self._waiting.get()
        if message is None:
            self._waiting.put_nowait(None)
            return None
        # Not when it is read: what was sent right behind ``start`` is read before anybody could set ``translate``.
        return self.translate(message) if self.translate else message

    async def __aiter__(self) -> AsyncIterator[Message]:
        """All messages until the other side is gone."""
        while (message := await self.receive()) is not None:
            yield message

    async def close(self) -> None:
        """Close this end; what was sent is delivered first. Safe to call twice."""
        self._ended = True
        self._task.cancel()
        self._writer.close()
        await asyncio.gather(self._task, self._writer.wait_closed(), return_exceptions=True)

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                if not line.endswith(b"\n"):
                    break  # the other side died in the middle of a message
                message = _decode(line)
                if message.get("type") == "answer":
                    self._settle(message)
                else:
                    await self._waiting.put(message)
        except (ConnectionError, ValueError):
            # ValueError: longer than MAX_MESSAGE, or no JSON. Only our own processes write here, so what follows
            # cannot be trusted either: the same as an end.
            pass
        finally:
            self._ended = True
            for future in self._requests.values():
                if not future.done():
                    future.set_exception(ChannelClosed("the other side went away before it answered"))
            while self._waiting.full():
                self._waiting.get_nowait()
            self._waiting.put_nowait(None)

    def _settle(self, message: Message) -> None:
        future = self._requests.get(message["id"])
        if future is None or future.done():
            return  # the asker gave up waiting
        if "error" in message:
            future.set_exception(RequestFailed(str(message["error"])))
        else:
            future.set_result(message.get("result"))
