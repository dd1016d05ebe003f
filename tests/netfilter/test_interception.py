"""Real packets through real namespaces: who is intercepted, who is not, and what remains afterwards."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from appliance.model.endpoint import Endpoint
from appliance.netfilter.errors import NetfilterError, PolicyError, PrivilegeMissing, TableTaken
from appliance.netfilter.interception import Interception
from appliance.netfilter.policy import InterceptPolicy
from tests.netfilter.conftest import CLIENT, GATEWAY, ORIGIN, OTHER_ORIGIN, Lab, bound, do, kernel_state, look, switch

pytestmark = pytest.mark.netns
both = pytest.mark.parametrize("version", [4, 6])

HOLDER = """
import asyncio, sys
from appliance.netfilter.interception import Interception
from appliance.netfilter.policy import InterceptPolicy

async def main():
    interception = Interception()
    await interception.up(InterceptPolicy(interfaces=("lan0",), on_failure=sys.argv[1]))
    print("up", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.contextmanager
def another_weir(on_failure="open"):
    """A second process that intercepts in the gateway; SIGKILLed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, on_failure], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def said_by_origin(version):
    return f"origin saw {CLIENT[version]}"


def intercepted(version, port=80, host=None):
    return f"intercepted {Endpoint(host or ORIGIN[version], port)}"


@both
async def test_a_client_that_knows_nothing_reaches_the_listener_which_sees_the_original_destination(
    lab: Lab, interception: Interception, policy: InterceptPolicy, version
):
    seen = await lab.listen()
    await lab.serve()
    await interception.up(policy)
    assert await lab.hear(ORIGIN[version]) == intercepted(version)
    assert await lab.hear(OTHER_ORIGIN[version], 5432) == intercepted(version, 5432, OTHER_ORIGIN[version])
    assert [target for _, target, _ in seen] == [Endpoint(ORIGIN[version], 80), Endpoint(OTHER_ORIGIN[version], 5432)]
    assert {peer.host for _, _, peer in seen} == {CLIENT[version]}


@both
async def test_bytes_flow_both_ways_on_an_intercepted_connection(lab, interception, policy, version):
    await lab.listen()
    await interception.up(policy)
    async with lab.conversation(ORIGIN[version]) as talk:
        for number in range(20):
            assert await talk.echo(f"line {number}") == f"line {number}"


@both
async def test_only_listed_ports_are_intercepted(lab, interception, policy, version):
    await lab.listen()
    await lab.serve(80)
    await lab.serve(8080)
    await interception.up(replace(policy, ports=(8080,)))
    assert await lab.hear(ORIGIN[version], 80) == said_by_origin(version)
    assert await lab.hear(ORIGIN[version], 8080) == intercepted(version, 8080)


@both
async def test_the_gateways_own_services_stay_reachable(lab, interception, policy, version):
    await lab.listen()
    ssh = await asyncio.start_server(
        lambda _, writer: writer.write(b"ssh\n"), sock=bound(version, GATEWAY[version], 22)
    )
    await interception.up(policy)
    assert await lab.hear(GATEWAY[version], 22) == "ssh"
    ssh.close()


@both
async def test_named_addresses_are_never_intercepted(lab, interception, policy, version):
    await lab.listen()
    await lab.serve()
    await interception.up(replace(policy, own_addresses=(ip_address(OTHER_ORIGIN[version]),)))
    assert await lab.hear(OTHER_ORIGIN[version]) == said_by_origin(version)
    assert await lab.hear(ORIGIN[version]) == intercepted(version)


@both
async def test_bypass_entries_come_and_go_while_traffic_is_intercepted(lab, interception, policy, version):
    await lab.listen()
    await lab.serve()
    network = ip_network(OTHER_ORIGIN[version])
    await interception.up(policy)
    assert await lab.hear(OTHER_ORIGIN[version]) == intercepted(version, host=OTHER_ORIGIN[version])
    await interception.bypass_add([network])
    assert await interception.bypass() == (network,)
    assert await lab.hear(OTHER_ORIGIN[version]) == said_by_origin(version)
    assert await lab.hear(ORIGIN[version]) == intercepted(version)
    await interception.bypass_remove([network])
    assert await lab.hear(OTHER_ORIGIN[version]) == intercepted(version, host=OTHER_ORIGIN[version])


async def test_a_bypassed_port_goes_straight_to_its_server(lab, interception, policy):
    await lab.listen()
    await lab.serve(80)
    await interception.up(policy)
    await interception.bypass_add([80])
    assert await lab.hear(ORIGIN[4], 80) == said_by_origin(4)
    await interception.bypass_remove([80])
    assert await lab.hear(ORIGIN[4], 80) == intercepted(4)


async def test_overlapping_bypass_entries_are_merged_and_can_be_removed_one_by_one(lab, interception, policy):
    await lab.listen()
    await lab.serve()
    wide, narrow = ip_network("10.77.2.0/24"), ip_network("10.77.2.2/32")
    await interception.up(replace(policy, bypass=(wide,)))
    await interception.bypass_add([narrow, wide])
    assert await lab.hear(OTHER_ORIGIN[4]) == said_by_origin(4)
    await interception.bypass_remove([wide])
    assert await lab.hear(OTHER_ORIGIN[4]) == intercepted(4, host=OTHER_ORIGIN[4])
    assert await lab.hear(ORIGIN[4]) == said_by_origin(4)


async def test_live_bypass_entries_survive_a_replacement_of_the_policy(lab, interception, policy):
    first, second, third = (ip_network(f"198.51.100.{n}/32") for n in (1, 2, 3))
    await interception.up(replace(policy, bypass=(first, second)))
    await interception.bypass_add([third])
    await interception.bypass_remove([first])
    await interception.replace(replace(policy, bypass=(first, second), ports=(80,)))
    assert await interception.bypass() == (second, third)
    listed = look("nft", "list", "set", "inet", "weir", "bypass4")
    assert "198.51.100.2-198.51.100.3" in listed or "198.51.100.2/31" in listed


async def test_ten_thousand_networks_are_added_listed_and_removed_within_seconds(lab, interception, policy):
    networks = [ip_network((0x0A000000 + 512 * n, 24)) for n in range(10_000)]
    await interception.up(policy)
    async with asyncio.timeout(5):
        await interception.bypass_add(networks)
        assert len(await interception.bypass()) == 10_000
    assert look("nft", "list", "set", "inet", "weir", "bypass4").count("/24") == 10_000
    async with asyncio.timeout(5):
        await interception.bypass_remove(networks)
    assert "elements" not in look("nft", "list", "set", "inet", "weir", "bypass4")


@both
async def test_clients_are_chosen_by_address(lab, interception, policy, version):
    await lab.listen()
    await lab.serve()
    client, nobody = ip_network(CLIENT[version]), ip_network({4: "10.99.0.0/16", 6: "fd99::/32"}[version])
    await interception.up(replace(policy, clients=(client,)))
    assert await lab.hear(ORIGIN[version]) == intercepted(version)
    await interception.replace(replace(policy, clients=(nobody,)))
    assert await lab.hear(ORIGIN[version]) == said_by_origin(version)
    await interception.replace(replace(policy, exclude_clients=(client,)))
    assert await lab.hear(ORIGIN[version]) == said_by_origin(version)


@both
async def test_clients_are_excluded_by_mac_address(lab, interception, policy, version):
    await lab.listen()
    await lab.serve()
    with lab.client.entered():
        mac = look("ip", "-br", "link", "show", "eth0").split()[2]
    await interception.up(replace(policy, exclude_macs=(mac,)))
    assert await lab.hear(ORIGIN[version]) == said_by_origin(version)
    await interception.replace(replace(policy, exclude_macs=("02:00:5e:10:00:01",)))
    assert await lab.hear(ORIGIN[version]) == intercepted(version)


@both
async def test_what_the_gateway_itself_sends_is_left_alone_unless_asked_for(lab, interception, policy, version):
    await lab.listen()
    await lab.serve()
    await interception.up(policy)
    assert (await lab.hear(ORIGIN[version], where=lab.gateway)).startswith("origin saw")
    await interception.replace(replace(policy, own_traffic=True))
    assert await lab.hear(ORIGIN[version], where=lab.gateway) == intercepted(version)
    assert await lab.hear(ORIGIN[version]) == intercepted(version)


@both
async def test_the_loop_guard_lets_our_own_marked_sockets_pass(lab, interception, policy, version):
    seen = await lab.listen()
    await lab.serve()
    await interception.up(replace(policy, own_traffic=True))
    answer = await lab.hear(ORIGIN[version], where=lab.gateway, mark=policy.own_mark)
    assert answer.startswith("origin saw")
    assert await lab.hear(ORIGIN[version], where=lab.gateway, mark=policy.own_mark | 0xAB00) == answer
    assert seen == []


async def test_mark_bits_of_others_are_kept(lab, interception, policy):
    await lab.listen()
    do("nft add table inet others")
    do("nft add chain inet others early { type filter hook prerouting priority -160 ; }")
    do("nft add rule inet others early meta mark set 0x4000")
    do("nft add chain inet others late { type filter hook prerouting priority -140 ; }")
    do("nft add rule inet others late iifname lan0 tcp dport 80 meta mark 0x4001 counter")
    await interception.up(policy)
    assert await lab.hear(ORIGIN[4]) == intercepted(4)
    assert "packets 0 " not in look("nft", "list", "chain", "inet", "others", "late")


@both
async def test_without_a_listener_an_open_policy_lets_clients_go_straight(lab, interception, policy, version):
    await lab.serve()
    await interception.up(policy)
    assert await lab.hear(ORIGIN[version]) == said_by_origin(version)


@both
async def test_without_a_listener_a_closed_policy_refuses_at_once(lab, interception, policy, version):
    await lab.serve()
    await interception.up(replace(policy, on_failure="closed"))
    assert await lab.hear(ORIGIN[version]) == "ConnectionRefusedError"
    await lab.listen()
    assert await lab.hear(ORIGIN[version]) == intercepted(version)


@both
async def test_connections_that_were_there_before_go_on(lab, interception, policy, version):
    switch("net/ipv4/ip_forward", "1")
    switch("net/ipv6/conf/all/forwarding", "1")
    await lab.serve()
    await lab.listen()
    async with lab.conversation(ORIGIN[version]) as talk:
        await interception.up(policy)
        assert talk.first_line == said_by_origin(version)
        assert await talk.echo("still here") == "still here"


@both
async def test_quic_is_refused_so_that_clients_fall_back_to_tcp_at_once(lab, interception, policy, version):
    await interception.up(policy)
    loop = asyncio.get_running_loop()

    async def knock():
        with lab.client.entered():
            sock = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        with sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (ORIGIN[version], 443))
            await loop.sock_sendall(sock, b"initial")
            async with asyncio.timeout(0.5):
                return await loop.sock_recv(sock, 100)

    with pytest.raises(ConnectionRefusedError):
        await knock()
    await interception.replace(replace(policy, quic="pass"))
    with lab.origin.entered():
        server = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        server.bind(("" if version == 4 else "::", 443))
    with server:
        server.settimeout(1)
        with pytest.raises(TimeoutError):
            await knock()
        assert server.recv(100) == b"initial"


async def test_replacing_the_policy_under_traffic_loses_no_connection(lab, interception, policy):
    await lab.listen()
    await interception.up(policy)
    answers: list[str] = []
    stop = asyncio.Event()

    async def keep_connecting(version):
        while not stop.is_set():
            answers.append(await lab.hear(ORIGIN[version]))

    async with asyncio.TaskGroup() as group, lab.conversation(ORIGIN[4]) as talk:
        for version in (4, 6, 4, 6):
            group.create_task(keep_connecting(version))
        for number in range(25):
            await interception.replace(replace(policy, ports="all" if number % 2 else (80, 443)))
            assert await talk.echo(f"{number}") == f"{number}"
        stop.set()
    assert len(answers) > 25
    assert set(answers) == {intercepted(4), intercepted(6)}


@both
async def test_while_draining_new_connections_go_straight_and_those_that_are_open_go_on(
    lab, interception, policy, version
):
    await lab.listen()
    await lab.serve()
    before = kernel_state()
    await interception.up(policy)
    async with lab.conversation(ORIGIN[version]) as talk:
        assert await talk.echo("hello") == "hello"
        await interception.drain()
        assert await lab.hear(ORIGIN[version]) == said_by_origin(version)
        assert await talk.echo("as before") == "as before"
        await interception.down()
    assert kernel_state() == before


async def test_tear_down_leaves_the_gateway_exactly_as_it_was(lab, interception, policy):
    do("nft add table inet others")
    do("nft add chain inet others input { type filter hook input priority 0 ; }")
    do("nft add rule inet others input counter")
    do("ip rule add fwmark 0x10/0xf0 lookup 200 priority 50")
    do("ip -6 rule add fwmark 0x10/0xf0 lookup 200 priority 50")
    do("ip route add local default dev lo table 200")
    do("ip -6 route add local default dev lo table 200")
    switch("net/ipv4/conf/wan0/forwarding", "1")
    switch("net/ipv6/conf/lan0/accept_ra", "1")
    before = kernel_state()
    await interception.up(replace(policy, own_traffic=True))
    assert kernel_state() != before
    assert Path("/proc/sys/net/ipv6/conf/lan0/accept_ra").read_text() == "2\n"
    await interception.replace(replace(policy, routing_table=4242, rule_priority=99, ports=(80,)))
    await interception.down()
    assert without_counters(kernel_state()) == without_counters(before)


def without_counters(state):
    """The foreign table counts packets; that is its business."""
    ruleset = " ".join(word for word in str(state["ruleset"]).split() if not word.isdigit())
    return {**state, "ruleset": ruleset}


async def test_what_was_there_already_is_used_and_not_taken_away(lab, interception, policy):
    do("ip rule add fwmark 0x1/0xff lookup 5757 priority 100")
    do("ip route add local default dev lo table 5757")
    await lab.listen()
    before = kernel_state()
    await interception.up(policy)
    assert await lab.hear(ORIGIN[4]) == intercepted(4)
    await interception.down()
    assert kernel_state() == before


async def test_a_changed_routing_table_replaces_the_old_one(lab, interception, policy):
    await lab.listen()
    await interception.up(policy)
    await interception.replace(replace(policy, routing_table=100_000, rule_priority=77))
    rules = look("ip", "rule")
    assert "lookup 100000" in rules
    assert "5757" not in rules
    assert await lab.hear(ORIGIN[4]) == intercepted(4)


@pytest.mark.parametrize(
    "flush",
    ["ip rule del priority 100", "ip -6 rule del priority 100", "ip route flush table 5757", "ip -6 rule flush"],
)
async def test_routing_that_another_tool_flushes_is_put_back(lab, interception, policy, flush):
    await lab.listen()
    await interception.up(policy)
    before = kernel_state()
    keeper = asyncio.create_task(interception.keep())
    try:
        for times in (1, 2):
            do(flush)
            async with asyncio.timeout(3):
                while interception.mended < times:
                    await asyncio.sleep(0.01)
            assert await lab.hear(ORIGIN[4]) == intercepted(4)
            if "rule flush" not in flush:  # that takes away the kernel's own rules, too
                assert await lab.hear(ORIGIN[6]) == intercepted(6)
                assert kernel_state()["rules"] == before["rules"]
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
    await interception.down()
    assert "5757" not in look("ip", "rule") + look("ip", "-6", "rule")


async def test_others_routes_and_rules_coming_and_going_are_none_of_our_business(lab, interception, policy):
    await interception.up(policy)
    keeper = asyncio.create_task(interception.keep())
    do("ip route add 192.0.2.0/24 dev wan0")
    do("ip route del 192.0.2.0/24 dev wan0")
    do("ip rule add fwmark 0x10 lookup 200")
    do("ip rule del fwmark 0x10 lookup 200")
    do("ip rule del priority 100")  # the end of what is to be looked at
    async with asyncio.timeout(3):
        while not interception.mended:
            await asyncio.sleep(0.01)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert interception.mended == 1


@both
async def test_kill_dash_nine_removes_an_open_table_and_clients_go_straight(lab, version):
    await lab.listen()
    await lab.serve()
    with another_weir("open"):
        assert await lab.hear(ORIGIN[version]) == intercepted(version)
    assert look("nft", "list", "ruleset") == ""
    assert await lab.hear(ORIGIN[version]) == said_by_origin(version)
    await lab.close()


@both
async def test_kill_dash_nine_of_a_closed_one_keeps_the_door_closed_until_the_next_start(lab, policy, version):
    await lab.serve()
    with another_weir("closed"):
        pass
    assert "table inet weir" in look("nft", "list", "ruleset")
    assert await lab.hear(ORIGIN[version]) == "ConnectionRefusedError"
    async with Interception() as interception:
        await interception.up(policy)
        assert await lab.hear(ORIGIN[version]) == said_by_origin(version)
    assert look("nft", "list", "ruleset") == ""
    await lab.close()


async def test_a_start_after_kill_dash_nine_restores_the_switches_from_the_journal(lab, policy, tmp_path):
    journal = tmp_path / "run" / "switches.json"
    before = kernel_state()
    killed = Interception(journal)
    await killed.up(replace(policy, routing_table=300))
    killed.close()  # what SIGKILL does to it
    assert kernel_state() != before
    async with Interception(journal) as interception:
        await interception.up(policy)
        assert "lookup 300" not in look("ip", "rule")
    assert kernel_state() == before
    assert not journal.exists()


async def test_leftovers_can_be_cleared_without_a_start(lab, policy, tmp_path):
    before = kernel_state()
    killed = Interception(tmp_path / "switches.json")
    await killed.up(replace(policy, on_failure="closed"))
    killed.close()
    cleaner = Interception(tmp_path / "switches.json")
    await cleaner.clear("weir")
    cleaner.close()
    assert kernel_state() == before


@pytest.mark.parametrize("table", ["weir", "another-name"])
async def test_another_running_weir_in_the_namespace_is_not_disturbed(lab, interception, policy, table):
    await lab.listen()
    with another_weir() as other:
        before = kernel_state()
        with pytest.raises(TableTaken, match="table inet weir belongs to another running process") as caught:
            await interception.up(replace(policy, table=table, rule_priority=42))
        assert caught.value.port == other.pid
        assert kernel_state() == before
        assert await lab.hear(ORIGIN[6]) == intercepted(6)


async def test_a_spawned_child_does_not_keep_the_table_alive(lab, policy):
    """The gateway's namespace, and the routing left in it, end with the test."""
    interception = Interception()
    await interception.up(policy)
    child = await asyncio.create_subprocess_exec("sleep", "30", close_fds=False)
    try:
        interception.close()
        assert look("nft", "list", "ruleset") == ""
    finally:
        child.kill()
        await child.wait()


async def test_a_refused_set_up_leaves_nothing_behind(lab, interception, policy, monkeypatch):
    before = kernel_state()
    do("nft add table inet weir")
    do("nft add chain inet weir other")
    # A loopback listener of the wrong kind would be caught by the policy; a port of zero gets to the kernel.
    monkeypatch.setattr("appliance.netfilter.messages._HOOKS", {"prerouting": 9, "forward": 2, "output": 3})
    with pytest.raises(NetfilterError, match="chain prerouting"):
        await interception.up(policy)
    assert "chain other" in look("nft", "list", "ruleset")
    do("nft delete table inet weir")
    assert kernel_state() == before


async def test_a_namespace_whose_loopback_is_down_is_told_what_to_do(lab, interception, policy):
    do("ip link set lo down")
    with pytest.raises(NetfilterError, match="ip link set lo up"):
        await interception.up(policy)


async def test_a_table_cannot_change_its_name_while_in_force(lab, interception, policy):
    await interception.up(policy)
    with pytest.raises(PolicyError, match="stop first"):
        await interception.replace(replace(policy, table="other"))


async def test_bypass_needs_an_interception(lab, interception):
    assert await interception.bypass() == ()
    with pytest.raises(NetfilterError, match="nothing to bypass"):
        await interception.bypass_add([80])


def test_without_privileges_the_error_names_the_capability(lab):
    script = HOLDER.replace(
        "asyncio.run(main())",
        """
try:
    asyncio.run(main())
except Exception as error:
    print(type(error).__name__, error)
""",
    )
    command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script, "open"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=20).stdout
    assert said.startswith(PrivilegeMissing.__name__)
    assert "CAP_NET_ADMIN" in said
