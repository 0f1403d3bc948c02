"""`saga dead-letters`: list, show, redrive and discard messages that could not be handled."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from orchestrator.cli.client import ASK_AGAIN_SECONDS, Api, No, Operator, Unanswered, again
from orchestrator.cli.options import After
from orchestrator.cli.output import Exit, Json, Output, age, short, words

CHUNK = 200  # dead letters in one request
REFUSALS_SHOWN = 5
BODY_SHOWN = 4000  # characters

Queue = Annotated[
    str | None, typer.Option(metavar="QUEUE", help="Only those from this queue: payment.commands.")
]
Reason = Annotated[
    str | None, typer.Option(metavar="REASON", help="Only those with this reason: unknown_type.")
]
Saga = Annotated[str | None, typer.Option("--saga", metavar="ID", help="Only those of this saga.")]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Ids of dead letters, or their first digits."),
]
All = Annotated[bool, typer.Option("--all", help="All open dead letters.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")
]
Rate = Annotated[
    float, typer.Option(min=0.1, metavar="N", help="The most dead letters per second.")
]


class ListedState(StrEnum):
    """The states of a dead letter as the API names them."""

    OPEN = "open"
    REDRIVEN = "redriven"
    DISCARDED = "discarded"


def list_(
    queue: Queue = None,
    reason: Reason = None,
    saga: Saga = None,
    state: Annotated[
        ListedState, typer.Option(help="Only those in this state.")
    ] = ListedState.OPEN,
    each: Annotated[
        bool, typer.Option("--each", help="List them one by one, not grouped.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=1000, help="The most rows to print, with --each.")
    ] = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List dead letters, grouped by queue and reason.

    \b
    saga dead-letters list
    saga dead-letters list --reason unknown_type --each
    saga dead-letters list --saga 3f2a91c4 --each
    """
    output = Output(as_json)
    api = Api("operator", operator, output)
    wanted = {"queue": queue, "reason": reason, "saga_id": _saga(api, saga), "state": state}
    if each:
        _each(output, api.get("/dead-letters", **wanted, limit=limit, after=after))
        return
    answer = api.get("/dead-letters/groups", **wanted)
    if as_json:
        output.json(answer)
        return
    if not answer["groups"]:
        output.line(f"no {state} dead letter")
        return
    rows = (
        (g["letters"], g["came"], f"{age(g['first_seen'])} ago", f"{age(g['last_seen'])} ago",
         g["queue"], g["reason"])
        for g in answer["groups"]
    )  # fmt: skip
    output.table(("#letters", "#times", "#first", "#last", "queue", "reason"), rows)
    if state is ListedState.OPEN:
        output.say("one by one: --each. Once the cause is gone: saga dead-letters redrive --help")


def _each(output: Output, page: dict[str, Any]) -> None:
    if output.as_json:
        output.json(page)
        return
    rows = (
        (short(r["letter_id"]), r["count"], f"{age(r['last_seen'])} ago", r["queue"], r["reason"],
         short(r["saga_id"] or ""), _what(r))
        for r in page["letters"]
    )  # fmt: skip
    output.table(("letter", "#times", "#last", "queue", "reason", "saga", "what"), rows)
    output.more(page)


def _what(letter: dict[str, Any]) -> str:
    if letter["type"] is None:
        return f"{letter['size']} bytes"
    step = words(letter["step"] or "")
    return f"{letter['type']} ({'reply to ' if letter['reply'] else ''}{step})"


def show(
    letter_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The dead letter's id, or its first digits (at least 4)."
        ),
    ],
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter: its reason, saga, step and message.

    \b
    saga dead-letters show 5c1e
    """
    output = Output(as_json)
    letter = Api("operator", operator, output).get(f"/dead-letters/{letter_id}")
    if as_json:
        output.json(letter)
        return
    output.line(f"dead letter {letter['letter_id']}, from {letter['queue']}", "bold")
    output.line(f"{letter['reason']}: {letter['detail'] or 'no detail'}", "bold red")
    came = f"dead-lettered {letter['count']} times" if letter["count"] > 1 else "dead-lettered once"
    output.line(f"{came}, first {age(letter['first_seen'])} ago, {letter['size']} bytes")
    if letter["saga_id"]:
        way = "the undo of " if letter["direction"] == "compensating" else ""
        output.line(f"{_what(letter)}: {way}{words(letter['step'] or '?')} of {letter['saga_id']}")
    if letter["state"] != ListedState.OPEN:
        settled = f"{letter['state']} {age(letter['settled_at'])} ago by {letter['settled_by']}"
        output.line(f"{settled}: {letter['settled_why']}", "green")
    elif not letter["readable"]:
        output.line("not a whole envelope: it cannot be redriven, only discarded", "yellow")
    body = letter["body"]
    text = body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)
    output.line()
    output.line(text[:BODY_SHOWN] + (" ..." if len(text) > BODY_SHOWN else ""))


@dataclass
class SettleTally:
    """The results so far."""

    dry_run: bool
    results: Counter[str] = field(default_factory=Counter)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    unanswered: str | None = None

    def take(self, answer: dict[str, Any]) -> int:
        for outcome in answer["outcomes"]:
            self.results[outcome["result"]] += 1
            if outcome["result"] == "refused" and len(self.refusals) < REFUSALS_SHOWN:
                self.refusals.append(outcome)
        return len(answer["outcomes"])

    @property
    def document(self) -> dict[str, Any]:
        counts = {result: self.results[result] for result in ("done", "already", "refused")}
        return {
            **counts, "dry_run": self.dry_run, "refusals": self.refusals,
            "unanswered": self.unanswered,
        }  # fmt: skip

    @property
    def exit(self) -> Exit:
        if self.unanswered:
            return Exit.NO_ANSWER
        return Exit.NO if self.results["refused"] else Exit.YES


def redrive(
    ids: Ids = None,
    queue: Queue = None,
    reason: Reason = None,
    saga: Saga = None,
    every: All = False,
    why: Annotated[str, typer.Option(help="The reason, for the audit log.")] = "redriven",
    dry_run: DryRun = False,
    rate: Rate = 100,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Send dead letters back to the queues they came from.

    Do it once the cause is gone. The same messages are sent, with the same ids, so it is safe to
    repeat, and for two people at once: each dead letter is sent once, and a participant that has
    handled it before answers the same again. After an interruption run it again: it continues. What
    fails again becomes an open dead letter again.

    \b
    saga dead-letters redrive 5c1e
    saga dead-letters redrive --reason unknown_type --dry-run
    saga dead-letters redrive --queue payment.commands --rate 50

    Exit code 0: all were redriven, now or before. 1: some were refused and stay open. 3: some
    requests had no answer; run it again.
    """
    body = {"why": why, "dry_run": dry_run}
    _settle("redrive", ids, (queue, reason, saga, every), body, rate, operator, Output(as_json))


