"""nftables transactions and look-ups over one netlink socket.

The socket owns the tables that it makes with the owner flag: they live as long as it is open.
"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink import nftsocket

from appliance.netfilter import messages
from appliance.netfilter.errors import PrivilegeMissing, RulesetRejected
from appliance.netfilter.messages import Message
from appliance.netfilter.netlink import HEADER, NETLINK_NETFILTER, Answer, NetlinkSocket, Refused, attributes
from appliance.netfilter.sets import Range, unpack_keys, unpack_ranges

_GENERIC_HEADER = 4  # struct nfgenmsg
_ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS


@dataclass(frozen=True, slots=True)
class TableState:
    """A table as the kernel has it: its flags, the netlink port of the socket that owns it, if any, its comment."""

    flags: int
    owner: int | None
    comment: str


class Nftables:
    """nftables of the network namespace in which this was made."""

    def __init__(self, timeout: float = 5.0) -> None:
        """Open the socket; ``timeout`` in seconds bounds every call."""
        self._netlink = NetlinkSocket(NETLINK_NETFILTER, timeout)

    @property
    def port(self) -> int:
        """The netlink port that owned tables carry."""
        return self._netlink.port

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._netlink.fileno()

    def close(self) -> None:
        """Close the socket; tables it owns vanish, but for persistent ones."""
        self._netlink.close()

    def apply(self, changes: Iterable[Message]) -> None:
        """Do all of these or none.

        Raises ``PrivilegeMissing``, ``RulesetRejected`` naming the message, or ``KernelSilent``.
        """
        batch = messages.transaction(changes)
        try:
            self._netlink.exchange([message.body for message in batch])
        except Refused as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeMissing("changing the nftables ruleset") from error
            raise RulesetRejected(batch[error.index].what, error.errno or 0, error.explanation) from error

    def table(self, name: str) -> TableState | None:
        """The inet table of this name, None when there is none."""
        return self.tables().get(name)

    def tables(self) -> dict[str, TableState]:
        """Every inet table by its name."""
        found = {}
        for answer in self._look(messages.get_tables()):
            message = _decode(messages.table_msg, answer)
            found[message.get_attr("NFTA_TABLE_NAME")] = TableState(
                message.get_attr("NFTA_TABLE_FLAGS") or 0,
                message.get_attr("NFTA_TABLE_OWNER"),
                message.get_attr("NFTA_TABLE_USERDATA") or "",
            )
        return found

    def rules(self, table: str) -> list[tuple[str, str, int]]:
        """The rules of an inet table as (chain, comment, packets counted so far or 0), in order."""
        listed = []
        for answer in self._look(messages.get_rules(table)):
            message = _decode(nftsocket.nft_rule_msg, answer)
            comment = message.get_attr("NFTA_RULE_USERDATA") or ""
            listed.append((message.get_attr("NFTA_RULE_CHAIN"), comment, _packets(message)))
        return listed

    def ranges(self, table: str, set_name: str, version: int) -> tuple[Range, ...]:
        """The contents of an address set."""
        return unpack_ranges(self._elements(table, set_name), version)

    def keys(self, table: str, set_name: str) -> tuple[bytes, ...]:
        """The contents of any other set."""
        return unpack_keys(self._elements(table, set_name))

    def _elements(self, table: str, set_name: str) -> list[bytes]:
        return [
            payload
            for answer in self._look(messages.get_elements(table, set_name))
            for kind, payload in attributes(answer.data[HEADER.size + _GENERIC_HEADER :])
            if kind == _ELEMENTS
        ]

    def _look(self, message: Any) -> list[Answer]:
        try:
            return self._netlink.dump(message)
        except Refused as error:
            if error.errno == errno.ENOENT:
                return []
            if error.errno in (errno.EPERM, errno.EACCES):
                raise PrivilegeMissing("reading the nftables ruleset") from error
            raise


def _decode(kind: Any, answer: Answer) -> Any:
    message = kind(answer.data)
    message.decode()
    return message


def _packets(rule: Any) -> int:
    for expression in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ():
        if expression.get_attr("NFTA_EXPR_NAME") == "counter":
            return int(expression.get_attr("NFTA_EXPR_DATA").get_attr("NFTA_COUNTER_PACKETS"))
    return 0
