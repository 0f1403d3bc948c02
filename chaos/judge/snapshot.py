"""All schemas as of one moment, read with SQL of the judge's own, in a role that may only read.

One REPEATABLE READ transaction, so that no order is seen confirmed whose charge is not yet seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, args_row

from chaos.judge.case import (
    Account,
    Claim,
    DeadLetter,
    Delivery,
    Instance,
    Line,
    Order,
    Reservation,
    Return,
    Snapshot,
    Stock,
    Transfer,
)
from chaos.judge.queues import RabbitmqCtl, read_dead_letters

Row = TypeVar("Row")

# Where sagas are recorded, by style: without an orchestrator, in the order service.
SAGAS: dict[str, LiteralString] = {
    "orchestrated": "orchestrator.saga_instance",
    "choreographed": "order_svc.saga_progress",
}
EVER: dict[str, LiteralString] = {  # with the archived ones
    "orchestrated": """(
      select saga_id, definition, state, steps, pivot_passed, ended_at
      from orchestrator.saga_instance
      union all
      select saga_id, instance->>'definition', instance->>'state', instance->'steps',
             (instance->>'pivot_passed')::boolean, (instance->>'ended_at')::timestamptz
      from orchestrator.saga_archive)""",
    "choreographed": """(
      select saga_id, definition, state, steps, pivot_passed, ended_at
      from order_svc.saga_progress
      union all
      select saga_id, progress->>'definition', progress->>'state', progress->'steps',
             (progress->>'pivot_passed')::boolean, (progress->>'ended_at')::timestamptz
      from order_svc.progress_archive)""",
}


def whole_snapshot(
    dsn: str, amqp_url: str, rabbitmqctl: RabbitmqCtl, style: str = "orchestrated"
) -> Snapshot:
    """Read everything the invariants check.

    Without an orchestrator no process takes dead letters in: they are read from their queues.
    """
    snapshot = take_snapshot(dsn, style)
    if style == "orchestrated":
        return snapshot
    return replace(snapshot, dead_letters=read_dead_letters(amqp_url, rabbitmqctl))


def take_snapshot(dsn: str, style: str = "orchestrated") -> Snapshot:
    """Read all tables. `dsn` is the judge's."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            return _read(connection, style)


def _read(db: psycopg.Connection[TupleRow], style: str) -> Snapshot:
    def rows(make: Callable[..., Row], query: LiteralString | sql.Composed) -> tuple[Row, ...]:
        with db.cursor(row_factory=args_row(make)) as cursor:
            return tuple(cursor.execute(query))

    return Snapshot(
        orders=rows(
            _order,
            """
            select order_id, customer, idempotency_key, currency, lines, total, status,
                   reason, placed_at, settled_at
            from order_svc.customer_order order by placed_at, order_id""",
        ),
        returns=rows(
            Return,
            "select return_id, order_id, idempotency_key, status, reason"
            " from order_svc.order_return",
        ),
        stock=rows(
            Stock, "select sku, on_hand, held, dispatched, received from inventory_svc.stock"
        ),
        deliveries=rows(
            Delivery, "select saga_id, step, sku, quantity from inventory_svc.delivery"
        ),
        reservations=rows(
            lambda saga_id, step, status, lines: Reservation(saga_id, step, status, _lines(lines)),
            "select saga_id, step, status, lines from inventory_svc.reservation",
        ),
        accounts=rows(Account, "select customer, currency, balance from payment_svc.account"),
        transfers=rows(
            Transfer,
            "select transfer_id, kind, saga_id, step, debit, credit, amount, currency, refund_of"
            " from payment_svc.transfer",
        ),
        ledger={
            (account, currency): int(amount)
            for account, currency, amount in db.execute(
                "select account, currency, sum(amount)"
                " from payment_svc.ledger_entry group by account, currency"
            )
        },
        instances=rows(
            _instance,
            f"select saga_id, definition, state, steps, pivot_passed from {EVER[style]} as ever",  # noqa: S608 - one of two names of ours
        ),
        claims=rows(
            Claim,
            _in_every_schema(
                db,
                "select {0}, saga_id, step, direction from {1}.inbox where outcome = 'claimed'",
            ),
        ),
        outboxes=count_outboxes(db),
        dead_letters=rows(
            DeadLetter,
            """
            select queue || '.dead', reason,
                   coalesce(type || ' of saga ' || saga_id,
                            encode(substr(body, 1, 80), 'escape')), count
            from orchestrator.dead_letter order by first_seen, letter_id""",
        )
        if style == "orchestrated"
        else (),
    )


def count_outboxes(db: psycopg.Connection[TupleRow]) -> dict[str, int]:
    """Count by schema the messages not yet confirmed by the broker."""
    query = _in_every_schema(db, "select {0}, count(*) from {1}.outbox")
    return dict(db.execute(query).fetchall())


def _in_every_schema(db: psycopg.Connection[TupleRow], query: LiteralString) -> sql.Composed:
    """Query every schema with an inbox and an outbox."""
    schemas = db.execute(
        "select schemaname from pg_tables where tablename = 'outbox' order by 1"
    ).fetchall()
    parts = [sql.SQL(query).format(name, sql.Identifier(name)) for (name,) in schemas]
    return sql.SQL(" union all ").join(parts)


def _order(
    order_id: Any, customer: str, key: str, currency: str, lines: list[dict[str, Any]], *rest: Any
) -> Order:
    prices = tuple(line["price"] for line in lines)
    return Order(order_id, customer, key, currency, _lines(lines), prices, *rest)


def _instance(saga_id: Any, definition: str, state: str, steps: Any, pivot: bool) -> Instance:
    statuses = {step: entry["status"] for step, entry in steps.items()}
    return Instance(saga_id, definition, state, statuses, pivot)


def _lines(lines: list[dict[str, Any]]) -> tuple[Line, ...]:
    return tuple(Line(line["sku"], line["quantity"]) for line in lines)
