"""A run on one page: HTML that needs no network, and Markdown. Read from the run folder alone.

Owns: what the page says and how it looks. Must not know: how anything was played or judged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from chaos.judge.history import Fault, read_history
from chaos.pages.latency_chart import Band, Settled, draw

RESULT = "result.json"
TALLY = ("lost", "duplicated", "unexpected", "recovered")
STYLE = (Path(__file__).parent / "run_page.css").read_text()
COLUMNS = (
    "scenario", "what is broken", "expected", "orders ended", "payment", "inventory",
    "attempts", "recovery", "invariants", "verdict",
)  # fmt: skip

Row = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """report.md and report.html; the path of the latter."""
    result = json.loads((folder / RESULT).read_text())
    (folder / "report.md").write_text(markdown(result))
    page = folder / "report.html"
    page.write_text(html(result, [_stack(path) for path in sorted(folder.glob("stack-*"))]))
    return page


# --- what is said --------------------------------------------------------------------------


def head_of(result: Row) -> list[tuple[str, str]]:
    changed = " with uncommitted changes" if result.get("uncommitted_changes") else ""
    return [
        ("run", f"{result['at']}, on {result['runtime']}, Python {result['python']}"),
        ("commit", f"{result['commit']}{changed}"),
        ("seed", str(result["seed"])),
        ("again", str(result["command"])),
    ]


def totals(results: Sequence[Row]) -> dict[str, int | None]:
    """A stack's own count covers all that was played on it: the last is the whole."""
    last = {row["stack"]: row["tally"] for row in results if row["tally"]}
    return {
        word: None
        if any(tally[word] is None for tally in last.values()) or not last
        else sum(tally[word] for tally in last.values())
        for word in TALLY
    }


def cells_of(row: Row) -> tuple[str, ...]:
    invariants = Counter(row["invariants"].values())
    held = f"{invariants['pass']} of {sum(invariants.values())}"
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
        "; ".join([held, *wrong]),
        row["verdict"],
    )


def sample_of(results: Sequence[Row]) -> tuple[str, list[Row]]:
    """The saga log with most to tell, and whose it is."""
    best = max(results, key=lambda row: len(row["timeline"]), default=None)
    if best is None or not best["timeline"]:
        return "", []
    return f"{best['timeline'][0]['saga_id']}, of {best['name']}", best["timeline"]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def entry_of(entry: Row) -> tuple[str, ...]:
    step = entry["step"] or ""
    back = " (undo)" if entry["direction"] == "compensating" else ""
    attempt = str(entry["attempt"] or "")
    return (
        f"{entry['seconds']:.3f} s", entry["entry"], f"{step}{back}", attempt,
        entry["detail"] or "", entry["process"],
    )  # fmt: skip


LOG_COLUMNS = ("after", "entry", "step", "attempt", "detail", "written by")


# --- Markdown ------------------------------------------------------------------------------


def markdown(result: Row) -> str:
    results = result["results"]
    passed = sum(row["verdict"] == "pass" for row in results)
    lines = [
        f"# {result['verdict']}: {passed} of {len(results)} scenarios passed",
        "",
        *(f"- {what}: `{said}`" for what, said in head_of(result)),
        "- " + ", ".join(f"{w} {_number(n)}" for w, n in totals(results).items()),
        "",
        *_table(COLUMNS, map(cells_of, results)),
    ]
    for row in results:
        if row["problems"]:
            lines += ["", f"## {row['name']}", "", *(f"    {p}" for p in row["problems"])]
    whose, timeline = sample_of(results)
    if timeline:
        lines += ["", f"## One order's saga log ({whose})", ""]
        lines += _table(LOG_COLUMNS, map(entry_of, timeline))
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


def _number(count: int | None) -> str:
    return "unknown" if count is None else str(count)


# --- HTML ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    name: str
    orders: tuple[Settled, ...]
    faults: tuple[Band, ...]


