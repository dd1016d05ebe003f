"""Transactions: all or nothing, the refused message by name, and never a wait without end."""

import errno
import socket
from dataclasses import replace

import pytest

from appliance.netfilter import expressions, messages
from appliance.netfilter.batch import Nftables
from appliance.netfilter.errors import KernelSilent, RulesetRejected
from appliance.netfilter.interception import Interception
from appliance.netfilter.netlink import NETLINK_ROUTE, NetlinkSocket
from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.ruleset import OWNER, PERSIST, Rule, build
from tests.netfilter.conftest import look

POLICY = InterceptPolicy(interfaces=("lan0",))


@pytest.fixture
def nftables(lab):
    made = Nftables()
    yield made
    made.close()


@pytest.mark.netns
def test_a_refused_rule_is_named_and_nothing_of_the_transaction_stays(nftables):
    ruleset = build(POLICY)
    lost = Rule("to nowhere", (expressions.jump("missing"),))
    chains = tuple(replace(c, rules=(*c.rules, lost)) if c.name == "divert" else c for c in ruleset.chains)
    with pytest.raises(RulesetRejected, match="rule 'to nowhere' of chain divert") as caught:
        nftables.apply(messages.install(replace(ruleset, chains=chains), None))
    assert caught.value.code == errno.ENOENT
    assert look("nft", "list", "ruleset") == ""
    assert nftables.table("weir") is None


@pytest.mark.netns
def test_the_socket_works_on_after_a_refusal(nftables):
    for _ in range(3):
        with pytest.raises(RulesetRejected, match="deletion of table inet weir"):
            nftables.apply([messages.delete_table("weir")])
    nftables.apply(messages.install(build(POLICY), None))
    state = nftables.table("weir")
    assert state is not None
    assert (state.flags, state.owner) == (OWNER, nftables.port)


@pytest.mark.netns
def test_what_was_installed_is_listed_in_order(nftables):
    ruleset = build(POLICY)
    nftables.apply(messages.install(ruleset, None))
    listed = [(chain, comment) for chain, comment, _ in nftables.rules("weir")]
    assert listed == [(chain.name, rule.comment) for chain in ruleset.chains for rule in chain.rules]
    assert nftables.keys("weir", "interfaces") == (b"lan0".ljust(16, b"\0"),)


@pytest.mark.netns
def test_a_kernel_that_does_not_answer_is_reported_in_time(lab, monkeypatch):
    quiet = NetlinkSocket(NETLINK_ROUTE, timeout=0.05)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.settimeout(0.05)
    monkeypatch.setattr(quiet, "_socket", left)
    monkeypatch.setattr(NetlinkSocket, "port", 0)
    with pytest.raises(KernelSilent, match=r"0\.05 s"):
        quiet.dump(messages.get_tables())
    right.close()
    left.close()


class OldKernel:
    """Linux before 6.9: refuses tables that persist."""

    def __init__(self):
        self.flags = None

    def apply(self, changes):
        flags = [m.body.get_attr("NFTA_TABLE_FLAGS") for m in changes if m.what == "table inet weir"]
        if flags[-1] & PERSIST:
            raise RulesetRejected("table inet weir", errno.EOPNOTSUPP, "")
        self.flags = flags[-1]

    def close(self):
        pass


@pytest.mark.netns
def test_an_old_kernel_gets_a_closed_table_without_an_owner(lab, monkeypatch):
    interception, old = Interception(), OldKernel()
    interception._nftables.close()
    monkeypatch.setattr(interception, "_nftables", old)
    interception._apply(build(replace(POLICY, on_failure="closed")), None)
    assert old.flags == 0
    interception.close()
