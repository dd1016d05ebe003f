"""What the lab says: one JSON document, or exchanges and a check list to look at."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from appliance.tools.lab.scene import Check


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one run; the JSON document of contract §2 is exactly these fields."""

    ok: bool
    checks: tuple[Check, ...]
    recorded: dict[str, int]
    dropped: int
    seconds: float

    def document(self) -> str:
        """The result as one JSON document."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


class Report:
    """Writes for people on standard output, or stays silent when a document was asked for."""

    def __init__(self, output: str) -> None:
        self._quiet = output == "json"
        self._console = Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line about what happens."""
        if not self._quiet:
            self._console.print(text)

    def check(self, check: Check) -> None:
        """One line of the check list."""
        mark = "[green]✓[/]" if check.ok else "[bold red]✗[/]"
        self.say(f"  {mark} {check.name:<40} [dim]{escape(check.detail)}[/]")

    def event(self, event: dict[str, Any]) -> None:
        """An exchange of the live feed; other events are not shown."""
        row = exchange_in(event)
        if row is None:
            return
        when = str(row.get("started_at", ""))[11:23]
        what = escape(f"{row.get('domain') or row.get('server_address')} {row['target']}")
        self.say(
            f"  [dim]{when}[/] [cyan]{row.get('listener', '')!s:<12}[/] {row['method']!s:<5} {row.get('status')!s:<4} "
            f"{what} [dim]{row.get('latency_ms') or 0:.1f} ms, {row.get('response_bytes', 0)} B[/]"
        )

    def result(self, result: Result) -> None:
        """The end of a run: the document, or one line."""
        if self._quiet:
            sys.stdout.write(result.document() + "\n")
            return
        held = sum(check.ok for check in result.checks)
        colour = "green" if result.ok else "bold red"
        recorded = ", ".join(f"{count} × {protocol}" for protocol, count in sorted(result.recorded.items()))
        self.say(
            f"\n[{colour}]{held} of {len(result.checks)} checks hold[/]; recorded {recorded or 'nothing'}; "
            f"{result.dropped} dropped; {result.seconds:.1f} s"
        )


def exchange_in(event: dict[str, Any]) -> dict[str, Any] | None:
    """The exchange that a message of the live feed carries, or None when it is about something else."""
    for candidate in (event, *(value for value in event.values() if isinstance(value, dict))):
        if "method" in candidate and "target" in candidate:
            return candidate
    return None
