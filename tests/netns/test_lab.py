"""``weir lab`` as a user runs it: the product's face."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.tools.lab import namespaces
from appliance.tools.lab.footprint import footprint
from appliance.tools.lab.main import down
from appliance.tools.lab.processes import eventually

PREFIX = "weirlabtest"
STAYING = f"import sys; from appliance.tools.lab.main import run; sys.exit(run(prefix={PREFIX!r}))"


def test_the_main_job_is_done_and_every_check_holds() -> None:
    before = footprint()
    done = subprocess.run(
        [sys.executable, "-m", "appliance.app", "lab", "--once", "-o", "json"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    result = json.loads(done.stdout)
    assert [check for check in result["checks"] if not check["ok"]] == []
    assert done.returncode == 0
    assert set(result) == {"ok", "checks", "recorded", "dropped", "seconds"}
    assert len(result["checks"]) >= 12
    assert result["ok"] is True
    assert result["recorded"]["http/1.1"] >= 12
    assert result["recorded"]["tcp"] >= 1
    assert result["dropped"] == 0
    assert footprint().difference(before, namespaces.PREFIX) == []


@dataclass
class Staying:
    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text()


@pytest.fixture
def staying(tmp_path: Path) -> Iterator[Staying]:
    out = tmp_path / "out"
    with out.open("w") as sink:
        lab = subprocess.Popen(
            [sys.executable, "-c", STAYING], cwd="/", stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        assert eventually(lambda: "stays up" in out.read_text() or lab.poll() is not None, 60.0), out.read_text()
        yield Staying(lab, out)
    finally:
        if lab.poll() is None:
            os.kill(lab.pid, signal.SIGTERM)
            lab.wait(30)
        assert down(PREFIX) == 0


def left() -> list[object]:
    return [*namespaces.leftovers(PREFIX), *Path(tempfile.gettempdir()).glob(f"{PREFIX}-*")]


def test_a_lab_that_stays_up_answers_on_the_hosts_loopback_until_ctrl_c(staying: Staying) -> None:
    address = re.search(r"http://127\.0\.0\.1:\d+", staying.said)
    assert address
    with urllib.request.urlopen(f"{address[0]}/api/v1/exchanges?limit=5", timeout=5) as answer:
        assert len(json.load(answer)["items"]) == 5
    staying.process.send_signal(signal.SIGINT)
    assert staying.process.wait(30) == 0
    assert left() == []


def test_lab_down_stops_a_lab_from_another_terminal(staying: Staying) -> None:
    assert down(PREFIX) == 0
    assert staying.process.wait(10) == 0
    assert left() == []


def test_what_a_killed_lab_leaves_is_found_and_removed(staying: Staying) -> None:
    staying.process.kill()
    staying.process.wait(10)
    assert left() != []
    assert down(PREFIX) == 0
    assert left() == []
