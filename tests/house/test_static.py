"""The house rules, as tests: what ``./run check`` looks at first, so that ``./run test`` alone proves them too."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "argv",
    [
        pytest.param([sys.executable, "-m", "ruff", "check", "--no-cache", "."], id="ruff finds nothing"),
        pytest.param(
            [sys.executable, "-m", "ruff", "format", "--check", "--no-cache", "."], id="the code is formatted"
        ),
        pytest.param([sys.executable, "-m", "mypy"], id="every type holds, strictly"),
        pytest.param([str(BIN / "lint-imports"), "--no-cache"], id="imports point down only"),
        pytest.param(["shellcheck", "run", ".ci/run"], id="shellcheck finds nothing"),
    ],
)
def test_the_house_is_in_order(argv: list[str]) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