def discard(
    why: Annotated[
        str, typer.Option("--why", help="The reason; the audit log and stuck sagas show it.")
    ],
    ids: Ids = None,
    queue: Queue = None,
    reason: Reason = None,
    saga: Saga = None,
    every: All = False,
    dry_run: DryRun = False,
    rate: Rate = 100,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Discard dead letters that can never be handled.

    Each stays on record, with the reason. A saga whose forward command was dead-lettered has
    compensated since. One that waits for an undo, or for a step after the pivot, keeps sending it
    and is stuck, with your reason shown.

    \b
    saga dead-letters discard 5c1e --why "a test's leftovers"
    saga dead-letters discard --reason not_json --why "junk from the scanner" --dry-run
    """
    body = {"why": why, "dry_run": dry_run}
    _settle("discard", ids, (queue, reason, saga, every), body, rate, operator, Output(as_json))


def _settle(
    verb: str,
    ids: list[str] | None,
    which: tuple[str | None, str | None, str | None, bool],
    body: dict[str, Any],
    rate: float,
    operator: str | None,
    output: Output,
) -> None:
    queue, reason, saga, every = which
    if bool(ids) == bool(queue or reason or saga or every):
        raise typer.BadParameter("give ids, or else --queue, --reason, --saga or --all")
    api = Api("operator", operator, output)
    tally = SettleTally(bool(body["dry_run"]))
    try:
        if ids:
            body["letters"] = [api.get(f"/dead-letters/{one}")["letter_id"] for one in ids]
            tally.take(_ask(api, verb, body))
        else:
            wanted = {"queue": queue, "reason": reason, "saga_id": _saga(api, saga)}
            total = api.get("/dead-letters/groups", **wanted)["letters"]
            _in_bulk(api, verb, {**body, **wanted, "all": every}, rate, total, tally)
    except No as no:
        output.fail(Exit.NO, str(no), no.remedy)
    except Unanswered as error:
        tally.unanswered = f"{error}: {error.remedy}"
    if output.as_json:
        output.json(tally.document)
    else:
        _report(output, verb, tally)
    raise typer.Exit(tally.exit)


def _in_bulk(
    api: Api, verb: str, body: dict[str, Any], rate: float, total: int, tally: SettleTally
) -> None:
    """Send one request after another, each with at most a second's worth of dead letters."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=api.output.err, transient=True) as progress:
        task = progress.add_task("letters", total=total)
        began, done, after = time.monotonic(), 0, None
        while True:
            limit = max(1, min(CHUNK, int(rate)))
            answer = _ask(api, verb, {**body, "limit": limit, "after": after})
            taken = tally.take(answer)
            done += taken
            progress.advance(task, taken)
            after = answer["next"]
            if after is None:
                return
            if not tally.dry_run:
                time.sleep(max(0.0, began + done / rate - time.monotonic()))


def _ask(api: Api, verb: str, body: dict[str, Any]) -> Any:
    """Repeat the request until it is answered: each dead letter is settled only once."""
    ask = lambda: api.ask("POST", f"/dead-letters/{verb}", json=body)  # noqa: E731
    return again(ask, ASK_AGAIN_SECONDS)


def _saga(api: Api, text: str | None) -> Any:
    """Complete a saga's id. A whole id is not looked up: the saga may be forgotten by now."""
    if text is None or len(text.replace("-", "")) == 32:
        return text
    return api.get(f"/sagas/{text}")["saga_id"]


def _report(output: Output, verb: str, tally: SettleTally) -> None:
    done = {"redrive": "redriven", "discard": "discarded"}[verb]
    would = f"would be {done}" if tally.dry_run else done
    output.line(f"{tally.results['done']} {would}", "green")
    if already := tally.results["already"]:
        output.line(f"{already} were settled before and not again")
    if refused := tally.results["refused"]:
        output.line(
            f"{refused} {'would be ' if tally.dry_run else ''}refused and stay open:", "red"
        )
        for outcome in tally.refusals:
            output.line(f"  {short(outcome['letter_id'])}: {outcome['why']}")
    if tally.unanswered:
        output.line(f"{tally.unanswered}. Run it again: it continues", "red")
