"""What a lab could leave behind on the host, looked at before and after."""

from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETTABLE, nft_table_msg

from appliance.netfilter.netlink import NETLINK_NETFILTER, NetlinkSocket, attributes
from appliance.tools.lab.namespaces import NETNS_DIRECTORY

_NFNL_SUBSYS_NFTABLES = 10  # include/uapi/linux/netfilter/nfnetlink.h
_NFTA_TABLE_NAME = 1
_HEADERS = 20  # nlmsghdr and nfgenmsg; the latter begins with the family


@dataclass(frozen=True, slots=True)
class Footprint:
    """The host's network state that a lab must not change, and who lives in other network namespaces."""

    namespaces: frozenset[str]
    rules: frozenset[str]
    tables: frozenset[str]

    def difference(self, before: "Footprint", run: str) -> list[str]:
        """What is new since ``before`` and belongs to nobody else: namespaces of ``run``, rules, tables."""
        return [
            *(f"namespace {name}" for name in self.namespaces - before.namespaces if name.startswith(run)),
            *(f"rule {rule}" for rule in self.rules - before.rules),
            *(f"nft table {table}" for table in self.tables - before.tables),
        ]


def footprint() -> Footprint:
    """Look at the host now."""
    with IPRoute() as ip:
        rules = frozenset(
            f"{rule['family']} {sorted((name, str(value)) for name, value in rule['attrs'])}"
            for family in (2, 10)
            for rule in ip.get_rules(family=family)
        )
    names = NETNS_DIRECTORY.iterdir() if NETNS_DIRECTORY.is_dir() else ()
    return Footprint(frozenset(entry.name for entry in names), rules, frozenset(_tables()))


def _tables() -> list[str]:
    request = nft_table_msg()
    request["header"]["type"] = _NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE
    request["nfgen_family"] = 0  # of every family
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        answers = netlink.dump(request)
    finally:
        netlink.close()
    named = [dict(attributes(answer.data[_HEADERS:])) for answer in answers]
    return [
        f"{answer.data[16]} {name[_NFTA_TABLE_NAME].rstrip(bytes(1)).decode()}"
        for answer, name in zip(answers, named, strict=True)
    ]


def processes_in(inodes: frozenset[int]) -> list[str]:
    """Processes whose network namespace is one of these, as ``pid name``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "net").stat().st_ino in inodes:
                    found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
            except OSError:
                continue  # it ended while we looked
    return found
