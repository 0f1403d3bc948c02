"""What each exhibit says, from its result alone. Pure.

Owns: the words and tables of the pages in docs/evidence. Must not know: how anything was found out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from chaos.pages.page import Result, bullets, page, quote, table
from chaos.pages.run_page import COLUMNS, LOG_COLUMNS, TALLY, cells_of, entry_of, totals

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
TOLD_WHOLE = ("failing-refund", "charge-after-its-undo")
"""Of these the page has one order's saga log."""
WHERE = {"native": "on native processes", "docker": "in containers"}
REST = "Servers, networks, zombies, and the rest"


def scenarios(result: Result) -> str:
    rows = result["results"]
    passed = sum(row["verdict"] == "pass" for row in rows)
    tally = totals(rows)
    parts = [
        f"**{passed} of {len(rows)} scenarios passed**, {WHERE[result['runtime']]}: "
        + ", ".join(f"{word} {tally[word]}" for word in TALLY)
        + ". Each is an order flow with something broken in it, and is judged when all has come to"
        " rest: every order ended as the table allows, and every invariant held over everything its"
        " stack had seen. What each fault does: [docs/chaos.md](../chaos.md).",
    ]
    for title, group in _grouped(rows):
        parts += [f"## {title}", table(COLUMNS, map(cells_of, group))]
        for row in group:
            if timeline := row.get("timeline"):
                parts += [
                    f"One order's saga log, of {row['name']} (`{timeline[0]['saga_id']}`):",
                    table(LOG_COLUMNS, map(entry_of, timeline)),
                ]
    wrong = [f"{row['name']}: {problem}" for row in rows for problem in row["problems"]]
    if wrong:
        parts += ["## Problems", quote("\n".join(wrong))]
    return page("Scenarios", result, parts)


