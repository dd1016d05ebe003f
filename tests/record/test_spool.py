import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from appliance.record.settings import SpoolSettings
from appliance.record.spool import MAGIC, Spool, SpoolBusy
from tests.postgres import temporary_directory


def drained(spool: Spool) -> list[bytes]:
    said = []
    while payloads := spool.first(most=100):
        said += payloads
        spool.drop(payloads)
    return said


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(0, 20), st.integers(64, 2000))
def test_entries_come_back_once_in_order_across_processes(entries: list[bytes], drop: int, segment: int) -> None:
    with temporary_directory() as directory:
        settings = SpoolSettings(directory=directory, segment=segment)
        first = Spool(settings)
        first.open()
        for entry in entries:
            assert first.append(entry)
        read = []
        for _ in range(min(drop, len(entries))):
            (payload,) = first.first()
            read.append(payload)
            first.drop([payload])
        first.close()
        second = Spool(settings)
        found = second.open()
        again = drained(second)
        # What was dropped within a segment that is still in use comes again; nothing else does, and nothing is missing.
        assert again == entries[len(entries) - len(again) :]
        assert read + again[max(0, len(again) - (len(entries) - len(read))) :] == entries
        assert found.lost == 0
        assert (second.entries, second.size) == (0, 0)
        assert not list(directory.glob("*.spool"))
        second.close()


def test_a_file_torn_at_any_byte_loses_its_last_entry_only(tmp_path: Path) -> None:
    entries = [b"first", b"second entry", b"third one"]
    made = Spool(SpoolSettings(directory=tmp_path / "made"))
    made.open()
    for entry in entries:
        made.append(entry)
    made.close()
    (file,) = (tmp_path / "made").glob("*.spool")
    whole = file.read_bytes()
    ends = [len(MAGIC)]
    for entry in entries:
        ends.append(ends[-1] + 8 + len(entry))
    for cut in range(len(whole)):
        directory = tmp_path / f"cut{cut}"
        directory.mkdir()
        (directory / file.name).write_bytes(whole[:cut])
        spool = Spool(SpoolSettings(directory=directory))
        found = spool.open()
        kept = sum(end <= cut for end in ends[1:])
        assert found.entries == kept
        assert found.lost == cut - max([end for end in ends if end <= cut], default=0)
        assert spool.append(b"next")
        assert drained(spool) == [*entries[:kept], b"next"]
        spool.close()


def test_a_flipped_bit_is_never_read_as_an_entry(tmp_path: Path) -> None:
    made = Spool(SpoolSettings(directory=tmp_path))
    made.open()
    made.append(b"first")
    made.append(b"second")
    made.close()
    (file,) = tmp_path.glob("*.spool")
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        spool = Spool(SpoolSettings(directory=tmp_path))
        spool.open()
        assert drained(spool) in ([], [b"first"])
        spool.close()


def test_damage_that_happens_while_it_is_open_is_counted_and_skipped(tmp_path: Path) -> None:
    spool = Spool(SpoolSettings(directory=tmp_path, segment=16))
    spool.open()
    spool.append(b"first")
    spool.append(b"second")
    oldest = min(tmp_path.glob("*.spool"))
    oldest.write_bytes(oldest.read_bytes()[:-1] + b"?")
    assert drained(spool) == [b"second"]
    assert spool.damaged == 8 + len(b"first")
    spool.close()


def test_the_bound_refuses_the_newest_and_keeps_the_others(tmp_path: Path) -> None:
    spool = Spool(SpoolSettings(directory=tmp_path, limit=100))
    spool.open()
    assert spool.append(b"a" * 40)
    assert not spool.append(b"b" * 60)
    assert spool.append(b"c" * 20)
    assert drained(spool) == [b"a" * 40, b"c" * 20]
    assert spool.append(b"b" * 60)
    spool.close()


def test_a_spool_belongs_to_one_process(tmp_path: Path) -> None:
    first, second = Spool(SpoolSettings(directory=tmp_path)), Spool(SpoolSettings(directory=tmp_path))
    first.open()
    with pytest.raises(SpoolBusy):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    with temporary_directory() as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)


@how(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10, deadline=None)
@given(st.integers(1, 400_000))
def test_a_full_disk_refuses_entries_and_leaves_the_others_whole(small_disk: Path, size: int) -> None:
    spool = Spool(SpoolSettings(directory=small_disk, segment=1 << 18))
    spool.open()
    taken, refused = [], 0
    while refused < 3:
        entry = bytes([len(taken) % 256]) * size
        if spool.append(entry):
            taken.append(entry)
        else:
            refused += 1
        if len(taken) > 100:
            break
    spool.close()
    again = Spool(replace(SpoolSettings(directory=small_disk), segment=1 << 18))
    assert again.open().lost == 0
    assert drained(again) == taken
    again.close()
