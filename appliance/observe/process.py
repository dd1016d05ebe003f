"""What a process costs: processor time, memory, open files, and how late its event loop is."""

import asyncio
import os
import time
from pathlib import Path

from appliance.observe import metrics

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SELF = Path("/proc/self")


def publish(registry: metrics.Registry) -> None:
    """Put this process's figures into the registry. Read from /proc/self (proc_pid_statm(5)); cheap, once a second."""
    registry.set(metrics.CPU_SECONDS, time.process_time())
    registry.set(metrics.RESIDENT_BYTES, int((_SELF / "statm").read_text().split()[1]) * _PAGE)
    registry.set(metrics.OPEN_FILES, sum(1 for _ in (_SELF / "fd").iterdir()))


class LoopLag:
    """Measures how late the event loop runs what is due, by sleeping briefly and looking at the clock.

    ``take`` gives the longest delay since it was last asked, in seconds.
    """

    def __init__(self, interval: float = 0.1) -> None:
        self._interval = interval
        self._worst = 0.0

    async def watch(self) -> None:
        """Measure until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self._interval
            await asyncio.sleep(self._interval)
            self._worst = max(self._worst, clock() - due)

    def take(self) -> float:
        """The longest delay since the last call."""
        worst, self._worst = self._worst, 0.0
        return worst
