"""Pages from the templates beside this module.

Owns: the template environment and its filters. Must not know: what any page shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.judge.verdict import Tally

if TYPE_CHECKING:
    from jinja2 import Environment

Row = Mapping[str, Any]
COLUMNS = (
    "scenario", "what is broken", "expected", "orders ended", "payment", "inventory",
    "attempts", "recovery", "invariants", "verdict",
)  # fmt: skip
LOG_COLUMNS = ("after", "entry", "step", "attempt", "detail", "written by")


def render(template: str, **context: object) -> str:
    return str(_environment().get_template(template).render(context))


@cache
def _environment() -> Environment:
    from jinja2 import (  # only the commands that write a page need it
        Environment,
        FileSystemLoader,
        StrictUndefined,
        select_autoescape,
    )

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(columns=COLUMNS, log_columns=LOG_COLUMNS)
    environment.filters.update(
        cell=_cell,
        entry=_entry,
        json=json.dumps,
        number=_number,
        of=lambda key, mapping: mapping[key],
        scenario=_scenario,
        values=lambda mapping: mapping.values(),
    )
    return environment


def _cell(value: object) -> str:
    """Keep a value within its cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return "–" if value is None else f"{value:,}"


def _scenario(row: Row) -> tuple[str, ...]:
    """Say in COLUMNS what came of a scenario."""
    invariants = Counter(row["invariants"].values())
    wrong = [name for name, verdict in row["invariants"].items() if verdict != "pass"]
    return (
        f"{row['name']}: {row['says']}",
        row["fault"],
        row["expected"],
        _counts(row["ends"]),
        _counts(row["payment"]) or "nothing",
        _counts(row["inventory"]) or "nothing",
        str(row["attempts"] or "-"),
        "-" if row["recovery_seconds"] is None else f"{row['recovery_seconds']} s",
        "; ".join([f"{invariants['pass']} of {sum(invariants.values())}", *wrong]),
        row["verdict"],
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def _entry(entry: Row) -> tuple[str, ...]:
    """Say in LOG_COLUMNS what a saga log's entry records."""
    back = " (undo)" if entry["direction"] == "compensating" else ""
    return (
        f"{entry['seconds']:.3f} s", entry["entry"], f"{entry['step'] or ''}{back}",
        str(entry["attempt"] or ""), entry["detail"] or "", entry["process"],
    )  # fmt: skip


def totals(results: Sequence[Row]) -> dict[str, int | None]:
    """Add up what went wrong. A stack's tally covers all played on it, so its last one counts."""
    last = {row["stack"]: row["tally"] for row in results if row["tally"]}
    return {
        word: None
        if not last or any(tally[word] is None for tally in last.values())
        else sum(tally[word] for tally in last.values())
        for word in Tally._fields
    }
