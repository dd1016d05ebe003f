import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from appliance.engine.control import MAX_MESSAGE, Channel, ChannelClosed, RequestFailed


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel]]:
    up, down = await Channel.pair()
    yield up, down
    await up.close()
    await down.close()


async def test_messages_arrive_in_order_and_the_iteration_ends_when_the_other_side_is_gone(
    ends: tuple[Channel, Channel],
) -> None:
    up, down = ends
    for number in range(100):
        await up.send({"type": "stats", "number": number})
    await up.close()
    assert [message["number"] async for message in down] == list(range(100))
    assert await down.receive() is None
    assert down.closed
    with pytest.raises(ChannelClosed):
        await down.send({"type": "stats"})


async def test_a_request_finds_its_own_answer_when_answers_come_in_another_order(ends: tuple[Channel, Channel]) -> None:
    up, down = ends

    async def serve() -> None:
        first = await down.receive()
        second = await down.receive()
        assert first is not None and second is not None
        await down.answer(second, second["arguments"]["value"])
        await down.answer(first, error="no such thing")

    server = asyncio.create_task(serve())
    failed = asyncio.create_task(up.request("a", value=1))
    await asyncio.sleep(0)
    assert await up.request("b", value={"deep": [2]}) == {"deep": [2]}
    with pytest.raises(RequestFailed, match="no such thing"):
        await failed
    await server


async def test_a_request_to_a_silent_side_times_out_and_a_late_answer_harms_nobody(
    ends: tuple[Channel, Channel],
) -> None:
    up, down = ends
    with pytest.raises(TimeoutError):
        await up.request("status", within=0.05)
    late = await down.receive()
    assert late is not None
    await down.answer(late, 1)
    await down.send({"type": "ready"})
    assert await up.receive() == {"type": "ready"}


async def test_a_request_fails_at_once_when_the_other_side_dies(ends: tuple[Channel, Channel]) -> None:
    up, down = ends
    waiting = asyncio.create_task(up.request("status", within=30))
    assert (await down.receive())["name"] == "status"  # type: ignore[index]
    await down.close()
    with pytest.raises(ChannelClosed):
        await asyncio.wait_for(waiting, 5)


async def test_sending_to_a_side_that_does_not_read_times_out() -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    with pytest.raises(TimeoutError):
        for _ in range(100):
            await channel.send({"type": "stats", "filler": "x" * 100_000}, within=0.1)
    theirs.close()
    await channel.close()


@pytest.mark.parametrize("rubbish", [b"not json\n", b"[1]\n", b'{"type": "torn"', b"x" * (MAX_MESSAGE + 10)])
async def test_rubbish_on_the_channel_is_the_end_of_it(rubbish: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    sender = asyncio.create_task(loop.sock_sendall(theirs, rubbish))
    if not rubbish.endswith(b"\n"):
        await asyncio.wait({sender}, timeout=1)
        theirs.close()
    assert await asyncio.wait_for(channel.receive(), 5) is None
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)
    theirs.close()
    await channel.close()


async def test_a_reload_is_translated_before_it_is_handed_out(ends: tuple[Channel, Channel]) -> None:
    up, down = ends
    down.translate = lambda message: message | {"settings": tuple(message["config"])}
    await up.send({"type": "reload", "config": ["a", "b"]})
    assert (await down.receive())["settings"] == ("a", "b")  # type: ignore[index]
