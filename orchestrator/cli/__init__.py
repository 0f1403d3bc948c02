"""`saga`, the operator's command: places orders, shows where they are and what is wrong.

It speaks to the two HTTP APIs and to nothing else. One module per noun: orders.py,
sagas.py, gates.py, hands.py, services.py, dead_letters.py, audit.py; options.py is what they
take alike, client.py asks, output.py prints.
"""

from __future__ import annotations

import typer

from orchestrator.cli import audit, client, dead_letters, gates, hands, orders, sagas, services

ABOUT = """
Place orders, see where they are and why they stand still, and what is wrong.

The command asks the customers' door and the operator's API over HTTP. Tell it where they are,
and what opens them:

\b
    export SAGAPROOF_DOOR_URL=http://127.0.0.1:8080
    export SAGAPROOF_DOOR_KEY=...
    export SAGAPROOF_OPERATOR_URL=http://127.0.0.1:8082
    export SAGAPROOF_OPERATOR_TOKEN=...

For a stack that `chaos up` started: eval "$(chaos env)"

Begin with `saga doctor`, and with `saga show ID` of an order that stands still.

\b
Exit codes:
    0  yes
    1  no: rejected, refused, not found, errors or drift found
    2  the command line is wrong
    3  nobody answered: ask again
    4  it had not ended when the wait was over
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
app.command("stuck")(hands.stuck)
app.command("retry")(hands.retry)
app.command("compensate")(hands.compensate)
app.command("resolve")(hands.resolve)
app.command("reconcile")(hands.reconcile)
app.command("actions")(hands.actions)
app.command("stock")(services.stock)
app.command("accounts")(services.accounts)
app.command("doctor")(services.doctor)
app.command("audit")(audit.audit)

_orders = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Orders from a file.")
_orders.command("place")(orders.place)
app.add_typer(_orders, name="orders")

_letters = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None,
    help="Messages that could not be handled: why, once more, or away with them.",
)  # fmt: skip
_letters.command("list")(dead_letters.list_)
_letters.command("show")(dead_letters.show)
_letters.command("redrive")(dead_letters.redrive)
_letters.command("discard")(dead_letters.discard)
app.add_typer(_letters, name="dead-letters")
