"""A child for tests of the supervisor's side: obeys the channel, and misbehaves as its configuration says."""

import asyncio
import os
import signal
import sys

from appliance.engine.control import Channel


async def live() -> int:
    channel = await Channel.inherited()
    start = await channel.receive()
    assert start is not None
    wishes = start["config"]
    if reason := wishes.get("fail"):
        await channel.send({"type": "failed", "reason": reason, "exit": 4})
        await channel.close()
        return 4
    if wishes.get("crash_at_start"):
        os.kill(os.getpid(), signal.SIGKILL)
    await channel.send({"type": "stats", "metrics": {"weir_up": 1.0}})
    await channel.send({"type": "ready", "listeners": {"mixed": ["127.0.0.1:1"]}})
    if wishes.get("ask"):
        answer = await channel.request("echo", environ=sorted(os.environ), pid=os.getpid())
        await channel.send({"type": "stats", "metrics": {"answer": answer}})
    async for message in channel:
        if message["type"] == "reload":
            await channel.send({"type": "stats", "metrics": {"reloads": message["config"]["number"]}})
        if message["type"] == "drain" and not wishes.get("deaf"):
            await channel.close()
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(live()))
