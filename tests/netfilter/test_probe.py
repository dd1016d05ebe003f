"""The probe tells where a connection ended, and takes away what it made."""

import socket
from dataclasses import replace

import pytest

from appliance.netfilter.probe import Outcome, origin_address, try_live, try_sandbox
from tests.netfilter.conftest import do, kernel_state

pytestmark = pytest.mark.netns


async def test_the_sandbox_sees_the_original_destination_and_leaves_no_trace(lab, policy):
    before = kernel_state()
    assert await try_sandbox(policy) == {4: origin_address(4), 6: origin_address(6)}
    assert kernel_state() == before


async def test_each_end_of_a_connection_is_told_apart(lab, interception, policy):
    await interception.up(policy)
    assert {trial.outcome for trial in (await try_live(policy, 0.5)).values()} == {Outcome.STRAIGHT}
    await interception.replace(replace(policy, on_failure="closed"))
    assert {trial.outcome for trial in (await try_live(policy, 0.5)).values()} == {Outcome.REFUSED}
    await interception.replace(policy)
    await lab.relay()
    trials = await try_live(policy, 0.5)
    assert {(trial.outcome, trial.forwarded) for trial in trials.values()} == {(Outcome.RELAYED, True)}
    do("ip rule del priority 100")
    assert (await try_live(policy, 0.3))[4].outcome is Outcome.VANISHED


async def test_the_probe_takes_its_interfaces_away(lab, interception, policy):
    await interception.up(policy)
    before = socket.if_nameindex()
    await try_live(policy, 0.3)
    assert socket.if_nameindex() == before


async def test_a_listed_client_or_port_does_not_keep_the_probe_out(lab, interception, policy):
    await lab.relay()
    narrow = replace(policy, ports=(443,), exclude_macs=("02:00:5e:10:00:01",))
    await interception.up(narrow)
    assert (await try_live(narrow, 0.5))[6].outcome is Outcome.RELAYED
