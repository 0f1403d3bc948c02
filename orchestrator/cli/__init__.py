"""`saga`, the operator's command. It speaks to the two HTTP APIs and to nothing else.

One module per noun; client.py sends requests, output.py prints, options.py has the options that
several commands take.
"""

from __future__ import annotations

import typer

from orchestrator.cli import (
    audit,
    client,
    dead_letters,
    gates,
    interventions,
    orders,
    sagas,
    services,
)

ABOUT = """
Place orders, follow their sagas, find what is stuck or wrong, and intervene.

The command calls the customers' door and the operator's API over HTTP. Set their URLs and keys:

\b
    export SAGAPROOF_DOOR_URL=http://127.0.0.1:8080
    export SAGAPROOF_DOOR_KEY=...
    export SAGAPROOF_OPERATOR_URL=http://127.0.0.1:8082
    export SAGAPROOF_OPERATOR_TOKEN=...

For a stack that `chaos up` started: eval "$(chaos env)"

Start with `saga doctor`, or with `saga show ID` for one order.

\b
Exit codes:
    0  success
    1  rejected, refused or not found; errors or drift found
    2  the command line is wrong
    3  no answer: try again
    4  the order had not ended when the wait was over
"""

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=ABOUT
)
app.callback()(client.remember)
app.command("order")(orders.order)
app.command("list")(sagas.list_)
app.command("show")(sagas.show)
app.command("waiting")(gates.waiting)
app.command("approve")(gates.approve)
app.command("reject")(gates.reject)
app.add_typer(gates.watch, name="watch")
app.command("stuck")(interventions.stuck)
app.command("retry")(interventions.retry)
app.command("compensate")(interventions.compensate)
app.command("resolve")(interventions.resolve)
app.command("reconcile")(interventions.reconcile)
app.command("actions")(interventions.actions)
app.command("stock")(services.stock)
app.command("accounts")(services.accounts)
app.command("doctor")(services.doctor)
app.command("audit")(audit.audit)

_orders = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Place orders from a file.")
_orders.command("place")(orders.place)
app.add_typer(_orders, name="orders")

_letters = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="List, show, redrive or discard dead letters.",
)  # fmt: skip
_letters.command("list")(dead_letters.list_)
_letters.command("show")(dead_letters.show)
_letters.command("redrive")(dead_letters.redrive)
_letters.command("discard")(dead_letters.discard)
app.add_typer(_letters, name="dead-letters")
