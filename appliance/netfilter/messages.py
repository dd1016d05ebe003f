"""A ruleset as the messages the kernel reads, each with a name for when it is refused.

The message classes are pyroute2's. Two are extended here: its table message does not know the owner attribute, and set
elements come packed already (sets.py).
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg, nftsocket

from appliance.netfilter.ruleset import SIGNATURE, Chain, Rule, Ruleset, Set
from appliance.netfilter.sets import pack_keys, pack_ranges

INET = 1  # NFPROTO_INET
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_HOOKS = {"prerouting": 0, "forward": 2, "output": 3}  # NF_INET_*
_ACCEPT = 1

# Type numbers are for nft's display only (nftables/include/datatype.h); the lengths are what the kernel compares.
_SET_TYPES = {
    "ipv4_addr": (nftsocket.DATA_TYPE_IPADDR, 4),
    "ipv6_addr": (nftsocket.DATA_TYPE_IP6ADDR, 16),
    "ether_addr": (nftsocket.DATA_TYPE_ETHERADDR, 6),
    "inet_service": (nftsocket.DATA_TYPE_INET_SERVICE, 2),
    "ifname": (nftsocket.DATA_TYPE_IFNAME, 16),
}


class Message(NamedTuple):
    """One message of a transaction; ``what`` names it in errors."""

    what: str
    body: Any


class table_msg(nfgen_msg):  # type: ignore[misc]  # pyroute2 has no types
    """pyroute2's table message, with the owner's netlink port."""

    nla_map = (*nftsocket.nft_table_msg.nla_map, ("NFTA_TABLE_OWNER", "be32"))

    class comment(nftsocket.nft_table_msg.comment):  # type: ignore[misc]
        """The table's user data."""


class elements_msg(nfgen_msg):  # type: ignore[misc]
    """pyroute2's element list, with the elements left as bytes."""

    nla_map = (
        ("NFTA_SET_ELEM_LIST_UNSPEC", "none"),
        ("NFTA_SET_ELEM_LIST_TABLE", "asciiz"),
        ("NFTA_SET_ELEM_LIST_SET", "asciiz"),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", "cdata"),
        ("NFTA_SET_ELEM_LIST_SET_ID", "be32"),
    )


def transaction(messages: Iterable[Message]) -> list[Message]:
    """The messages between a BEGIN and an END: the kernel applies all of them or none."""
    return [_edge(_BATCH_BEGIN), *messages, _edge(_BATCH_END)]


def install(ruleset: Ruleset, existing_flags: int | None) -> list[Message]:
    """Messages that put this table in place of one of the same name, if there is one (its flags, else None).

    Deletion and creation are one transaction, so no packet ever meets a missing table. An orphaned persistent table
    must be adopted before it may be deleted: that is what naming it with its own flags does.
    """
    messages = []
    if existing_flags is not None:
        messages = [_table(ruleset.table, existing_flags), delete_table(ruleset.table)]
    messages.append(_table(ruleset.table, ruleset.flags))
    # Chains come first because rules jump to them, sets because rules look them up.
    messages += [_chain(ruleset.table, chain) for chain in ruleset.chains]
    for number, each in enumerate(ruleset.sets, 1):
        messages += _set(ruleset.table, each, number)
    for chain in ruleset.chains:
        messages += [_rule(ruleset.table, chain.name, rule) for rule in chain.rules]
    return messages


def delete_table(table: str) -> Message:
    """Delete a table and all that is in it."""
    body = _message(table_msg, nftsocket.NFT_MSG_DELTABLE, 0, [("NFTA_TABLE_NAME", table)])
    return Message(f"deletion of table inet {table}", body)


def get_tables() -> Any:
    """Ask for every table."""
    return _message(table_msg, nftsocket.NFT_MSG_GETTABLE, 0, [])


def get_rules(table: str) -> Any:
    """Ask for a table's rules."""
    return _message(nftsocket.nft_rule_msg, nftsocket.NFT_MSG_GETRULE, 0, [("NFTA_RULE_TABLE", table)])


