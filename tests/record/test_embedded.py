import os
import stat
import time
from pathlib import Path

import asyncpg
import pytest

from appliance.record.embedded import Cluster, ClusterError, find_binaries
from appliance.record.settings import EmbeddedSettings, SettingsError
from tests.postgres import Server, running_server, server_user

pytestmark = pytest.mark.postgres


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_the_cluster_listens_on_its_private_socket_only(server: Server) -> None:
    assert await ask(server.dsn, "SHOW listen_addresses") == ""
    assert await ask(server.dsn, "SELECT current_database()") == "weir"
    run = server.cluster._settings.run
    assert stat.S_IMODE(run.stat().st_mode) == 0o700


async def test_a_committed_row_outlives_kill_9_and_recovery_is_quick() -> None:
    with running_server() as own:
        await ask(own.dsn, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        own.kill()
        began = time.monotonic()
        own.start()
        assert await ask(own.dsn, "SELECT count(*) FROM t") == 1000
        assert time.monotonic() - began < 10


async def test_a_server_that_was_left_running_is_taken_over() -> None:
    with running_server() as own:
        first = own.process
        assert first is not None
        own.start()
        assert first.wait(5) is not None
        assert await ask(own.dsn, "SELECT 1") == 1


async def test_a_pid_file_that_names_a_stranger_does_not_stop_the_start() -> None:
    with running_server() as own:
        own.stop()
        data = own.cluster._settings.data
        (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
        Path(f"{own.cluster._settings.socket_file}.lock").write_text(f"{os.getpid()}\n")
        own.start()
        assert await ask(own.dsn, "SELECT 1") == 1


def test_an_interrupted_initialisation_is_started_over(short_path: Path) -> None:
    half = short_path / "pg" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("15\n")
    own = Server(short_path / "pg")
    try:
        own.start()
    finally:
        own.stop()
    assert not half.exists()


def test_a_socket_path_that_the_kernel_would_cut_is_refused_with_its_length() -> None:
    with pytest.raises(SettingsError, match=r"state_dir is .* 1\d\d bytes, at most 107 fit"):
        EmbeddedSettings(directory=Path("/var/lib") / ("w" * 90))


def test_files_of_another_major_version_are_refused_with_the_remedy(short_path: Path) -> None:
    data = short_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("9\n")
    with pytest.raises(ClusterError, match=r"made by PostgreSQL 9.*apt install postgresql-9"):
        Cluster(EmbeddedSettings(directory=short_path, user=server_user())).prepare()


def test_missing_binaries_are_named_with_three_ways_out(short_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"apt install postgresql.*pip install.*storage\.dsn"):
        find_binaries(short_path, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led astray")
async def test_links_in_the_service_user_s_directory_lead_root_nowhere(short_path: Path) -> None:
    victims = short_path / "victims"
    victims.mkdir()
    own = Server(short_path / "pg")
    try:
        own.start()
        own.stop()
        data = own.cluster._settings.data
        (victims / "shadow").write_text("root's")
        (data / "postgresql.conf.new").symlink_to(victims / "shadow")
        with pytest.raises(ClusterError):
            own.cluster.prepare()
        assert (victims / "shadow").read_text() == "root's" and (victims / "shadow").stat().st_uid == 0
        (data / "postgresql.conf.new").unlink()
        own.cluster._settings.run.rename(short_path / "pg" / "elsewhere")
        own.cluster._settings.run.symlink_to(victims)
        with pytest.raises(ClusterError, match="cannot make"):
            own.cluster.prepare()
        assert victims.stat().st_uid == 0
    finally:
        own.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has somebody to drop to")
@pytest.mark.parametrize("user", [None, "root", "no-such-user"])
def test_root_without_a_user_to_drop_to_is_told_what_to_set(short_path: Path, user: str | None) -> None:
    with pytest.raises(ClusterError, match=r"engine\.user"):
        Cluster(EmbeddedSettings(directory=short_path, user=user)).prepare()
