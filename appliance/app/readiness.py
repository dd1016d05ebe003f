"""Telling the service manager how we are: sd_notify(3) on ``NOTIFY_SOCKET``, in a few lines of our own."""

import os
import socket
import time


class ServiceManager:
    """The one who started us, if it wants to know. Without ``NOTIFY_SOCKET`` nothing is said."""

    def __init__(self) -> None:
        # Taken out of the environment: our children are not the ones to speak (sd_notify(3), unset_environment).
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._watchdog = os.environ.pop("WATCHDOG_USEC", "")
        if os.environ.pop("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            self._watchdog = ""

    @property
    def beat(self) -> float | None:
        """How often ``alive`` must be called, in seconds: half of what is tolerated; None when nobody counts."""
        return int(self._watchdog) / 2_000_000 if self._watchdog.isdigit() and int(self._watchdog) else None

    def ready(self, status: str) -> None:
        """We do our work."""
        self._say(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """We read our configuration again; ``ready`` follows."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """We end."""
        self._say(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        """The watchdog's beat."""
        self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.sendto(text.encode(), address)
            except OSError:
                return  # the manager is gone or busy; it has its own timeouts
