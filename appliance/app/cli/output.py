"""How answers are shown: a table for people, JSON for programs, NDJSON for pipes. NO_COLOR is obeyed."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """The values of ``-o``."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


def emit(text: str) -> None:
    """One line to stdout, at once: a pipe may be waiting for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line to stderr."""
    sys.stderr.write(f"{text}\n")


# DEL, the C1 controls (0x9b begins a terminal's command), and what turns the direction of writing around.
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def show(document: Mapping[str, Any], format: Format, lines: Iterable[tuple[str, object]] | None = None) -> None:
    """One document: ``lines`` of name and value as a table, or everything as JSON."""
    if format is Format.TABLE:
        table([{"": name, " ": value} for name, value in (lines if lines is not None else document.items())], ("", " "))
    else:
        emit(as_json(document, indent=2 if format is Format.JSON else None))


def show_list(items: Sequence[Mapping[str, Any]], columns: Sequence[str], format: Format) -> None:
    """A list: some columns as a table, or everything as one JSON array or one object per line."""
    if format is Format.TABLE:
        table(items, columns)
    elif format is Format.JSON:
        emit(as_json(list(items), indent=2))
    else:
        for item in items:
            emit(as_json(item))


def table(items: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table of these columns. What peers sent is shown as text, never as terminal control or markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=any(column.strip() for column in columns), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold" if len(columns) < 3 else "ellipsis", no_wrap=len(columns) > 2)
    for item in items:
        grid.add_row(*(Text(plain(item.get(column))) for column in columns))
    # Into a pipe there is no width to fit: cut columns would be lost data.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 500
    Console(width=width, highlight=False, soft_wrap=False).print(grid)


def plain(value: object) -> str:
    """A value on one line, without control characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = value if isinstance(value, str) else as_json(value) if isinstance(value, list | dict) else str(value)
    return "".join(character if character.isprintable() else "�" for character in text)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as programs like it; what peers sent holds nothing that a terminal obeys (JSON itself escapes only C0)."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=str).translate(_ESCAPED)
