"""What the lab's checks work with: the network, the origins and Weir, and questions to each of them.

Every question has one right answer: exactly one line of the origin's log, one exchange of the API, one row.
More or none is ``Broken``.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.tools.lab.clients import Fetched, curl
from appliance.tools.lab.namespaces import Network
from appliance.tools.lab.origins import EchoOrigin, HttpOrigin, Seen
from appliance.tools.lab.processes import eventually
from appliance.tools.lab.product import LiveFeed, Weir

PATIENCE = 10.0  # seconds that a row may take from the last byte to the table

_RECORD = """
    SELECT id, connection_id, source_addr, source_port, destination_addr, destination_port, protocol, listener,
           domain, method, request_path, status_code, completeness
      FROM traffic_records
     WHERE position($1 IN request_path) > 0
"""
_CONNECTION = """
    SELECT id, path, protocol, listener, bytes_in, bytes_out, exchanges, end_reason, dest_ip
      FROM traffic_logs
     WHERE source_port = $1 AND dest_port = $2 AND duration_ms IS NOT NULL
"""
_TO_PORT = "SELECT end_reason, listener FROM traffic_logs WHERE dest_port = $1 AND duration_ms IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the result."""

    name: str
    ok: bool
    detail: str


class Broken(Exception):
    """A promise did not hold; the text says what was seen instead."""


@dataclass(slots=True)
class Scene:
    """Everything that a check may use."""

    network: Network
    http: HttpOrigin
    echo: EchoOrigin
    weir: Weir
    live: LiveFeed
    hosts: Path
    _deadline: float = field(default=0.0)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_id(self) -> str:
        """An id that no other request of this run carries."""
        return f"{self.network.run}-{next(self._numbers):03d}"

    def settle(self) -> None:
        """All traffic has been sent: from now on rows have ``PATIENCE`` to arrive, all together."""
        self._deadline = time.monotonic() + PATIENCE

    def patience(self) -> float:
        """Seconds that a row may still take."""
        return max(0.0, self._deadline - time.monotonic())

    def fetch(self, url: str, request_id: str, *options: str, stdin: bytes = b"") -> Fetched:
        """curl from the client's namespace."""
        return curl(self.network.client, url, request_id, *options, hosts=self.hosts, stdin=stdin)

    def seen(self, request_id: str) -> Seen:
        """The one line of the origin's log with this id."""
        eventually(lambda: any(line.id == request_id for line in self.http.seen()), 2.0)
        lines = [line for line in self.http.seen() if line.id == request_id]
        expect(len(lines) == 1, f"the origin's log has {len(lines)} lines with the id, not one")
        return lines[0]

    def told_of(self, request_id: str) -> bool:
        """Whether the live feed has told of it by now."""
        return any(f"id={request_id}" in str(event) for event in list(self.live.heard))

    def exchange(self, request_id: str) -> dict[str, Any]:
        """The one exchange of the API with this id; waits for it."""
        rows: list[dict[str, Any]] = []

        def arrived() -> bool:
            rows[:] = self.weir.exchanges(f"id={request_id}")
            return bool(rows)

        eventually(arrived, self.patience(), every=0.1)
        expect(len(rows) == 1, f"the API has {len(rows)} exchanges with the id, not one")
        return rows[0]

    def record(self, request_id: str) -> dict[str, Any]:
        """The one row of ``traffic_records`` with this id."""
        rows = self.records(request_id)
        expect(len(rows) == 1, f"traffic_records has {len(rows)} rows with the id, not one")
        return rows[0]

    def records(self, request_id: str) -> list[dict[str, Any]]:
        """Every row of ``traffic_records`` with this id, as of now."""
        return self.weir.sql(_RECORD, f"id={request_id}")

    def connections_to(self, server_port: int) -> list[dict[str, Any]]:
        """How every connection to this port ended; waits for one."""
        rows: list[dict[str, Any]] = []

        def arrived() -> bool:
            rows[:] = self.weir.sql(_TO_PORT, server_port)
            return bool(rows)

        eventually(arrived, self.patience(), every=0.1)
        return rows

    def connection(self, client_port: int, server_port: int) -> dict[str, Any]:
        """The one closed row of ``traffic_logs`` between these ports; waits for it."""
        rows: list[dict[str, Any]] = []

        def arrived() -> bool:
            rows[:] = self.weir.sql(_CONNECTION, client_port, server_port)
            return bool(rows)

        eventually(arrived, self.patience(), every=0.1)
        expect(len(rows) == 1, f"traffic_logs has {len(rows)} closed rows for client port {client_port}, not one")
        return rows[0]


def expect(claim: bool, otherwise: str) -> None:
    """Raise ``Broken`` unless the claim holds."""
    if not claim:
        raise Broken(otherwise)


def agree(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Raise ``Broken`` that names every field which is not as wanted."""
    wrong = [f"{key} is {found.get(key)!r}, not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    expect(not wrong, f"{where}: {'; '.join(wrong)}")


def fetched_well(fetched: Fetched, sha256: str, status: int = 200) -> None:
    """Raise ``Broken`` unless curl got this status and exactly these bytes."""
    expect(fetched.exit_code == 0, f"curl ended with {fetched.exit_code}: {fetched.error}")
    expect(fetched.status == status, f"status {fetched.status}, not {status}")
    expect(fetched.sha256 == sha256, f"{fetched.length} bytes arrived that are not the origin's")
