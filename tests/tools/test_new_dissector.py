"""A new protocol begins as a working one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.tools import new_dissector

CHECKOUT = Path(new_dissector.__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for part in ("appliance", "tests/laws", "tests/dissectors"):
        shutil.copytree(CHECKOUT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/__init__.py").touch()
    return tmp_path


def test_the_copy_has_its_own_name_and_passes_its_tests(checkout: Path) -> None:
    written = new_dissector.create("gopher", checkout)
    assert checkout / "appliance/dissectors/gopher/machine.py" in written
    assert not any("template" in path.read_text().lower() for path in written)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/dissectors/gopher"]
    result = subprocess.run(tests, cwd=checkout, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["", "My-SQL", "../x", "_template", "9p"])
def test_a_name_that_is_no_package_is_refused(name: str, checkout: Path) -> None:
    with pytest.raises(new_dissector.NewDissectorError, match="is no name for a package"):
        new_dissector.create(name, checkout)


def test_an_existing_protocol_is_not_overwritten(checkout: Path) -> None:
    with pytest.raises(new_dissector.NewDissectorError, match="exists already"):
        new_dissector.create("http1", checkout)
