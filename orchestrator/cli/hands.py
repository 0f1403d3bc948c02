"""`saga actions`: what people did to sagas, and what they were refused."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Api, Operator
from orchestrator.cli.output import Json, Output, age, short

PAGE = 1000


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
    limit: Annotated[int, typer.Option(min=1, max=PAGE, help="How many.")] = 50,
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
    if page["next"]:
        output.say(f"more: add --after {page['next']}")


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
