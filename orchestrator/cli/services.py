"""`saga stock`, `saga accounts` and `saga doctor`: what services hold, and system status."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.client import Api, Operator
from orchestrator.cli.options import After, Limit
from orchestrator.cli.output import Exit, Json, Output, money


def stock(
    sku: Annotated[str | None, typer.Argument(help="Only SKUs that begin so.")] = None,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List stock by SKU: pieces on hand, held and dispatched.

    \b
    saga stock
    saga stock sku-00
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get("/stock", sku=sku, limit=limit, after=after)
    if as_json:
        output.json(page)
        return
    columns = ("#on hand", "#held", "#dispatched", "#received", "sku")
    keys = ("on_hand", "held", "dispatched", "received", "sku")
    output.table(columns, ([row[key] for key in keys] for row in page["stock"]))
    output.more(page)


def accounts(
    customer: Annotated[str | None, typer.Argument(help="Only this customer's accounts.")] = None,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List customers' accounts and balances.

    \b
    saga accounts
    saga accounts c-001
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get(
        "/accounts", customer=customer, limit=limit, after=after
    )
    if as_json:
        output.json(page)
        return
    rows = (
        (money(a["balance"], a["currency"]), a["card"], a["customer"]) for a in page["accounts"]
    )
    output.table(("#balance", "card", "customer"), rows)
    output.more(page)


def doctor(operator: Operator = None, as_json: Json = False) -> None:
    """Check every process, queue and schema.

    Print what is wrong and what to do. Exit code 1 if any finding is an error. Warnings do not keep
    sagas from going on.
    """
    output = Output(as_json)
    diagnosis = Api("operator", operator, output).get("/doctor")
    if as_json:
        output.json(diagnosis)
    else:
        _report(output, diagnosis)
    raise typer.Exit(Exit.YES if diagnosis["ok"] else Exit.NO)


def _report(output: Output, diagnosis: dict[str, Any]) -> None:
    processes, queues = diagnosis["processes"] or [], diagnosis["queues"] or []
    if processes:
        output.table(
            ("process", "service", "release", "ready", "migrated to"),
            (
                (p["process"], p["service"], p["release"], "yes" if p["ready"] else "NO",
                 (p["applied"] or ["unknown"])[-1])
                for p in processes
            ),
        )  # fmt: skip
        output.line()
    busy = [q for q in queues if q["ready"]]
    if busy:
        output.table(
            ("#ready", "#consumers", "queue"),
            ((q["ready"], q["consumers"], q["name"]) for q in busy),
        )
        output.line()
    for finding in diagnosis["findings"]:
        style = "bold red" if finding["severity"] == "error" else "yellow"
        output.line(f"{finding['severity']}: {finding['about']}: {finding['what']}", style)
        output.line(f"  remedy: {finding['remedy']}")
    if not diagnosis["findings"]:
        output.line(f"{len(processes)} processes and {len(queues)} queues: nothing wrong", "green")
