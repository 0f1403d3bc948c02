"""The pages in docs/evidence, each made of its result alone, and their index.

Owns: in which order scenarios are shown, and what the index reads off a page. Must not know: how
anything was found out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chaos.pages.render import Row, render, totals

# Scenario names by what they show; the rest comes last.
GROUPS: dict[str, tuple[str, ...]] = {
    "A step fails: create_order": ("refused-at-the-door",),
    "A step fails: reserve_stock": ("out-of-stock", "not-stocked", "inventory-unreachable"),
    "A step fails: charge_payment": (
        "card-declined", "insufficient-funds", "unknown-account", "payment-unreachable",
        "charge-after-its-undo",
    ),
    "A step fails: dispatch_stock, the pivot": ("silent-pivot-done", "silent-pivot-lost"),
    "A step fails: confirm_order, which cannot be refused": ("order-unreachable",),
    "A compensation is tried again": ("failing-refund",),
    "Messages come twice, late, in another order, or not at all": (
        "duplicate-charge", "duplicate-reserve", "reordered", "requeue-shuffled",
        "poisoned-charge", "poison", "poison-flood",
    ),
    "The orchestrator dies in mid-saga": (
        "kill-orchestrator", "kill-orchestrator-repeatedly", "kill-orchestrator-in-recovery",
    ),
    "A service dies in mid-saga": (
        "kill-order", "kill-payment", "kill-inventory", "kill-door", "kill-payment-repeatedly",
        "kill-inventory-in-recovery", "kill-everybody",
    ),
}  # fmt: skip
REST = "Servers, networks, zombies, and the rest"
HEAD = re.compile(
    r"Result: \*\*(?P<verdict>\w+)\*\*\. Written by `[^`]+`; do not edit\. Commit"
    r" (?P<commit>`\w+`(?:, \*\*with uncommitted changes\*\*)?), seed \d+, (?P<at>\S+),"
    r" Python \S+, (?P<took>\d+ s)\."
)
"""The line of a page that says where it comes from, as the templates write it."""


def scenarios(result: Row) -> str:
    rows = result["results"]
    problems = [f"{row['name']}: {problem}" for row in rows for problem in row["problems"]]
    return render(
        "scenarios.md",
        result=result,
        tally=totals(rows).items(),
        groups=_grouped(rows),
        problems=problems,
    )


def _grouped(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    left = {row["name"]: row for row in rows}
    for title, names in GROUPS.items():
        if group := [left.pop(name) for name in names if name in left]:
            yield title, group
    if left:
        yield REST, list(left.values())


def resume(result: Row) -> str:
    before = sum(float(entry["after_kill"]) < 0 for entry in result["entries"])
    return render("resume.md", result=result, before=before)


def index(folder: Path, parts: Mapping[str, str]) -> str:
    """Say which parts there are and what came of each, by the heads of their pages."""
    rows = []
    for name, says in parts.items():
        page = folder / f"{name}.md"
        found = HEAD.search(page.read_text()) if page.exists() else None
        told = found.group("verdict", "commit", "at", "took") if found else ("not made yet",) * 4
        rows.append((f"[{name}]({name}.md)", says, *told))
    return render("index.md", rows=rows)
