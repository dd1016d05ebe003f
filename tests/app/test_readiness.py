import os
import socket
from pathlib import Path

import pytest

from appliance.app.readiness import ServiceManager


def test_the_manager_hears_ready_reloading_stopping_and_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "4000000")
        manager = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ and manager.beat == 2.0
        for say in (lambda: manager.ready("socks"), manager.reloading, lambda: manager.stopping("bye"), manager.alive):
            say()
        heard = [listener.recv(1000).decode() for _ in range(4)]
    assert heard[0].startswith("READY=1\nSTATUS=socks") and f"MAINPID={os.getpid()}" in heard[0]
    assert heard[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[2].startswith("STOPPING=1") and heard[3] == "WATCHDOG=1"


def test_without_a_manager_nothing_is_said_and_a_watchdog_of_another_process_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    manager = ServiceManager()
    assert manager.beat is None
    manager.ready("fine")


def test_a_manager_that_is_gone_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    ServiceManager().ready("fine")
