"""Samples become medians, spreads and ratios: a table, a JSON document, the tables of docs/performance.md."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.measure import Sample
from tests.bench.suites import Floor, Suite

LOADS = {
    "keep-alive": ("1 KiB, keep-alive, 32 connections", "rate", "requests/s", 0),
    "one connection": ("1 KiB, one connection", "p50_us", "p50, µs", 0),
    "bulk": ("1 MiB × 4 connections", "gigabits", "Gbit/s", 2),
    "new connections": ("1 KiB, a new connection each, 16 at once", "rate", "requests/s", 0),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One contender under one load, over all rounds."""

    contender: str
    load: str
    values: tuple[float, ...]
    relayed_rate: float
    per_cpu_second: float
    p99_us: float
    settle_seconds: float
    errors: int
    stored: int | None
    lost: int

    @property
    def median(self) -> float:
        """The middle one of the rounds."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A floor and what was reached."""

    name: str
    bound: float
    at_most: bool
    got: float

    @property
    def held(self) -> bool:
        """Whether the floor was kept."""
        return self.got <= self.bound if self.at_most else self.got >= self.bound


def lines(samples: Sequence[Sample]) -> list[Line]:
    """The samples of all rounds, one line per contender and load, in the order of the suite."""
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        grouped.setdefault((sample.load, sample.contender), []).append(sample)
    order = list(LOADS)
    return [
        Line(
            contender=contender,
            load=load,
            values=tuple(float(getattr(sample, LOADS[load][1])) for sample in group),
            relayed_rate=statistics.median(sample.relayed_rate for sample in group),
            per_cpu_second=statistics.median(sample.per_cpu_second for sample in group),
            p99_us=statistics.median(sample.p99_us for sample in group),
            settle_seconds=max(sample.settle_seconds for sample in group),
            errors=sum(sample.errors for sample in group),
            stored=None if group[0].stored is None else sum(sample.stored or 0 for sample in group),
            lost=sum(sample.lost for sample in group),
        )
        for (load, contender), group in sorted(grouped.items(), key=lambda item: order.index(item[0][0]))
    ]


def verdicts(suite: Suite, samples: Sequence[Sample]) -> list[Verdict]:
    """How each floor of the suite fared, by medians."""
    measured = {(sample.load, sample.contender) for sample in samples}
    return [
        Verdict(floor.name, floor.bound, floor.at_most, round(_ratio(floor, samples), 3))
        for floor in suite.floors
        if {(floor.load.name, floor.ours.name), (floor.load.name, floor.theirs.name)} <= measured
    ]


def _ratio(floor: Floor, samples: Sequence[Sample]) -> float:
    ours, theirs = (
        _median(samples, floor.load.name, contender.name, floor.value) for contender in (floor.ours, floor.theirs)
    )
    if floor.value == "p50_us":  # what a proxy adds, not what the network takes anyway
        direct = _median(samples, floor.load.name, "plain routing", floor.value)
        ours, theirs = ours - direct, theirs - direct
    return ours / theirs


def _median(samples: Sequence[Sample], load: str, contender: str, value: str) -> float:
    found = [
        float(getattr(sample, value)) for sample in samples if (sample.load, sample.contender) == (load, contender)
    ]
    return statistics.median(found)


def document(suite: Suite, samples: Sequence[Sample], machine: dict[str, Any]) -> dict[str, Any]:
    """Everything, for ``-o json``."""
    return {
        "bench": suite.name,
        "machine": machine,
        "results": [
            {
                "load": line.load,
                "contender": line.contender,
                "unit": LOADS[line.load][2],
                "median": line.median,
                "values": line.values,
                "relayed_per_second": round(line.relayed_rate),
                "requests_per_cpu_second": round(line.per_cpu_second),
                "p99_us": line.p99_us,
                "settle_seconds": round(line.settle_seconds, 2),
                "errors": line.errors,
                "stored": line.stored,
                "lost": line.lost,
            }
            for line in lines(samples)
        ],
        "floors": [
            {"name": v.name, "bound": v.bound, "at_most": v.at_most, "got": v.got, "held": v.held}
            for v in verdicts(suite, samples)
        ],
    }


def markdown(suite: Suite, samples: Sequence[Sample], machine: dict[str, Any]) -> str:
    """The tables, as they stand in docs/performance.md and in the terminal."""
    found = lines(samples)
    parts = [
        f"Measured {machine['date']} on {machine['cpus']} processors ({machine['cpu']}), Linux {machine['kernel']}; "
        f"medians of {machine['rounds']} interleaved rounds of {machine['seconds']} s (smallest – largest in brackets)."
    ]
    for load, (title, _, unit, digits) in LOADS.items():
        those = [line for line in found if line.load == load]
        if those:
            ratio = f"÷ {those[0].contender}"
            header = (title, unit, ratio, "relayed/s", "requests per CPU·s", "p99, µs", "stored", "settled, s")
            parts.append(_table(header, _rows(those, digits)))
    if floors := verdicts(suite, samples):
        parts.append(_table(("floor", "wanted", "reached", "held"), map(_floor, floors)))
    parts.append(", ".join(f"{name}: {text}" for name, text in machine["versions"].items()))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _floor(verdict: Verdict) -> tuple[str, ...]:
    sign = "≤" if verdict.at_most else "≥"
    return verdict.name, f"{sign} {verdict.bound:g}", f"{verdict.got:.2f}", "yes" if verdict.held else "**no**"


def _rows(those: Sequence[Line], digits: int) -> Iterable[tuple[str, ...]]:
    for line in those:
        spread = f"{line.median:,.{digits}f} ({min(line.values):,.{digits}f} – {max(line.values):,.{digits}f})"
        stored = settled = "–"
        if line.stored is not None:
            stored = f"{line.stored:,}" + (f", **{line.lost:,} lost**" if line.lost else "")
            settled = f"{line.settle_seconds:.1f}"
        yield (
            line.contender,
            spread + (f"; **{line.errors} errors**" if line.errors else ""),
            f"{line.median / those[0].median:.3g}",
            f"{line.relayed_rate:,.0f}",
            f"{line.per_cpu_second:,.0f}" if line.per_cpu_second else "–",
            f"{line.p99_us:,.0f}",
            stored,
            settled,
        )


def replace_between(text: str, name: str, new: str) -> str:
    """Put ``new`` between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``; raises ``ValueError`` without them."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the document has no {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{new}\n\n{end}", text)
