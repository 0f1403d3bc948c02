"""All schemas as of one moment, read with SQL of the judge's own.

Owns: every statement by which the judge looks at the services' tables, as the role that
may only read. Must not know: any code of the services. One REPEATABLE READ transaction,
so that no order is seen confirmed whose charge is not yet seen.
"""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from chaos.judge.evidence import (
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

# Where sagas stand, by style. Without an orchestrator, in what the order service has heard; the
# orchestrator's own schema is empty then.
SAGAS: dict[str, LiteralString] = {
    "orchestrated": "orchestrator.saga_instance",
    "choreographed": "order_svc.saga_progress",
}
EVER: dict[str, LiteralString] = {  # and those that have moved out
    "orchestrated": """(
      select saga_id, definition, state, steps, pivot_passed, stuck_since, ended_at
      from orchestrator.saga_instance
      union all
      select saga_id, instance->>'definition', instance->>'state', instance->'steps',
             (instance->>'pivot_passed')::boolean, (instance->>'stuck_since')::timestamptz,
             (instance->>'ended_at')::timestamptz
      from orchestrator.saga_archive)""",
    "choreographed": """(
      select saga_id, definition, state, steps, pivot_passed, stuck_since, ended_at
      from order_svc.saga_progress
      union all
      select saga_id, progress->>'definition', progress->>'state', progress->'steps',
             (progress->>'pivot_passed')::boolean, (progress->>'stuck_since')::timestamptz,
             (progress->>'ended_at')::timestamptz
      from order_svc.progress_archive)""",
}


def take_snapshot(dsn: str, style: str = "orchestrated") -> Snapshot:
    """Everything the invariants look at. `dsn` is the judge's."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with connection.transaction():
            return _read(connection, style)


def _read(db: psycopg.Connection[TupleRow], style: str) -> Snapshot:
    return Snapshot(
        orders=tuple(
            Order(
                order_id,
                customer,
                key,
                currency,
                _lines(lines),
                tuple(line["price"] for line in lines),
                *rest,
            )
            for order_id, customer, key, currency, lines, *rest in db.execute(
                """
                select order_id, customer, idempotency_key, currency, lines, total, status,
                       reason, placed_at, settled_at
                from order_svc.customer_order order by placed_at, order_id"""
            )
        ),
        stock=tuple(
            Stock(*row)
            for row in db.execute(
                "select sku, on_hand, held, dispatched, received from inventory_svc.stock"
            )
        ),
        deliveries=tuple(
            Delivery(*row)
            for row in db.execute("select saga_id, step, sku, quantity from inventory_svc.delivery")
        ),
        reservations=tuple(
            Reservation(saga_id, step, status, _lines(lines))
            for saga_id, step, status, lines in db.execute(
                "select saga_id, step, status, lines from inventory_svc.reservation"
            )
        ),
        accounts=tuple(
            Account(*row)
            for row in db.execute("select customer, currency, balance from payment_svc.account")
        ),
        transfers=tuple(
            Transfer(*row)
            for row in db.execute(
                """
                select transfer_id, kind, saga_id, step, debit, credit, amount, currency, refund_of
                from payment_svc.transfer"""
            )
        ),
        ledger={
            (account, currency): int(amount)
            for account, currency, amount in db.execute(
                """
                select account, currency, sum(amount)
                from payment_svc.ledger_entry group by account, currency"""
            )
        },
        instances=tuple(
            Instance(
                saga_id,
                definition,
                state,
                {step: entry["status"] for step, entry in steps.items()},
                pivot_passed,
                stuck,
            )
            for saga_id, definition, state, steps, pivot_passed, stuck in db.execute(
                "select saga_id, definition, state, steps, pivot_passed, stuck_since is not null"  # noqa: S608 - one of two names of ours
                f" from {EVER[style]} as ever"
            )
        ),
        claims=tuple(
            Claim(*row)
            for row in db.execute(
                _in_every_schema(
                    db,
                    """
                    select {0}, saga_id, step, direction
                    from {1}.inbox where outcome = 'claimed'""",
                )
            )
        ),
        outboxes=count_outboxes(db),
        dead_letters=_dead_letters(db) if style == "orchestrated" else (),
        returns=tuple(
            Return(*row)
            for row in db.execute(
                """
                select return_id, order_id, idempotency_key, status, reason
                from order_svc.order_return"""
            )
        ),
    )


def _dead_letters(db: psycopg.Connection[TupleRow]) -> tuple[DeadLetter, ...]:
    """Those that the orchestrator took in; without one they lie where they fell."""
    rows = db.execute(
        """
        select queue || '.dead', reason,
               coalesce(type || ' of saga ' || saga_id,
                        encode(substr(body, 1, 80), 'escape')), count
        from orchestrator.dead_letter order by first_seen, letter_id"""
    )
    return tuple(DeadLetter(*row) for row in rows)


def count_outboxes(db: psycopg.Connection[TupleRow]) -> dict[str, int]:
    """Schema to messages not yet confirmed by the broker."""
    query = _in_every_schema(db, "select {0}, count(*) from {1}.outbox")
    return dict(db.execute(query).fetchall())


def _in_every_schema(db: psycopg.Connection[TupleRow], query: LiteralString) -> sql.Composed:
    """In every one that takes part: who takes part has an inbox and an outbox."""
    schemas = db.execute(
        "select schemaname from pg_tables where tablename = 'outbox' order by 1"
    ).fetchall()
    parts = [sql.SQL(query).format(name, sql.Identifier(name)) for (name,) in schemas]
    return sql.SQL(" union all ").join(parts)


def _lines(lines: list[dict[str, Any]]) -> tuple[Line, ...]:
    return tuple(Line(line["sku"], line["quantity"]) for line in lines)
