"""What is printed: results to stdout, progress and errors to stderr.

Owns: how an age, an amount and an error look; tables and JSON. Must not know: what is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]

PIPED_WIDTH = 200  # where there is no terminal to fit in
SHORT_ID = 8  # digits of an id in tables; `saga show` takes them
_MINOR_DIGITS = {"JPY": 0, "KRW": 0, "VND": 0, "BHD": 3, "KWD": 3, "OMR": 3, "TND": 3}
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Exit(IntEnum):
    """Two is the command line's own."""

    YES = 0
    NO = 1
    NO_ANSWER = 3
    NOT_ENDED = 4


class Output:
    """Where to print, and whether a program reads it."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def json(self, document: object, indent: int | None = 2) -> None:
        typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))

    def line(self, text: str = "", style: str | None = None) -> None:
        self.out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """To the person who waits; not part of the result."""
        self.err.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """The last column takes what room is left; those that begin with `#` are numbers."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(
                column.removeprefix("#"),
                justify="right" if column.startswith("#") else "left",
                no_wrap=number < len(columns) - 1,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(_escaped(cell) for cell in row))
        self.out.print(table)

    def more(self, page: Mapping[str, Any]) -> None:
        if page["next"]:
            self.say(f"more: add --after {page['next']}")

    def fail(self, code: Exit, error: str, remedy: str) -> NoReturn:
        """Say what is wrong and what to type; end."""
        if self.as_json:
            typer.echo(json.dumps({"error": error, "remedy": remedy}), err=True)
        else:
            self.err.print("[bold red]error:[/] ", end="")
            self.say(error)
            self.say(f"       {remedy}")
        raise typer.Exit(code)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPED_WIDTH)


def _escaped(cell: object) -> str:
    return "" if cell is None else str(cell).replace("[", r"\[")


def money(minor: int, currency: str) -> str:
    digits = _MINOR_DIGITS.get(currency, 2)
    return f"{minor / 10**digits:,.{digits}f} {currency}"


def words(identifier: str) -> str:
    return identifier.replace("_", " ")


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def age(since: str, until: str | None = None) -> str:
    """How long, to one unit: 0.4s, 12s, 3m, 5h, 2d."""
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
    """90, 90s, 5m, 2h, 1d to seconds. Raises BadParameter."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r}: write 90s, 5m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def short(saga_id: Any) -> str:
    return str(saga_id)[:SHORT_ID]
