"""`saga stuck`, `retry`, `compensate`, `resolve` and `reconcile`: what stands still, and what a
person does about it; `saga actions`: what they did, and what they were refused."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from orchestrator.cli.client import Api, Operator
from orchestrator.cli.options import After, Limit, OlderThan, Reason, SagaId, Step
from orchestrator.cli.output import Json, Output, age, parse_duration, short, words
from orchestrator.cli.sagas import awaited


def stuck(
    step: Step = None,
    older_than: OlderThan = None,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List what stands still, oldest first: why, what was tried, and what to type.

    That is what is past its SLA, and what is overdue with nobody to judge it. Whatever it is, it is
    tried on: the last column says when next.

    \b
    saga stuck
    saga stuck --step charge_payment --older-than 1h
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get(
        "/stuck",
        step=step,
        older_than=parse_duration(older_than) if older_than else None,
        limit=limit,
        after=after,
    )
    if as_json:
        output.json(page)
        return
    if not page["stuck"]:
        output.line("nothing stands still", "green")
        return
    for row in page["stuck"]:
        for line, style in _standstill(row):
            output.line(line, style)
    output.more(page)


def _standstill(row: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    since = f", stuck for {age(row['stuck_since'])}" if row["stuck_since"] else ""
    begun = f"begun {age(row['started_at'])} ago"
    yield f"{short(row['saga_id'])}  {row['state']}, {begun}{since}: {row['standstill']}", "bold"
    if row["last_trouble"]:
        yield f"  last    {age(row['last_trouble_at'])} ago: {row['last_trouble']}", None
    for each in row["awaits"]:
        yield f"  waits   for {awaited(each)}", None
    yield f"  remedy  {row['remedy']}".replace(" ID", f" {short(row['saga_id'])}"), None


def retry(
    saga_id: SagaId,
    reason: Reason = "asked again by hand",
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Send what a saga waits for again, now, instead of when its deadline passes.

    It is the same message: who has done it answers what they answered. No attempt is used up.

    \b
    saga retry 3f2a91c4
    saga retry 3f2a91c4 --reason "payment is back"
    """
    _act(saga_id, "retry", "asked again", reason, operator, as_json)


def compensate(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Turn a saga back: what was done is undone, the last step first.

    Refused past the pivot, for then the goods are gone. While the pivot itself is silent it is
    asked whether it happened, and its answer decides.

    \b
    saga compensate 3f2a91c4 --reason "the customer called"
    """
    _act(saga_id, "compensate", "is turned back", reason, operator, as_json)


def resolve(
    saga_id: SagaId,
    step: Annotated[str, typer.Argument(metavar="STEP", help="As saga show names it.")],
    reason: Reason,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Say that you have seen to a step which no machine can settle; the saga goes on without it.

    An undo, or a step after the pivot; never the pivot itself. What you say is believed: see to it
    first, and see that the command is not handled as well (all this does is to stop asking for it).

    \b
    saga resolve 3f2a91c4 charge_payment --reason "refunded by bank transfer 4711"
    """
    path = f"steps/{quote(step, safe='')}/resolve"
    _act(saga_id, path, f"goes on, {words(step)} resolved", reason, operator, as_json)


def _act(
    saga_id: str, path: str, said: str, reason: str, operator: str | None, as_json: bool
) -> None:
    output = Output(as_json)
    saga = Api("operator", operator, output).post(f"/sagas/{saga_id}/{path}", reason=reason)
    if as_json:
        output.json(saga)
        return
    output.line(f"saga {short(saga['saga_id'])} {said}", "bold")
    output.line(f"{saga['state']}; see saga show {short(saga['saga_id'])} --follow")


def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    older_than: OlderThan = None,
    step: Step = None,
    reason: Reason = "reconciled by hand",
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Take up everything that is overdue or stuck, as the orchestrators do all the time.

    What is overdue is asked again, or given up after its last attempt, by policy; what is stuck is
    asked again now. Safe beside running orchestrators: whatever moved meanwhile is left alone.

    \b
    saga reconcile --dry-run
    saga reconcile --step charge_payment --older-than 1h --reason "payment is back"
    """
    output = Output(as_json)
    api = Api("operator", operator, output)
    age_ = parse_duration(older_than) if older_than else None
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = api.post(
            "/reconcile", dry_run=dry_run, step=step, older_than=age_, reason=reason, after=after
        )
        found += page["sagas"]
        after = page["next"]
        if after is None:
            break
    if as_json:
        output.json({"dry_run": dry_run, "sagas": found})
        return
    if not found:
        output.line("nothing is overdue or stuck", "green")
        return
    columns = ("saga", "state", "became", "why")
    rows = (
        (short(f["saga_id"]), f["state"], f["became"] or "(dry run)", f["standstill"])
        for f in found
    )
    output.table(columns, rows)


class Outcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"


def actions(
    saga_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of this saga only; how its id begins.")
    ] = None,
    actor: Annotated[str | None, typer.Option(help="By this person.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only such: compensate, retry, resolve, redrive ...")
    ] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Only with this outcome.")] = None,
    limit: Limit = 50,
    after: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The next page: the one below it says.")
    ] = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List what operators did, newest first: who, when, why, and what came of it.

    Nothing is ever changed or removed here, and a refused attempt stands here too.

    \b
    saga actions
    saga actions 3f2a91c4
    saga actions --actor ada --outcome refused
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get(
        "/actions",
        saga=saga_id,
        actor=actor,
        action=action,
        outcome=outcome,
        limit=limit,
        after=after,
    )
    if as_json:
        output.json(page)
        return
    if not page["actions"]:
        output.line("no such action")
        return
    columns = ("#done", "actor", "action", "saga", "about", "outcome", "reason")
    output.table(columns, (_row(act) for act in page["actions"]))
    output.more(page)


def _row(act: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{age(act['at'])} ago",
        act["actor"],
        act["action"],
        short(act["saga_id"]) if act["saga_id"] else "",
        act["about"],
        act["outcome"],
        f"{act['reason']}: {act['detail']}" if act["detail"] else act["reason"],
    )
