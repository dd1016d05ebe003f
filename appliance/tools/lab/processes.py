"""Run programs inside namespaces: each in its own process group, output in a file, stopped by its own id.

A program may be given a hosts file of its own. It is mounted over ``/etc/hosts`` in a mount namespace that only this
program and its children see, so names of the lab resolve by the system's resolver while the host's file stays as it is.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.tools.lab import LabFailed
from appliance.tools.lab.namespaces import Namespace

_WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended: its exit code and what it wrote."""

    code: int
    out: bytes
    err: str


class Process:
    """A program that stays up inside a namespace."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.log = log
        self._popen = popen

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not exited."""
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self._popen.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None when it still runs after ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, patience: float = 10.0) -> int:
        """SIGTERM; after ``patience`` seconds SIGKILL to its whole group. Returns the exit code."""
        if self.running:
            self._popen.terminate()
        code = self.wait(patience)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._popen.wait() if code is None else code

    def tail(self, lines: int = 12) -> str:
        """The end of what it wrote."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def start(
    namespace: Namespace,
    argv: Sequence[str],
    *,
    log: Path,
    hosts: Path | None = None,
    cpus: Sequence[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a program that stays up; both its outputs are appended to ``log``."""
    with log.open("ab") as sink:
        popen = subprocess.Popen(
            _command(namespace, argv, hosts, cpus),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    return Process(Path(argv[0]).name, popen, log)


def run(
    namespace: Namespace,
    argv: Sequence[str],
    *,
    timeout: float = 30.0,
    hosts: Path | None = None,
    cpus: Sequence[int] | None = None,
    stdin: bytes = b"",
) -> Ran:
    """Run a program to its end. Exit code 124 when it was stopped after ``timeout`` seconds, as timeout(1) has it."""
    popen = subprocess.Popen(
        _command(namespace, argv, hosts, cpus),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = popen.communicate(stdin, timeout)
        return Ran(popen.returncode, out, err.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        os.killpg(popen.pid, signal.SIGKILL)
        out, err = popen.communicate()
        return Ran(124, out, err.decode(errors="replace"))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.communicate()
        raise


def eventually(claim: Callable[[], bool], timeout: float = 10.0, every: float = 0.02) -> bool:
    """Whether the claim came to hold within ``timeout`` seconds; returns as soon as it does."""
    deadline = time.monotonic() + timeout
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def wait_until(claim: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Return once the claim holds; raise ``LabFailed`` that names it when it does not within ``timeout`` seconds."""
    if not eventually(claim, timeout):
        raise LabFailed(f"{what} within {timeout:g} s", "run it again on a less busy machine, or ./run weir doctor")


def _command(namespace: Namespace, argv: Sequence[str], hosts: Path | None, cpus: Sequence[int] | None) -> list[str]:
    pinned = ["taskset", "-c", ",".join(map(str, cpus)), *argv] if cpus else list(argv)
    if hosts is None:
        return namespace.command(*pinned)
    return namespace.command("unshare", "--mount", "--", "/bin/sh", "-c", _WITH_HOSTS, str(hosts), *pinned)
