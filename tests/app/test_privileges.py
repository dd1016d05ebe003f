import os
import pwd
import subprocess
import sys

import pytest

from appliance.app.errors import PrivilegeMissing
from appliance.app.privileges import CAP_NET_BIND_SERVICE, CAP_NET_RAW, KEPT, service_user

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")

DROP = """
import socket, sys
from appliance.app.privileges import KEPT, drop, has_capability, service_user
role, user = sys.argv[1:]
drop(service_user(user), KEPT[role])
print(open("/proc/self/status").read())
import os
print("home:", os.path.expanduser("~"))
try:
    socket.socket().setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
    print("transparent: yes")
except PermissionError:
    print("transparent: no")
try:
    os.setuid(0)
    print("root again: yes")
except PermissionError:
    print("root again: no")
"""


def dropped(role: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", DROP, role, "nobody"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    return dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)


@needs_root
@pytest.mark.parametrize("role", sorted(KEPT))
def test_a_role_keeps_exactly_its_capabilities_for_good(role: str) -> None:
    status = dropped(role)
    kept = f"{sum(1 << capability for capability in KEPT[role]):016x}"
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert status[name].strip() == kept, name
    assert status["CapInh"].strip() == status["CapAmb"].strip() == f"{0:016x}"
    nobody = pwd.getpwnam("nobody")
    assert set(status["Uid"].split()) == {str(nobody.pw_uid)}
    assert set(status["Gid"].split()) == {str(nobody.pw_gid)}
    assert status["Groups"].strip() == ""
    assert status["NoNewPrivs"].strip() == "1"
    assert status["transparent"].strip() == ("yes" if role == "relay" else "no")
    assert status["root again"].strip() == "no"
    assert status["home"].strip() == nobody.pw_dir


def test_relays_keep_what_transparent_sockets_and_low_ports_need_and_the_others_nothing() -> None:
    assert {"relay": {CAP_NET_RAW, CAP_NET_BIND_SERVICE}, "inspector": frozenset(), "api": frozenset()} == KEPT


@needs_root
def test_a_missing_user_is_told_with_the_command_to_make_it() -> None:
    with pytest.raises(PrivilegeMissing, match=r"useradd --system .* weir-nobody-here"):
        service_user("weir-nobody-here")
    with pytest.raises(PrivilegeMissing, match="is root"):
        service_user("root")
