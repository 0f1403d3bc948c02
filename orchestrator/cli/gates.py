"""`saga waiting`, `approve`, `reject` and `watch`: what a person decides at a gate."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Api, Operator
from orchestrator.cli.options import After, Limit, Reason, SagaId
from orchestrator.cli.output import Json, Output, age, duration, moment, money, short, words

Customer = Annotated[str, typer.Argument(help="As orders name them.")]


def waiting(
    customer: Annotated[str | None, typer.Option(help="Of this customer.")] = None,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List what is parked at a gate and waits for a person; what waits longest comes first.

    What is held stays held until somebody decides, or it expires and is undone.

    \b
    saga waiting
    saga waiting --customer c-001
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get(
        "/waiting", customer=customer, limit=limit, after=after
    )
    if as_json:
        output.json(page)
        return
    if not page["waiting"]:
        output.line("nothing waits for a person")
        return
    columns = ("saga", "#waits", "#expires in", "#total", "customer", "holds", "why")
    output.table(columns, (_row(row) for row in page["waiting"]))
    output.more(page)


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    left = (moment(row["expires_at"]) - datetime.now(UTC)).total_seconds()
    return (
        short(row["saga_id"]),
        age(row["waiting_since"]),
        duration(left),
        "" if row["total"] is None else money(row["total"], row["currency"]),
        row["customer"],
        ", ".join(_held(line) for line in row["held"]),
        row["why"],
    )


def _held(line: Any) -> str:
    """A line of an order as one would say it; another saga's as it stands."""
    try:
        return f"{line['quantity']} x {line['sku']}"
    except (KeyError, TypeError):
        return str(line)


def approve(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Let a parked saga go on. Whoever decides first decides; you are told if it was not you.

    \b
    saga approve 3f2a91c4 --reason "called the customer"
    """
    _decide("approve", saga_id, reason, operator, as_json)


def reject(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Turn a parked saga back: what was done is undone, and the customer is told.

    \b
    saga reject 3f2a91c4 --reason "stolen card"
    """
    _decide("reject", saga_id, reason, operator, as_json)


def _decide(verb: str, saga_id: str, reason: str, operator: str | None, as_json: bool) -> None:
    output = Output(as_json)
    saga = Api("operator", operator, output).post(f"/sagas/{saga_id}/{verb}", reason=reason)
    if as_json:
        output.json(saga)
        return
    said = {"approve": "approved: it goes on", "reject": "rejected: it is undone"}[verb]
    output.line(f"saga {short(saga['saga_id'])} {said}", "bold")
    output.line(f"{saga['state']}; see saga show {short(saga['saga_id'])}")


watch = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The watch list: customers whose orders a person wants to see before they are charged.",
)


@watch.command("list")
def watch_list(
    limit: Limit = 50, after: After = None, operator: Operator = None, as_json: Json = False
) -> None:
    """List who is watched, since when, why, and by whom."""
    output = Output(as_json)
    page = Api("operator", operator, output).get("/watch-list", limit=limit, after=after)
    if as_json:
        output.json(page)
        return
    if not page["customers"]:
        output.line("nobody is watched")
        return
    output.table(
        ("customer", "#since", "by", "reason"),
        ((c["customer"], age(c["added_at"]), c["actor"], c["reason"]) for c in page["customers"]),
    )
    output.more(page)


@watch.command("add")
def watch_add(
    customer: Customer, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Watch a customer: their orders that come to the gate from now on are parked there.

    \b
    saga watch add c-017 --reason "three chargebacks in May"
    """
    output = Output(as_json)
    row = Api("operator", operator, output).post("/watch-list", customer=customer, reason=reason)
    if as_json:
        output.json(row)
    else:
        output.line(f"{row['customer']} is watched: {words(row['reason'])}")


@watch.command("remove")
def watch_remove(
    customer: Customer, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Watch a customer no longer. What is parked already waits for its decision all the same.

    \b
    saga watch remove c-017 --reason "cleared"
    """
    output = Output(as_json)
    page = Api("operator", operator, output).post(
        "/watch-list/remove", customer=customer, reason=reason
    )
    if as_json:
        output.json(page)
    else:
        output.line(f"{customer} is no longer watched")
