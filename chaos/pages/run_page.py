"""A run on one page, as HTML that needs no network and as Markdown. Reads the run folder alone.

Owns: what is read from the folder. Must not know: how anything was played or judged.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from chaos.judge.history import Fault, read_history
from chaos.pages.latency_chart import Chart, FaultSpan, Settled, lay_out
from chaos.pages.render import Row, render, totals

RESULT = "result.json"


def write_report(folder: Path) -> Path:
    """Write report.md and report.html; return the path of the latter."""
    result = json.loads((folder / RESULT).read_text())
    results = result["results"]
    longest = max(results, key=lambda row: len(row["timeline"]), default=None)
    context = {
        "result": result,
        "about": _about(result),
        "passed": sum(row["verdict"] == "pass" for row in results),
        "tally": totals(results).items(),
        "sample": longest if longest and longest["timeline"] else None,
        "invariants": list(dict.fromkeys(name for row in results for name in row["invariants"])),
        "charts": [
            (stack.name, chart)
            for stack in sorted(folder.glob("stack-*"))
            if (chart := _chart(stack))
        ],
    }
    (folder / "report.md").write_text(render("run.md", **context))
    page = folder / "report.html"
    page.write_text(render("run.html", **context))
    return page


def _about(result: Row) -> list[tuple[str, str]]:
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    return [
        ("run", f"{result['at']}, on {result['runtime']}, Python {result['python']}"),
        ("commit", f"{result['commit']}{changed}"),
        ("seed", str(result["seed"])),
        ("again", str(result["command"])),
    ]


def _chart(stack: Path) -> Chart | None:
    """Draw what a stack left in its directory; None if no order settled."""
    snapshot, history = stack / "snapshot.json", stack / "logs" / "history.jsonl"
    rows = json.loads(snapshot.read_text())["orders"] if snapshot.exists() else []
    orders = [
        (
            datetime.fromisoformat(row["placed_at"]),
            datetime.fromisoformat(row["settled_at"]),
            row["status"] == "CONFIRMED",
        )
        for row in rows
        if row["settled_at"]
    ]
    if not orders:
        return None
    zero = min(placed for placed, _, _ in orders)
    return lay_out(
        [
            Settled((placed - zero).total_seconds(), (settled - placed).total_seconds(), confirmed)
            for placed, settled, confirmed in orders
        ],
        _faults(history, zero) if history.exists() else [],
    )


def _faults(history: Path, zero: datetime) -> list[FaultSpan]:
    """Pair each fault with its healing. Those that overlap are drawn as one."""
    begun: dict[tuple[str, str], datetime] = {}
    found = []
    for event in read_history(history):
        if isinstance(event, Fault) and not event.healed:
            begun[event.what, event.target] = event.at
        elif isinstance(event, Fault) and (since := begun.pop((event.what, event.target), None)):
            took = (event.at - since).total_seconds()
            begins = (since - zero).total_seconds()
            says = f"{event.what} {event.target}, {took:.1f} s"
            found.append(FaultSpan(begins, begins + took, says))
    merged: list[FaultSpan] = []
    for fault in sorted(found):
        if merged and fault.begins < merged[-1].ends:
            last = merged.pop()
            ends, says = max(last.ends, fault.ends), f"{last.says}; {fault.says}"
            merged.append(FaultSpan(last.begins, ends, says))
        else:
            merged.append(fault)
    return merged