def _grouped(rows: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    left = {row["name"]: row for row in rows}
    for title, names in GROUPS.items():
        group = [left.pop(name) for name in names if name in left]
        if group:
            yield title, group
    if left:
        yield REST, list(left.values())


def redelivery(result: Result) -> str:
    skips = "\n".join(json.dumps(line) for line in result["skips"])
    charges = [row for row in result["ledger"] if row["kind"] == "CHARGE"]
    return page(
        "A redelivered charge",
        result,
        [
            f"`ChargePayment` with message id `{result['message_id']}` was delivered"
            f" {result['delivered']} times: twice in a row, and once more after the saga had ended."
            f" The ledger holds **{len(charges)} charge**.",
            "## Payment's log: the repeats are detected and skipped",
            quote(skips, "json"),
            "## The saga's timeline",
            f"`saga show {result['saga_id']}`. Each repeat was given the stored reply again, which"
            " nobody waited for any more:",
            quote(result["timeline"]),
            "## Payment's ledger and inbox, for this saga",
            _records(result["ledger"]),
            _records(result["inbox"]),
        ],
    )


def resume(result: Result) -> str:
    forward, backward = result["saga_ids"]
    rows = [
        (
            f"{float(entry['after_kill']):+.3f} s",
            entry["at"],
            {forward: "first", backward: "second"}[entry["saga_id"]],
            entry["entry"],
            entry["step"] + (" (undo)" if entry["direction"] == "compensating" else ""),
            entry["detail"],
        )
        for entry in result["entries"]
    ]
    before = [row for row in rows if row[0].startswith("-")]
    columns = ("of the kill", "at", "saga", "entry", "step", "detail")
    return page(
        "Sagas whose orchestrator was killed",
        result,
        [
            "Two sagas wait for their charge when the orchestrator gets SIGKILL; payment answers"
            " while it is dead. Started again, it finds both in its database and the answers in its"
            f" queue: the first (`{forward}`) goes forward, the second (`{backward}`), whose card"
            " is declined, is undone.",
            bullets(
                [
                    f"orchestrator started: {result['starts'][0]}",
                    f"killed: {result['killed_at']}",
                    f"started again: {result['starts'][-1]}",
                    f"ready: {result['ready_at']}",
                    *(f"{s}: {' '.join(filter(None, end))}" for s, end in result["ends"].items()),
                ]
            ),
            f"## Both saga logs: {len(before)} entries before the kill, {len(rows) - len(before)}"
            " after",
            table(columns, rows),
            "## `saga show` of each",
            *(quote(timeline) for timeline in result["timelines"]),
        ],
    )


def matrix(result: Result) -> str:
    cells = result["cells"]
    failed = [cell for cell in cells if cell["problem"]]
    columns = tuple(dict.fromkeys(cell["process"] for cell in cells))
    killed = Counter((c["point"], c["process"]) for c in cells if c["action"] == "kill")
    frozen = Counter(c["point"] for c in cells if c["action"] == "pause")
    points = tuple(dict.fromkeys(cell["point"] for cell in cells))
    parts = [
        f"**{result['passed']} of {result['run']} cells passed.** {result['kills']} deaths: of a"
        " process, at a failpoint, with a step in hand;"
        f" {result['repeated']} of the cells three times with the same messages. And"
        f" {result['frozen']} cells in which it froze instead, past every time limit, and went on."
        " After each the system came to rest and every invariant held."
        f" {result['possible']} of {result['combinations']} combinations of process, failpoint,"
        " step and direction are possible.",
        "## Cells, by failpoint and process",
        table(
            ("failpoint", *columns, "frozen"),
            [(p, *(killed[p, c] or "" for c in columns), frozen[p] or "") for p in points],
        ),
        "## Combinations that cannot be, and why",
        table(
            ("reason", "process", "failpoints", "steps", "combinations"),
            [
                (row["reason"], row["process"], row["points"], row["legs"], row["combinations"])
                for row in result["impossible"]
            ],
        ),
    ]
    if failed:
        parts += [
            "## Failed",
            bullets(f"{c['process']} {c['point']}: {c['problem']}" for c in failed),
        ]
    return page("The crash matrix", result, parts)


def model(result: Result) -> str:
    guards: dict[str, Any] = result["without"]
    rows = [
        (guard, found["wrong"] or "NOTHING", len(found["trace"]) - 1, f"{found['states']:,}")
        for guard, found in guards.items()
    ]
    return page(
        "The model",
        result,
        [
            "The code that decides (orchestrated: `decide()`; choreographed: each service's"
            " reactions and the order service's progress) and the fence, all real, driven through"
            " every order of events there is: a network that repeats, reorders, delays and loses"
            " without bound; silence, dead letters, a customer who cancels and an operator at any"
            " moment; refusals wherever they are possible.",
            *(f"{style}: {_explored(whole)}" for style, whole in result["explored"].items()),
            "## Without each guard",
            "Taken out of the real code one by one; the shortest way to something wrong.",
            table(("guard", "what breaks", "after events", "states seen"), rows),
            "## The shortest counterexample of each",
            *(f"**{guard}**\n\n{quote(_trace(found))}" for guard, found in guards.items()),
        ],
    )


def _explored(whole: Result) -> str:
    return (
        f"**{whole['states']:,} states, {whole['transitions']:,} transitions**, at most"
        f" {whole['depth']} deep, {whole['ends']:,} of them ended, in {whole['seconds']} s:"
        f" **{whole['wrong'] or 'nothing is wrong'}**, and from every state an end can be"
        " reached."
    )


def _trace(found: Result) -> str:
    lines = [f"{number:3}  {words}" for number, words in enumerate(found["trace"])]
    return "\n".join([*lines, f"     {found['wrong']}"])


def guards(result: Result) -> str:
    rows = result["guards"]
    return page(
        "Guards, taken out of the running system",
        result,
        [
            f"**{result['passed']} of {len(rows)} guards are needed and tested.** Each was taken"
            " out of the real processes (`tests/saboteurs`), which then ran on the real servers"
            " under a load that needs it; and the same load ran with every guard in place, and must"
            " harm nobody. Where another guard stands behind one and would hide its absence, both"
            " are out, or the other is seen to act.",
            guard_table(rows),
        ],
    )


def guard_table(guards: Sequence[Result]) -> str:
    """What `chaos.commands.guards_command.prove` found of each."""
    rows = [
        (
            f"**{row['guard']}**: {row['keeps']}",
            _taken_out(row),
            row["load_says"],
            row["noticed_by"][0]["says"] if row["noticed_by"] else "NOTHING",
            "; ".join(noticed["who"] for noticed in row["noticed_by"]) or "NOBODY",
            "; ".join(row["with_the_guard"]) or "nothing",
            row["verdict"],
        )
        for row in guards
    ]
    columns = (
        "guard", "taken out", "under this load", "what breaks without it", "who noticed",
        "what breaks with it", "verdict",
    )  # fmt: skip
    return table(columns, rows)


def _taken_out(row: Result) -> str:
    out = f"of {' and '.join(row['of'])}"
    return f"{out}; too: {row['taken_out_too']}" if row["taken_out_too"] else out


def _records(rows: Sequence[dict[str, str]]) -> str:
    return table(tuple(rows[0]), [tuple(row.values()) for row in rows]) if rows else "none"
