from appliance.app.config import Document
from appliance.app.config.load import keys
from appliance.app.config.standing import LIVE, NOT_IN_FORCE, is_live
from appliance.app.reload import compare


def document(**sections: object) -> Document:
    return Document.model_validate(sections)


def test_live_keys_come_into_force_and_the_others_wait_for_a_restart() -> None:
    old = document(limits={"max_connections": 5}, engine={"workers": 1})
    new = document(
        limits={"max_connections": 7},
        engine={"workers": 2, "timeouts": {"idle": "1h"}},
        protocols={"bypass_rules": [{"port": 9200, "mode": "fast_path"}]},
        proxy={"bind_address": "127.0.0.1:9", "socks": {"allow": ["192.0.2.0/24"]}},
    )
    change = compare(old, new)
    assert set(change.changed) == {
        "limits.max_connections",
        "engine.timeouts.idle",
        "protocols.bypass_rules",
        "proxy.socks.allow",
    }
    assert set(change.needs_restart) == {"engine.workers", "proxy.bind_address"}
    assert change.document.limits.max_connections == 7
    assert change.document.engine.timeouts.idle == 3600
    assert change.document.engine.workers == 1
    assert change.document.proxy.bind_address == old.proxy.bind_address
    assert change.document.proxy.socks.allow == ("192.0.2.0/24",)


def test_nothing_changes_when_nothing_changed() -> None:
    change = compare(document(), document())
    assert (change.changed, change.needs_restart) == ((), ())
    assert change.document == document()


def test_a_new_section_needs_a_restart_as_a_whole() -> None:
    change = compare(document(), document(proxy={"transparent": {"interfaces": ["lan0"]}}))
    assert change.needs_restart == ("proxy.transparent",)
    assert change.document.proxy.transparent is None


def test_every_key_that_is_called_live_or_later_exists() -> None:
    known = set(keys())
    assert set(LIVE) <= known
    assert set(NOT_IN_FORCE) <= known
    assert is_live("limits.max_connections") and not is_live("limitsx")
