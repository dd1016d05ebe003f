"""What can go wrong between Weir and the kernel, each with what to do about it.

The application maps the whole family to exit code 4 (privilege or kernel).
"""

import errno
import os

NEEDS_NET_ADMIN = (
    "needs CAP_NET_ADMIN in this network namespace "
    "(run as root, or AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit)"
)


class NetfilterError(Exception):
    """The kernel side could not do what was asked; the text says what, on what, and what to try."""


class PolicyError(NetfilterError, ValueError):
    """An interception policy that cannot work. ``problems`` holds one sentence for each fault found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class PrivilegeMissing(NetfilterError):
    """The process may not change this network namespace."""

    def __init__(self, doing: str) -> None:
        super().__init__(f"{doing} {NEEDS_NET_ADMIN}")


class RulesetRejected(NetfilterError):
    """The kernel refused a transaction; nothing of it was applied. ``what`` is the message it named."""

    def __init__(self, what: str, code: int, explanation: str) -> None:
        hint = _HINTS.get(code, "")
        said = explanation or os.strerror(code)
        super().__init__(f"the kernel refused {what}: {said} [{errno.errorcode.get(code, code)}]{hint}")
        self.what = what
        self.code = code


class TableTaken(NetfilterError):
    """Another live process owns the table that this policy wants."""

    def __init__(self, table: str, port: int) -> None:
        super().__init__(
            f"table inet {table} belongs to another running process (netlink port {port}, usually its process id); "
            "stop that one first, or give this one another table name"
        )
        self.port = port


class KernelSilent(NetfilterError):
    """The kernel did not answer in time; the outcome is unknown, look with ``nft list ruleset``."""


_HINTS = {
    errno.ENOENT: " (an expression, set or module is missing; try: modprobe nft_tproxy nft_socket nft_fib_inet)",
    errno.EOPNOTSUPP: " (this kernel lacks the feature; CONFIG_NFT_TPROXY and CONFIG_NFT_SOCKET are needed)",
    errno.ENOBUFS: " (socket buffer too small for the transaction)",
    errno.EMSGSIZE: " (socket buffer too small for the transaction)",
}
