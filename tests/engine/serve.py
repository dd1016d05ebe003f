"""The relay alone, from the command line: ``python -m tests.engine.serve --config FILE`` (no inspector, no store).

Reads the mixed listener's keys of a Weir configuration; for suites that judge the listener and nothing else.
"""

import argparse
import asyncio
import signal
import tempfile
from pathlib import Path

import uvloop
from ruamel.yaml import YAML

from appliance.engine.settings import MIB, RelaySettings, SocksSettings, TapSettings
from appliance.engine.worker import Worker
from appliance.model.endpoint import parse_endpoint


async def main(config: Path) -> None:
    proxy = YAML(typ="safe").load(config)["proxy"]
    users = {user["username"]: user["password"] for user in proxy["socks"].get("users", [])}
    socks = SocksSettings(bind=(parse_endpoint(proxy["bind_address"]),), users=users or None)
    with tempfile.TemporaryDirectory(prefix="weir-serve-") as directory:
        tap = TapSettings(directory=Path(directory), ring_bytes=4 * MIB, slots=1024)
        worker = Worker(RelaySettings(socks=socks, tap=tap), 0)
        await worker.listen()
        sweeps = asyncio.ensure_future(worker.sweep())
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        sweeps.cancel()
        await worker.drain(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    uvloop.run(main(parser.parse_args().config))
