"""`saga stuck`, `retry`, `compensate`, `resolve`, `reconcile`; and `actions`, the audit log."""

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
    """List stuck sagas: the cause, and what to type.

    Oldest first. A saga is stuck once it is past its SLA, or if its deadline has passed and no
    orchestrator checks it. It is still retried: `waits` shows when.

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
        output.line("nothing is stuck", "green")
        return
    for row in page["stuck"]:
        for line, style in _lines(row):
            output.line(line, style)
    output.more(page)


def _lines(row: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    since = f", stuck for {age(row['stuck_since'])}" if row["stuck_since"] else ""
    started = f"started {age(row['started_at'])} ago"
    yield f"{short(row['saga_id'])}  {row['state']}, {started}{since}: {row['standstill']}", "bold"
    if row["last_trouble"]:
        yield f"  last    {age(row['last_trouble_at'])} ago: {row['last_trouble']}", None
    for each in row["awaits"]:
        yield f"  waits   for {awaited(each)}", None
    yield f"  remedy  {row['remedy']}".replace(" ID", f" {short(row['saga_id'])}"), None


def retry(
    saga_id: SagaId,
    reason: Reason = "retried by an operator",
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Send again now what a saga waits for.

    Otherwise that happens when its deadline passes. It is the same message with the same id, so a
    participant that has handled it before answers the same again. No attempt is used up.

    \b
    saga retry 3f2a91c4
    saga retry 3f2a91c4 --reason "payment is back"
    """
    _act(saga_id, "retry", "sends again", reason, operator, as_json)


def compensate(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Compensate a saga: undo what was done, the last step first.

    Refused after the pivot, when there is no way back. While the pivot's outcome is unknown its
    participant is asked whether it was done, and the answer decides.

    \b
    saga compensate 3f2a91c4 --reason "the customer called"
    """
    _act(saga_id, "compensate", "compensates", reason, operator, as_json)


def resolve(
    saga_id: SagaId,
    step: Annotated[str, typer.Argument(metavar="STEP", help="As saga show prints it.")],
    reason: Reason,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Record that you have done a step by hand; the saga goes on.

    For a step that its service can never do. The step is an undo, or a step after the pivot; never
    the pivot itself. Nothing checks it: do it first, and make sure that the service does not do it
    as well (resolving only stops the resends).

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
        bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")
    ] = False,
    older_than: OlderThan = None,
    step: Step = None,
    reason: Reason = "reconciled by an operator",
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Check every overdue saga and retry every stuck one now.

    Orchestrators do this all the time. What is overdue is sent again or, after its last attempt,
    given up, by policy; what is stuck is sent again. Safe while orchestrators run: a saga that has
    moved on meanwhile is left alone.

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


class ActionOutcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"


def actions(
    saga_id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="Only of this saga: its id, or the first digits."),
    ] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this person.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this action: compensate, retry, resolve, redrive ...")
    ] = None,
    outcome: Annotated[ActionOutcome | None, typer.Option(help="Only with this outcome.")] = None,
    limit: Limit = 50,
    after: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Start after this one: printed below the last page."),
    ] = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List the audit log: what operators did and why.

    Newest first. Refused attempts are recorded too. Nothing in it can be changed or removed.

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
    columns = ("#when", "actor", "action", "saga", "about", "outcome", "reason")
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
