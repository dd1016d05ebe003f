"""Kernel switches: set what a gateway needs, remember what was there, put it back.

Reads and writes ``/proc/sys`` of the caller's network namespace. What was changed can be kept in a file, so that a run
after ``kill -9`` still knows the values from before.
"""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path

from appliance.netfilter.errors import NetfilterError, PrivilegeMissing
from appliance.netfilter.policy import InterceptPolicy
from appliance.observe.logging import get_logger

log = get_logger("netfilter")

ROOT = Path("/proc/sys")

IPV4_FORWARD = "net/ipv4/ip_forward"
IPV6_FORWARD = "net/ipv6/conf/all/forwarding"

Values = dict[str, str]
"""Paths below /proc/sys and their contents."""


def read(name: str) -> str | None:
    """A switch's value, None where this kernel does not have it (IPv6 disabled, module not loaded)."""
    try:
        return (ROOT / name).read_text().strip()
    except OSError:
        return None


def per_interface(version: int, switch: str) -> Values:
    """A switch of ``net/ipvX/conf`` for every interface, and for ``all`` and ``default``."""
    found = {}
    for path in sorted((ROOT / f"net/ipv{version}/conf").glob(f"*/{switch}")):
        name = str(path.relative_to(ROOT))
        value = read(name)
        if value is not None:
            found[name] = value
    return found


def wanted(policy: InterceptPolicy) -> Values:
    """What the policy needs and this kernel does not have yet.

    - Forwarding, for each family that is intercepted: what is bypassed must still get through.
    - No ICMP redirects toward clients: they would teach them the way around us. The kernel sends them when either
      ``all`` or the interface says so, so both are switched off (Documentation/networking/ip-sysctl.rst).
    - ``accept_ra`` 2 where it is 1: with forwarding on, 1 means that router advertisements are ignored, and a gateway
      that has its own default route from one would lose it.
    """
    values: Values = {}
    versions = [version for version, _ in policy.listeners]
    if 4 in versions:
        values[IPV4_FORWARD] = "1"
        values["net/ipv4/conf/all/send_redirects"] = "0"
        values |= {f"net/ipv4/conf/{name}/send_redirects": "0" for name in policy.interfaces}
    if 6 in versions:
        if read(IPV6_FORWARD) == "0":
            values |= {name: "2" for name, value in per_interface(6, "accept_ra").items() if value == "1"}
        values[IPV6_FORWARD] = "1"
    return {name: value for name, value in values.items() if read(name) not in (None, value)}


class ReadOnly(NetfilterError):
    """``/proc/sys`` is mounted read-only."""


class Switches:
    """The switches that one run changed. ``journal`` is a file that survives a killed run (None: keep in memory)."""

    def __init__(self, journal: Path | None = None) -> None:
        """Take up what a killed run noted in the journal."""
        self._journal = journal
        self._before: Values = _load(journal)

    @property
    def before(self) -> Mapping[str, str]:
        """What was there before us, of everything that we changed."""
        return self._before

    def set(self, values: Values) -> None:
        """Write these values; the first value from before is the one that is kept."""
        if not values:
            return
        noted = {name: value for name in values if (value := read(name)) is not None}
        # Writing these two changes every interface's own switch along with it, so each of them is noted.
        if IPV4_FORWARD in values:
            noted |= per_interface(4, "forwarding")
        if IPV6_FORWARD in values:
            noted |= per_interface(6, "forwarding")
        self._before = noted | self._before
        self._save()
        for name, value in values.items():
            try:
                write(name, value)
            except ReadOnly as error:
                # Usual in containers. Interception works without; what is bypassed may not: the doctor knows.
                log.warning("a kernel switch cannot be set from here", reason=str(error), fix="set it on the host")

    def restore(self) -> None:
        """Put back what was there before. Interfaces that are gone are passed over."""
        # The wide switches first: they overwrite the narrow ones.
        for name in sorted(self._before, key=lambda name: (name not in (IPV4_FORWARD, IPV6_FORWARD), name)):
            if read(name) not in (None, self._before[name]):
                write(name, self._before[name])
        self._before = {}
        if self._journal is not None:
            self._journal.unlink(missing_ok=True)

    def _save(self) -> None:
        if self._journal is None:
            return
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._journal.with_suffix(".new")
        fresh.write_text(json.dumps({"namespace": _namespace(), "values": self._before}, indent=1))
        fresh.replace(self._journal)


def _load(journal: Path | None) -> Values:
    if journal is None:
        return {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        noted = json.loads(journal.read_text())
        # After a reboot, or in another namespace, the old values mean nothing.
        if isinstance(noted, dict) and noted.get("namespace") == _namespace():
            values = {str(name): str(value) for name, value in noted["values"].items()}
            # Root writes these back: a journal that somebody else wrote must not name other files.
            return {name: value for name, value in values.items() if name.startswith("net/") and ".." not in name}
    return {}


def _namespace() -> str:
    """A name for this network namespace in this boot."""
    boot = (ROOT / "kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/thread-self/ns/net').st_ino}"  # noqa: PTH116  # Path.stat follows the same link


def write(name: str, value: str) -> None:
    """Set a switch. Raises ``PrivilegeMissing`` or ``NetfilterError`` with the switch's name."""
    try:
        (ROOT / name).write_text(value)
    except PermissionError as error:
        raise PrivilegeMissing(f"setting {name.replace('/', '.')}={value}") from error
    except OSError as error:
        kind = ReadOnly if error.errno == errno.EROFS else NetfilterError
        raise kind(f"setting {name.replace('/', '.')}={value} failed: {error.strerror}") from error
