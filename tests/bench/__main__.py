"""``./run bench relay|http [--short] [-o json] [--write]``."""

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

from appliance.tools.lab import LabFailed
from tests.bench.contenders import versions
from tests.bench.report import document, markdown, replace_between
from tests.bench.suites import SUITES, run

ROUNDS, SECONDS = 5, 8
SHORT_ROUNDS, SHORT_SECONDS = 3, 3
DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"


def main() -> int:
    """Measure, print, and with ``--write`` put the tables into docs/performance.md. 1 when a run proved invalid."""
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure Weir beside its peers, in one run.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument(
        "--short", action="store_true", help=f"{SHORT_ROUNDS} rounds of {SHORT_SECONDS} s, for a first look"
    )
    parser.add_argument("--only", action="append", help="only contenders whose name holds this text (repeatable)")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--write", action="store_true", help="update the tables of docs/performance.md")
    options = parser.parse_args()
    suite = SUITES[options.suite]
    rounds, seconds = (SHORT_ROUNDS, SHORT_SECONDS) if options.short else (ROUNDS, SECONDS)
    try:
        machine = _machine(rounds, seconds)
        samples = run(suite, rounds, seconds, _say, options.only)
    except LabFailed as failure:
        sys.stderr.write(f"./run bench: {failure.cause}\n  try: {failure.fix}\n")
        return failure.code
    except KeyboardInterrupt:
        return 130
    tables = markdown(suite, samples, machine)
    if options.output == "json":
        sys.stdout.write(json.dumps(document(suite, samples, machine), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(tables + "\n")
    if options.write:
        DOCUMENT.write_text(replace_between(DOCUMENT.read_text(), suite.name, tables))
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _machine(rounds: int, seconds: int) -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": model[0].partition(":")[2].strip() if model else os.uname().machine,
        "kernel": os.uname().release,
        "rounds": rounds,
        "seconds": seconds,
        "pinning": "wrk and the origin on processor 0; the contender, with all it starts, on every processor",
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
