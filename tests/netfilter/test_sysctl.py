"""Switches are set when needed, noted before, and put back."""

import errno
import json
from pathlib import Path

import pytest

from appliance.netfilter import sysctl
from appliance.netfilter.errors import PrivilegeMissing
from appliance.netfilter.policy import InterceptPolicy
from appliance.netfilter.sysctl import IPV4_FORWARD, IPV6_FORWARD, Switches


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A /proc/sys of our own."""
    root = tmp_path / "sys"
    values = {"kernel/random/boot_id": "boot", IPV4_FORWARD: "0"}
    for name in ("all", "default", "lan0", "wan0"):
        values |= {f"net/ipv4/conf/{name}/send_redirects": "1", f"net/ipv4/conf/{name}/forwarding": "0"}
        values |= {f"net/ipv6/conf/{name}/accept_ra": "1", f"net/ipv6/conf/{name}/forwarding": "0"}
    for name, value in values.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(value + "\n")
    monkeypatch.setattr(sysctl, "ROOT", root)
    return root


POLICY = InterceptPolicy(interfaces=("lan0",))


def contents(tree):
    return {str(path.relative_to(tree)): path.read_text().strip() for path in tree.rglob("*") if path.is_file()}


def test_a_gateway_forwards_sends_no_redirects_and_keeps_its_own_router_advertisements(tree):
    wanted = sysctl.wanted(POLICY)
    assert wanted[IPV4_FORWARD] == wanted[IPV6_FORWARD] == "1"
    assert wanted["net/ipv4/conf/lan0/send_redirects"] == wanted["net/ipv4/conf/all/send_redirects"] == "0"
    assert "net/ipv4/conf/wan0/send_redirects" not in wanted
    assert wanted["net/ipv6/conf/wan0/accept_ra"] == "2"


def test_what_is_right_already_is_not_touched(tree):
    Switches().set(sysctl.wanted(POLICY))
    assert sysctl.wanted(POLICY) == {}


def test_a_family_that_is_not_intercepted_keeps_its_switches(tree):
    assert not [name for name in sysctl.wanted(InterceptPolicy(interfaces=("lan0",), listen6=None)) if "ipv6" in name]


def test_a_kernel_without_ipv6_is_no_trouble(tree):
    for path in (tree / "net/ipv6").rglob("*"):
        if path.is_file():
            path.unlink()
    assert IPV6_FORWARD not in sysctl.wanted(POLICY)


def test_restoring_brings_everything_back(tree):
    before = contents(tree)
    switches = Switches()
    switches.set(sysctl.wanted(POLICY))
    assert contents(tree) != before
    switches.restore()
    assert contents(tree) == before
    assert switches.before == {}


def test_the_journal_outlives_a_killed_run(tree, tmp_path):
    before = contents(tree)
    journal = tmp_path / "run" / "switches.json"
    Switches(journal).set(sysctl.wanted(POLICY))
    second = Switches(journal)
    second.set(sysctl.wanted(POLICY))
    second.restore()
    assert contents(tree) == before
    assert not journal.exists()


def test_a_journal_of_another_boot_or_one_that_is_damaged_is_not_believed(tree, tmp_path):
    journal = tmp_path / "switches.json"
    journal.write_text(json.dumps({"namespace": "another boot", "values": {IPV4_FORWARD: "7"}}))
    assert Switches(journal).before == {}
    journal.write_text('{"namespace": ')
    assert Switches(journal).before == {}


def test_a_read_only_tree_is_lived_with_but_a_missing_privilege_is_not(tree, monkeypatch):
    def refuse(code):
        def write_text(path, text):
            raise OSError(code, "refused")

        monkeypatch.setattr(Path, "write_text", write_text)

    refuse(errno.EROFS)
    Switches().set({IPV4_FORWARD: "1"})
    refuse(errno.EACCES)
    with pytest.raises(PrivilegeMissing, match=r"net\.ipv4\.ip_forward=1 needs CAP_NET_ADMIN"):
        Switches().set({IPV4_FORWARD: "1"})


def test_an_interface_that_is_gone_is_passed_over(tree):
    switches = Switches()
    switches.set({"net/ipv4/conf/lan0/send_redirects": "0"})
    Path(tree, "net/ipv4/conf/lan0/send_redirects").unlink()
    switches.restore()
    assert not Path(tree, "net/ipv4/conf/lan0/send_redirects").exists()
