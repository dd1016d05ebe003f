"""Every message has a name for when it is refused, and comes in an order the kernel can follow."""

from appliance.netfilter import messages
from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.ruleset import OWNER, build

RULESET = build(InterceptPolicy(interfaces=("lan0",), ports=(80,)))


def names(existing=None):
    return [message.what for message in messages.install(RULESET, existing)]


def test_chains_and_sets_come_before_the_rules_that_use_them():
    order = [name.split()[0] for name in names()]
    assert order[0] == "table"
    assert order.index("rule") > max(order.index("set"), len(order) - 1 - order[::-1].index("chain"))
    assert "addition of elements of set ports" in names()


def test_a_table_that_is_there_is_named_with_its_own_flags_deleted_and_made_anew():
    first, second, third, *_ = messages.install(RULESET, 4)
    assert [m.what for m in (first, second, third)] == [
        "table inet weir",
        "deletion of table inet weir",
        "table inet weir",
    ]
    assert first.body.get_attr("NFTA_TABLE_FLAGS") == 4
    assert third.body.get_attr("NFTA_TABLE_FLAGS") == OWNER


def test_every_message_encodes_and_a_transaction_has_both_its_ends():
    whole = messages.transaction(messages.install(RULESET, None))
    for message in whole:
        message.body.encode()
    assert [message.body["header"]["type"] for message in (whole[0], whole[-1])] == [0x10, 0x11]
    assert len(set(names())) == len(names())
