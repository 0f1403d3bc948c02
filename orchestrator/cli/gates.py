"""`saga waiting`, `approve`, `reject` and `watch`: sagas that a person decides about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Api, Operator
from orchestrator.cli.options import After, Limit, Reason, SagaId
from orchestrator.cli.output import Json, Output, age, duration, moment, money, short, words

Customer = Annotated[str, typer.Argument(help="The customer, as orders name them.")]


def waiting(
    customer: Annotated[str | None, typer.Option(help="Only sagas of this customer.")] = None,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List sagas parked at a gate, longest waiting first.

    Their stock stays held until someone approves or rejects them, or they expire and are
    compensated.

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
        output.line("nothing waits for a decision")
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
        ", ".join(_line(line) for line in row["held"]),
        row["why"],
    )


def _line(line: Any) -> str:
    """Describe a line of an order; return another saga's data unchanged."""
    try:
        return f"{line['quantity']} x {line['sku']}"
    except (KeyError, TypeError):
        return str(line)


def approve(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Let a parked saga go on. The first decision counts; a later one is refused and shows it.

    \b
    saga approve 3f2a91c4 --reason "called the customer"
    """
    _decide("approve", saga_id, reason, operator, as_json)


def reject(
    saga_id: SagaId, reason: Reason, operator: Operator = None, as_json: Json = False
) -> None:
    """Compensate a parked saga. What was done is undone, and the order is rejected.

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
    said = {"approve": "approved: it goes on", "reject": "rejected: it compensates"}[verb]
    output.line(f"saga {short(saga['saga_id'])} {said}", "bold")
    output.line(f"{saga['state']}; see saga show {short(saga['saga_id'])}")


watch = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Watch customers: park their orders for a decision.",
)


@watch.command("list")
def watch_list(
    limit: Limit = 50, after: After = None, operator: Operator = None, as_json: Json = False
) -> None:
    """List watched customers: since when, why, and by whom."""
    output = Output(as_json)
    page = Api("operator", operator, output).get("/watch-list", limit=limit, after=after)
    if as_json:
        output.json(page)
        return
    if not page["customers"]:
        output.line("no customer is watched")
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
    """Watch a customer: park their orders at the gate from now on.

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
    """Stop watching a customer. Orders already parked still wait for a decision.

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
