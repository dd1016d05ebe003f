import os
import stat
from pathlib import Path

import pytest

from appliance.app.errors import AppError, PrivilegeMissing
from appliance.app.privileges import ServiceUser
from appliance.app.state import StateDirectory, running
from appliance.app.wiring import Places


def test_a_state_directory_is_locked_and_tells_who_uses_it(tmp_path: Path) -> None:
    places = Places(tmp_path / "state")
    assert running(places) is None
    with StateDirectory(places):
        assert running(places) == os.getpid()
        with pytest.raises(AppError, match=rf"in use by another weir .process {os.getpid()}"), StateDirectory(places):
            pass
        assert running(places) == os.getpid()
    assert running(places) is None and places.lock.read_text() == ""


def test_a_killed_daemon_s_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.lock.write_text("99999999 a longer text than a process id\n")
    assert running(places) is None
    with StateDirectory(places):
        assert places.lock.read_text() == f"{os.getpid()}\n"


def test_what_the_service_writes_is_nobody_else_s(tmp_path: Path) -> None:
    places = Places(tmp_path / "state")
    with StateDirectory(places) as state:
        state.prepare(None)
        for path in places.service_directories:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_link_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    places = Places(tmp_path / "state")
    places.root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    places.rings.symlink_to(tmp_path / "elsewhere")
    with StateDirectory(places) as state, pytest.raises(AppError, match="is a link"):
        state.prepare(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_directory_that_the_service_user_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with (
        StateDirectory(Places(closed / "state")) as state,
        pytest.raises(PrivilegeMissing, match=r"may not enter .*chmod o.x"),
    ):
        state.prepare(ServiceUser("nobody", 65534, 65534))