def get_elements(table: str, set_name: str) -> Any:
    """Ask for a set's elements."""
    return _message(elements_msg, nftsocket.NFT_MSG_GETSETELEM, 0, _set_name(table, set_name))


def change_elements(table: str, each: Set, *, delete: bool = False) -> Iterator[Message]:
    """Add what ``each`` holds to the set of its name, or delete it from there."""
    payloads = pack_ranges(each.ranges, each.version) if each.version else pack_keys(each.keys)
    kind = nftsocket.NFT_MSG_DELSETELEM if delete else nftsocket.NFT_MSG_NEWSETELEM
    for payload in payloads:
        attributes = [*_set_name(table, each.name), ("NFTA_SET_ELEM_LIST_ELEMENTS", payload)]
        body = _message(elements_msg, kind, 0 if delete else NLM_F_CREATE, attributes)
        yield Message(f"{'deletion' if delete else 'addition'} of elements of set {each.name}", body)


def _table(table: str, flags: int) -> Message:
    attributes = [
        ("NFTA_TABLE_NAME", table),
        ("NFTA_TABLE_FLAGS", flags),
        ("NFTA_TABLE_USERDATA", {"value": SIGNATURE}),
    ]
    body = _message(table_msg, nftsocket.NFT_MSG_NEWTABLE, NLM_F_CREATE, attributes)
    return Message(f"table inet {table}", body)


def _chain(table: str, chain: Chain) -> Message:
    attributes: list[tuple[str, Any]] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain.name)]
    if chain.hook:
        hook = [("NFTA_HOOK_HOOKNUM", _HOOKS[chain.hook.name]), ("NFTA_HOOK_PRIORITY", chain.hook.priority)]
        attributes += [
            ("NFTA_CHAIN_HOOK", {"attrs": hook}),
            ("NFTA_CHAIN_POLICY", _ACCEPT),
            ("NFTA_CHAIN_TYPE", chain.hook.type),
        ]
    body = _message(nftsocket.nft_chain_msg, nftsocket.NFT_MSG_NEWCHAIN, NLM_F_CREATE, attributes)
    return Message(f"chain {chain.name}", body)


def _set(table: str, each: Set, number: int) -> Iterator[Message]:
    type_number, length = _SET_TYPES[each.type]
    attributes = [
        ("NFTA_SET_TABLE", table),
        ("NFTA_SET_NAME", each.name),
        ("NFTA_SET_ID", number),
        ("NFTA_SET_FLAGS", {"NFT_SET_INTERVAL"} if each.version else set()),
        ("NFTA_SET_KEY_TYPE", type_number),
        ("NFTA_SET_KEY_LEN", length),
    ]
    if each.type == "ifname":
        # Only for nft's display: it reads strings backwards unless told that they are host-endian.
        attributes.append(("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", struct.pack("=I", 1))]))
    body = _message(nftsocket.nft_set_msg, nftsocket.NFT_MSG_NEWSET, NLM_F_CREATE, attributes)
    yield Message(f"set {each.name}", body)
    yield from change_elements(table, each)


def _rule(table: str, chain: str, rule: Rule) -> Message:
    attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", [operation for each in rule.statements for operation in each.operations]),
        ("NFTA_RULE_USERDATA", {"value": rule.comment}),
    ]
    body = _message(nftsocket.nft_rule_msg, nftsocket.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes)
    return Message(f"rule {rule.comment!r} of chain {chain}", body)


def _set_name(table: str, set_name: str) -> list[tuple[str, Any]]:
    return [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", set_name)]


def _message(kind: Any, number: int, flags: int, attributes: list[tuple[str, Any]]) -> Any:
    message = kind()
    message["attrs"] = attributes
    message["nfgen_family"] = INET
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | number
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
    return message


def _edge(number: int) -> Message:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    return Message("the transaction", message)