def html(result: Row, stacks: Sequence[Stack]) -> str:
    results = result["results"]
    passed = sum(row["verdict"] == "pass" for row in results)
    facts = "".join(
        f"<dt>{what}</dt><dd><code>{escape(said)}</code></dd>" for what, said in head_of(result)
    )
    counts = "".join(
        f"<div><b>{_number(n)}</b> {word}</div>" for word, n in totals(results).items()
    )
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{result['verdict']}: chaos run</title><style>{STYLE}</style>",
        f"<header class='{result['verdict']}'><h1>{result['verdict']}</h1>",
        f"<p>{passed} of {len(results)} scenarios passed</p></header>",
        f"<main><dl>{facts}</dl><section class='tally'>{counts}</section>",
        "<p class='note'>Recovered: in flight when a fault healed, and settled only after.</p>",
        *_problems(results),
        "<h2>Scenarios</h2>",
        _html_table(COLUMNS, map(cells_of, results), "scenarios"),
        "<h2>What must always hold, after each scenario</h2>",
        _grid(results),
        "<h2>How long orders took to settle</h2>",
        "<p class='note'>Each dot is an order at the moment it was placed: "
        "<span class='key confirmed'>confirmed</span> "
        "<span class='key rejected'>rejected</span>; "
        "<span class='key fault'>shaded</span>: something is broken.</p>",
        *(_chart(stack) for stack in stacks if stack.orders),
    ]
    whose, timeline = sample_of(results)
    if timeline:
        parts += [
            f"<h2>One order's saga log</h2><p class='note'>{escape(whose)}</p>",
            _html_table(LOG_COLUMNS, map(entry_of, timeline), "log"),
        ]
    return "\n".join([*parts, "</main></html>"])


def _problems(results: Iterable[Row]) -> Iterator[str]:
    for row in results:
        if row["problems"]:
            said = escape("\n".join(row["problems"]))
            name = escape(row["name"])
            yield f"<section class='problem'><h3>{name}</h3><pre>{said}</pre></section>"


def _html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr class='{escape(row[-1])}'>" + "".join(f"<td>{_cell(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    name, colon, rest = text.partition(": ")
    if colon and " " not in name and name != "rejected":
        return f"<b>{escape(name)}</b><br>{escape(rest)}"
    return escape(text)


def _grid(results: Sequence[Row]) -> str:
    """One mark per scenario and invariant; the numbers are explained below."""
    names = list(dict.fromkeys(name for row in results for name in row["invariants"]))
    head = "".join(f"<th>{n}</th>" for n in range(1, len(names) + 1))
    marks = {"pass": "✓", "fail": "✗", "unknown": "?"}
    body = "".join(
        f"<tr><td>{escape(row['name'])}</td>"
        + "".join(
            f"<td class='{row['invariants'].get(name, 'unknown')}'>"
            f"{marks[row['invariants'].get(name, 'unknown')]}</td>"
            for name in names
        )
        + "</tr>"
        for row in results
    )
    legend = "".join(f"<li>{escape(name)}</li>" for name in names)
    return (
        f"<table class='grid'><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<ol class='legend'>{legend}</ol>"
    )


def _chart(stack: Stack) -> str:
    legend = "".join(f"<li value='{f.number}'>{escape(f.says)}</li>" for f in stack.faults)
    return (
        f"<figure><figcaption>{escape(stack.name)}: {len(stack.orders)} orders</figcaption>"
        f"{draw(stack.orders, stack.faults)}<ol class='legend'>{legend}</ol></figure>"
    )


# --- what a stack left in the folder -------------------------------------------------------


def _stack(directory: Path) -> Stack:
    orders, faults = _orders(directory / "snapshot.json"), _faults(directory)
    moments = [at for at, _, _ in orders]
    if not moments:
        return Stack(directory.name, (), ())
    zero = min(moments)
    return Stack(
        directory.name,
        tuple(Settled((at - zero).total_seconds(), took, c) for at, took, c in orders),
        tuple(
            Band(n, (begun - zero).total_seconds(), (ended - zero).total_seconds(), says)
            for n, (begun, ended, says) in enumerate(faults, 1)
        ),
    )


def _orders(snapshot: Path) -> list[tuple[datetime, float, bool]]:
    if not snapshot.exists():
        return []
    found = []
    for order in json.loads(snapshot.read_text())["orders"]:
        if order["settled_at"]:
            at = datetime.fromisoformat(order["placed_at"])
            took = (datetime.fromisoformat(order["settled_at"]) - at).total_seconds()
            found.append((at, took, order["status"] == "CONFIRMED"))
    return found


def _faults(directory: Path) -> list[tuple[datetime, datetime, str]]:
    """Each with its healing. Those that overlap are one."""
    history = directory / "logs" / "history.jsonl"
    if not history.exists():
        return []
    begun: dict[tuple[str, str], datetime] = {}
    found = []
    for event in read_history(history):
        if isinstance(event, Fault) and not event.healed:
            begun[(event.what, event.target)] = event.at
        elif isinstance(event, Fault) and (since := begun.pop((event.what, event.target), None)):
            took = (event.at - since).total_seconds()
            found.append((since, event.at, f"{event.what} {event.target}, {took:.1f} s"))
    merged: list[tuple[datetime, datetime, str]] = []
    for begun_at, ended_at, says in sorted(found):
        if merged and begun_at < merged[-1][1]:
            first, last, said = merged.pop()
            merged.append((first, max(last, ended_at), f"{said}; {says}"))
        else:
            merged.append((begun_at, ended_at, says))
    return merged
