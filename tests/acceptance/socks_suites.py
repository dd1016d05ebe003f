"""python-socks' and aiohttp-socks' own test suites, unmodified, against their own proxy and then against Weir.

    python -m tests.acceptance.socks_suites --python-socks DIR --aiohttp-socks DIR
        [--python INTERPRETER] [--proxy-cmd 'COMMAND --config {config}'] [--proxy-config FILE] [--dsn DSN]

Each suite runs three times: as it is (the baseline), with Weir in the place of its proxy server, and with Weir
stopped. It holds when the names of the passing tests are the same in the first two runs, when the third fails, and,
if a DSN is given, when the second left rows in traffic_logs. The directories are checkouts of the suites'
repositories; the interpreter has what their development requirements name. Without --proxy-cmd the relay runs alone
(tests.engine.serve); the whole product is: --proxy-cmd 'weir run --config {config}'. Needs root, because every Weir
is given a resolver of its own.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

PLUGIN = Path(__file__).parent / "plugin"
CHECKOUT = Path(__file__).parents[2]
TIME_LIMIT = 600

COUNT = "SELECT count(*) FROM traffic_logs WHERE listener IN ('socks4', 'socks5', 'connect', 'forward')"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a suite: the names of its tests by outcome."""

    passed: frozenset[str]
    failed: frozenset[str]
    code: int
    seconds: float
    said: str


def run_suite(directory: Path, python: str, plugin: bool, **environment: str) -> Run:
    """Run the suite in its directory; with the plug-in, Weir is in its proxy server's place."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        path = str(directory)
        if plugin:
            command += ["-p", "weir_in_place"]
            path = f"{directory}:{PLUGIN}"
        started = time.monotonic()
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        seconds = time.monotonic() - started
        passed, failed = set(), set()
        for case in ET.parse(report).iter("testcase") if report.exists() else ():
            name = f"{case.get('classname')}::{case.get('name')}"
            troubles = {child.tag for child in case} & {"failure", "error"}
            if troubles:
                failed.add(name)
            elif case.find("skipped") is None:
                passed.add(name)
    return Run(
        frozenset(passed), frozenset(failed), done.returncode, seconds, done.stdout[-3000:] + done.stderr[-2000:]
    )


def judge(name: str, directory: Path, options: argparse.Namespace) -> bool:
    """Run a suite three times, print what was seen, say whether it holds."""
    python = options.python
    environment = {
        "WEIR_PROXY_COMMAND": options.proxy_cmd,
        "WEIR_PROXY_CONFIG": _extra(options),
        "WEIR_PROXY_CWD": str(CHECKOUT),
    }
    baseline = run_suite(directory, python, plugin=False)
    _say(name, "its own proxy", baseline)
    before = _rows(options.dsn)
    through = run_suite(directory, python, plugin=True, **environment)
    _say(name, "through Weir", through)
    recorded = _rows(options.dsn) - before
    stopped = run_suite(directory, python, plugin=True, WEIR_PROXY_STOPPED="1", **environment)
    _say(name, "Weir stopped", stopped)

    problems = [f"passes only without Weir: {test}" for test in sorted(baseline.passed - through.passed)]
    problems += [f"passes only with Weir: {test}" for test in sorted(through.passed - baseline.passed)]
    if not baseline.passed:
        problems.append(f"the baseline passes nothing: {baseline.said}")
    if stopped.code == 0 or len(stopped.passed) > len(baseline.passed) / 2:
        problems.append("the suite does not notice that Weir is stopped")
    if options.dsn and not recorded:
        problems.append("nothing was recorded")
    if problems and not through.passed:
        problems.append(through.said)
    for problem in problems:
        _write(f"{name}: {problem}")
    rows = f", {recorded} connections recorded" if options.dsn else ""
    _write(f"{name}: {'does not hold' if problems else 'holds'}{rows}")
    return not problems


def main() -> int:
    """Exit code 0 when every given suite holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-socks", type=Path, help="checkout of python-socks")
    parser.add_argument("--aiohttp-socks", type=Path, help="checkout of aiohttp-socks")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the suites' requirements")
    parser.add_argument("--proxy-cmd", default=f"{sys.executable} -m tests.engine.serve --config {{config}}")
    parser.add_argument("--proxy-config", type=Path, help="YAML to append to every Weir's configuration")
    parser.add_argument("--dsn", help="where the Weirs record, and where rows are looked for")
    options = parser.parse_args()
    suites = {"python-socks": options.python_socks, "aiohttp-socks": options.aiohttp_socks}
    if os.geteuid() != 0:
        parser.error("needs root: Weir runs in a mount namespace with the suites' names in its resolver")
    given = {name: path.resolve() for name, path in suites.items() if path is not None}
    if not given:
        parser.error("give --python-socks DIR, --aiohttp-socks DIR or both")
    return 0 if all([judge(name, directory, options) for name, directory in given.items()]) else 1


def _extra(options: argparse.Namespace) -> str:
    extra = options.proxy_config.read_text() if options.proxy_config else ""
    if options.dsn:
        extra += f'\nstorage: {{dsn: "{options.dsn}"}}\napi: {{bind_address: "127.0.0.1:{{port}}"}}\n'
        extra += "engine: {workers: 1, inspectors: 1}\n"
    return extra


def _rows(dsn: str | None) -> int:
    if dsn is None:
        return 0
    return asyncio.run(_count(dsn))


async def _count(dsn: str) -> int:
    import asyncpg  # only where there is a store to ask

    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(COUNT))
    except asyncpg.UndefinedTableError:
        return 0
    finally:
        await connection.close()


def _say(name: str, how: str, run: Run) -> None:
    _write(f"{name}, {how}: {len(run.passed)} passed, {len(run.failed)} failed in {run.seconds:.1f} s")


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
