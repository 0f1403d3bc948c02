"""An exhibit in Markdown. Pure.

Owns: the head that says where a page comes from, tables and quotations. Must not know: what any
exhibit shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def page(title: str, result: Result, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", head(result), *parts]) + "\n"


def head(result: Result) -> str:
    """Whoever doubts a page types its command at its commit."""
    changed = ", **with uncommitted changes**" if result["uncommitted_changes"] else ""
    return (
        f"Written by `{result['command']}`; do not edit. Commit `{result['commit']}`{changed}, seed"
        f" {result['seed']}, {result['at']}, Python {result['python']}, {result['seconds']:.0f} s."
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join(_rows([columns, ["---"] * len(columns), *rows]))


def _rows(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    for row in rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"


def _cell(cell: object) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def quote(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
