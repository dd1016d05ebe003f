"""Giving up root: to the service user, keeping only the capabilities that a role needs (kernel.md, "Privileges").

Called by each child after it has imported everything, because the interpreter or the checkout may not be readable for
that user. ctypes, because the standard library knows neither prctl(2) nor capset(2), and a dependency with native code
for four system calls would be the larger risk.
"""

import ctypes
import os
import pwd
import signal
from dataclasses import dataclass
from pathlib import Path

from appliance.app.errors import PrivilegeMissing

CAP_NET_BIND_SERVICE = 10  # linux/capability.h
CAP_NET_ADMIN = 12
CAP_NET_RAW = 13

# What each role keeps. Relays open transparent sockets, mark them, and listen on ports under 1024.
KEPT: dict[str, frozenset[int]] = {
    "relay": frozenset({CAP_NET_RAW, CAP_NET_BIND_SERVICE}),
    "inspector": frozenset(),
    "api": frozenset(),
}

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """Who the processes run as."""

    name: str
    uid: int
    gid: int


def service_user(name: str) -> ServiceUser | None:
    """The user to become; None when we are not root and stay who we are.

    Raises ``PrivilegeMissing`` with the command to run when there is no such user, or when it is root.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PrivilegeMissing(
            f"there is no user {name!r} for Weir's processes to run as: "
            f"useradd --system --no-create-home --shell /usr/sbin/nologin {name}   (or set engine.user)"
        ) from None
    if entry.pw_uid == 0:
        raise PrivilegeMissing(f"engine.user is {name!r}, which is root: name a user without privileges")
    return ServiceUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def drop(user: ServiceUser | None, keep: frozenset[int]) -> None:
    """Become the user for good, with exactly these capabilities; nothing that is executed later can gain any.

    Without a user only the last holds. Raises ``PrivilegeMissing`` when the kernel refuses: never go on then.
    """
    if user is not None:
        for capability in range(_last_capability() + 1):
            if capability not in keep:
                _prctl(_PR_CAPBSET_DROP, capability)
        _prctl(_PR_SET_KEEPCAPS, 1)  # or setresuid would take all of them
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        _capset(keep)
        _prctl(_PR_SET_KEEPCAPS, 0)
        # Libraries look below HOME (asyncpg: ~/.postgresql/postgresql.key), and root's home is closed to this user.
        os.environ["HOME"] = pwd.getpwuid(user.uid).pw_dir
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def end_with_parent() -> None:
    """Get SIGINT when the thread that forked us is gone. For ``preexec_fn``: one system call and nothing else."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def has_capability(capability: int) -> bool:
    """Whether this process has the capability in effect."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _last_capability() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3) != 0:
        raise PrivilegeMissing(f"prctl({option}, {value}): {os.strerror(ctypes.get_errno())}")


def _capset(keep: frozenset[int]) -> None:
    words = (_Data * 2)()
    for capability in keep:
        words[capability // 32].effective |= 1 << capability % 32
        words[capability // 32].permitted |= 1 << capability % 32
    header = _Header(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(ctypes.byref(header), words) != 0:
        raise PrivilegeMissing(f"capset: {os.strerror(ctypes.get_errno())}")
