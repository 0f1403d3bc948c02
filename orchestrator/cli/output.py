"""Printing: results to stdout, progress and errors to stderr; ages, amounts, tables and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]

SHORT_ID = 8  # digits of an id in tables; `saga show` takes them
_MINOR_DIGITS = {"JPY": 0, "KRW": 0, "VND": 0, "BHD": 3, "KWD": 3, "OMR": 3, "TND": 3}
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Exit(IntEnum):
    """Exit codes. Two is typer's, for a wrong command line."""

    YES = 0
    NO = 1
    NO_ANSWER = 3
    NOT_ENDED = 4


class Output:
    """The two streams; `as_json` if a program reads them."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console()
        self.err = Console(stderr=True)

    def json(self, document: object, indent: int | None = 2) -> None:
        typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))

    def line(self, text: str = "", style: str | None = None) -> None:
        self.out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print to stderr what is not part of the result."""
        self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print columns as wide as their widest cell: names that people type are never cut off.

        A column whose name begins with `#` is aligned to the right.
        """
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        heads = [column.removeprefix("#") for column in columns]
        widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
        for number, row in enumerate([heads, *cells]):
            aligned = [
                " " * (width - cell_len(cell)) + cell
                if column.startswith("#")
                else set_cell_size(cell, width)
                for column, cell, width in zip(columns, row, widths, strict=True)
            ]
            self.line("  ".join(aligned).rstrip(), None if number else "bold")

    def more(self, page: Mapping[str, Any]) -> None:
        if page["next"]:
            self.say(f"more: add --after {page['next']}")

    def fail(self, code: Exit, error: str, remedy: str) -> NoReturn:
        """Print what is wrong and what to do about it, and end the command."""
        if self.as_json:
            typer.echo(json.dumps({"error": error, "remedy": remedy}), err=True)
        else:
            self.err.print("[bold red]error:[/] ", end="")
            self.say(error)
            self.say(f"       {remedy}")
        raise typer.Exit(code)


def money(minor: int, currency: str) -> str:
    digits = _MINOR_DIGITS.get(currency, 2)
    return f"{minor / 10**digits:,.{digits}f} {currency}"


def words(identifier: str) -> str:
    return identifier.replace("_", " ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def age(since: str, until: str | None = None) -> str:
    """Return the time between two moments in one unit: 0.4s, 12s, 3m, 5h, 2d."""
    end = moment(until) if until else datetime.now(UTC)
    return duration((end - moment(since)).total_seconds())


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    for unit, length in (("s", 60), ("m", 60), ("h", 48)):
        if seconds < length:
            return f"{seconds:.0f}{unit}"
        seconds /= 24 if unit == "h" else 60
    return f"{seconds:.0f}d"


def parse_duration(text: str) -> float:
    """Convert 90, 90s, 5m, 2h or 1d to seconds. Raises BadParameter."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r}: write 90s, 5m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def short(saga_id: Any) -> str:
    return str(saga_id)[:SHORT_ID]
