import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.app.daemon import DEADLINE, Daemon, children_of, daemon, until


@pytest.fixture(scope="module")
def weir() -> Iterator[Daemon]:
    with daemon() as found:
        found.start()
        found.wait_ready()
        yield found


def test_it_is_ready_with_its_processes_and_their_state_directory(weir: Daemon) -> None:
    status = weir.status()
    assert status["ready"] and status["state"] == "serving"
    assert [child["name"] for child in status["processes"]] == ["inspector-0", "relay-0", "api"]
    assert all(child["state"] == "ready" for child in status["processes"])
    weir.connect().close()
    if os.geteuid() == 0:
        for child in status["processes"]:
            uids = Path(f"/proc/{child['pid']}/status").read_text().split("Uid:")[1].split()[:4]
            assert "0" not in uids


@pytest.mark.parametrize("killed", [("relay-0",), ("inspector-0", "api")])
def test_children_killed_with_9_are_replaced_and_the_others_go_on(weir: Daemon, killed: tuple[str, ...]) -> None:
    before = {child["name"]: child["pid"] for child in weir.status()["processes"]}
    for name in killed:
        os.kill(before[name], signal.SIGKILL)

    def replaced() -> bool:
        after = {child["name"]: child for child in weir.status().get("processes", [])}
        return bool(after) and all(
            after[name]["state"] == "ready" and after[name]["pid"] not in (before[name], None) for name in killed
        )

    until(replaced, f"{killed} are replaced")
    after = {child["name"]: child for child in weir.status()["processes"]}
    assert all(after[name]["restarts"] == 1 for name in killed)
    assert {name for name in after if after[name]["pid"] == before[name]} == set(after) - set(killed)
    weir.connect().close()


def test_a_hang_up_reloads_what_can_change_and_names_what_cannot(weir: Daemon) -> None:
    assert weir.process is not None
    seen = len(weir.events("reloaded"))
    weir.configure(limits={"max_connections": 77}, logging={"level": "info", "format": "console"})
    weir.process.send_signal(signal.SIGHUP)
    until(lambda: len(weir.events("reloaded")) > seen, "reloaded")
    told = weir.events("reloaded")[-1]
    assert told["changed"] == ["limits.max_connections"] and told["needs_restart"] == ["logging.format"]


def test_what_a_reload_changes_is_in_force_for_the_next_connection(weir: Daemon) -> None:
    weir.configure(limits={"max_connections": 1})
    assert weir.weir("reload", "--api", f"http://127.0.0.1:{weir.api}").returncode == 0

    def admitted() -> bool:
        try:
            with weir.connect() as first, weir.connect() as second:
                first.sendall(b"\x05\x01\x00")
                second.sendall(b"\x05\x01\x00")
                return [said(first), said(second)] != [b"\x05\x00", b""]
        except ConnectionError:  # the reset came while we still spoke
            return False

    until(lambda: not admitted(), "only one connection is admitted")
    weir.configure()
    assert weir.weir("reload", "--api", f"http://127.0.0.1:{weir.api}").returncode == 0


def test_a_bad_configuration_is_refused_whole_and_the_old_one_stays(weir: Daemon) -> None:
    weir.configure(limits={"max_connections": "many"}, logging={"level": "loud"})
    done = weir.weir("reload", "--api", f"http://127.0.0.1:{weir.api}")
    assert done.returncode != 0
    assert "limits.max_connections" in done.stderr and "logging.level" in done.stderr
    weir.configure()
    done = weir.weir("reload", "--api", f"http://127.0.0.1:{weir.api}", "-o", "json")
    assert done.returncode == 0, done.stderr
    weir.connect().close()


def test_a_second_daemon_in_the_same_state_directory_is_refused(weir: Daemon) -> None:
    assert weir.process is not None
    done = weir.weir("run", "--config", str(weir.file))
    assert done.returncode == 1
    assert f"in use by another weir (process {weir.process.pid})" in done.stderr


def test_it_stops_cleanly_on_sigterm_and_leaves_no_process_and_no_lock(weir: Daemon) -> None:
    assert weir.process is not None
    children = children_of(weir.process.pid)
    assert len(children) == 4  # and the database
    assert weir.stop() == 0, weir.log()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert (weir.home / "state" / "weir.pid").read_text() == ""
    with pytest.raises(ConnectionRefusedError):
        weir.connect()
    assert "Traceback" not in weir.log()


def test_open_connections_are_drained_and_a_second_signal_ends_them_at_once() -> None:
    with started() as weir, socket.create_server(("127.0.0.1", 0)) as origin:
        client = through(weir, origin)
        server, _ = origin.accept()
        client.sendall(b"one")
        assert server.recv(3) == b"one"
        assert weir.process is not None
        weir.process.send_signal(signal.SIGTERM)
        until(lambda: weir.events("stopping"), "stopping")
        server.sendall(b"two")  # what is open goes on
        assert client.recv(3) == b"two"
        with pytest.raises(ConnectionRefusedError):
            until(lambda: weir.connect().close(), "nobody listens any more")
        weir.process.send_signal(signal.SIGTERM)
        assert weir.process.wait(4) == 0
        for sock in (client, server):
            sock.close()


def test_children_follow_a_supervisor_that_was_killed() -> None:
    with started() as weir:
        assert weir.process is not None
        children = children_of(weir.process.pid)
        weir.process.kill()
        weir.process.wait()
        for pid in children:
            until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "a child follows")
        # And the next one starts over what is left.
        (weir.home / "log").write_text("")
        weir.start()
        weir.wait_ready()
        assert weir.stop() == 0


def test_a_port_that_is_taken_is_told_and_nothing_stays() -> None:
    with daemon(api={"enabled": False}) as weir, socket.create_server(("127.0.0.1", weir.port)):
        process = weir.start()
        assert process.wait(DEADLINE) != 0
        assert f"cannot listen on 127.0.0.1:{weir.port}" in weir.log().splitlines()[-1]
        assert (weir.home / "state" / "weir.pid").read_text() == ""


def said(sock: socket.socket) -> bytes:
    try:
        return sock.recv(2)
    except ConnectionResetError:
        return b""


def through(weir: Daemon, origin: socket.socket) -> socket.socket:
    """A connection to the origin, by SOCKS5 without authentication (RFC 1928)."""
    client = weir.connect()
    client.sendall(b"\x05\x01\x00")
    assert client.recv(2) == b"\x05\x00"
    host, port = origin.getsockname()
    client.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2))
    assert client.recv(10)[:2] == b"\x05\x00"
    return client


@contextmanager
def started(**sections: object) -> Iterator[Daemon]:
    with daemon(**sections) as weir:
        weir.start()
        weir.wait_ready()
        yield weir
