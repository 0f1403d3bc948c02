"""Invariants as constraints (rule 2): each is violated once, and reported by its name."""

from __future__ import annotations

from typing import LiteralString, NamedTuple

import pytest

from chaos.runtime.bootstrap import SERVICES
from common.messages.errors import ConstraintViolated
from common.storage.db import Database
from tests.integration.conftest import MakeSettings
from tests.integration.waiting import Rows


class Forbidden(NamedTuple):
    """Statements of which the last breaks the constraint."""

    schema: str
    constraint: str
    statements: tuple[LiteralString, ...]


SAGA: LiteralString = "'00000000-0000-0000-0000-000000000001'"
OTHER: LiteralString = "'00000000-0000-0000-0000-000000000002'"


def instance(
    state: LiteralString = "'RUNNING'",
    steps: LiteralString = "{}",
    more: LiteralString = "",
    values: LiteralString = "",
) -> LiteralString:
    return (
        f"insert into saga_instance (saga_id, definition, version, data, state, steps{more})"
        f" values ({SAGA}, 'order', 1, '{{}}', {state}, '{steps}'{values})"
    )


def ended(state: LiteralString, **steps: LiteralString) -> LiteralString:
    document: LiteralString = ", ".join(
        f'"{step}": {{"status": "{status}"}}' for step, status in steps.items()
    )
    return instance(state, "{" + document + "}", ", ended_at", ", now()")


def action(
    actor: LiteralString = "ada", reason: LiteralString = "why", outcome: LiteralString = "done"
) -> LiteralString:
    return (
        "insert into operator_action (id, actor, action, reason, outcome, process)"
        f" overriding system value values (1, '{actor}', 'retry', '{reason}', '{outcome}', 'p')"
    )


def order(
    order_id: LiteralString = SAGA,
    key: LiteralString = "k",
    total: LiteralString = "1",
    status: LiteralString = "'PENDING', null",
) -> LiteralString:
    return (
        "insert into customer_order"
        " (order_id, customer, idempotency_key, currency, lines, total, status, reason)"
        f" values ({order_id}, 'ada', '{key}', 'EUR', '[]', {total}, {status})"
    )


def given_back(
    return_id: LiteralString = SAGA,
    order_id: LiteralString = SAGA,
    key: LiteralString = "k",
    status: LiteralString = "'OPEN', null",
) -> LiteralString:
    return (
        "insert into order_return (return_id, order_id, idempotency_key, status, reason)"
        f" values ({return_id}, {order_id}, '{key}', {status})"
    )


def letter(
    count: LiteralString = "1",
    state: LiteralString = "open",
    settled: LiteralString = "null, null, null",
) -> LiteralString:
    return (
        "insert into dead_letter (letter_id, queue, reason, reply, body, size, readable, headers,"
        " set_aside, count, state, settled_at, settled_by, settled_why)"
        f" values ({SAGA}, 'q', 'r', false, '', 0, false, '{{}}', 's', {count}, '{state}',"
        f" {settled})"
    )


def transfer(
    transfer_id: LiteralString = SAGA,
    kind: LiteralString = "CHARGE",
    saga_id: LiteralString = SAGA,
    sides: LiteralString = "'ada', 'shop:revenue'",
    amount: LiteralString = "1",
    refund_of: LiteralString = "null",
    step: LiteralString = "charge_payment",
) -> LiteralString:
    return (
        "insert into transfer"
        " (transfer_id, kind, saga_id, step, debit, credit, amount, currency, refund_of)"
        f" values ({transfer_id}, '{kind}', {saga_id}, '{step}', {sides}, {amount}, 'EUR',"
        f" {refund_of})"
    )


def refund(transfer_id: LiteralString, step: LiteralString) -> LiteralString:
    return transfer(transfer_id, "REFUND", sides="'shop:revenue', 'ada'", refund_of=SAGA, step=step)


def account(
    customer: LiteralString = "ada", card: LiteralString = "good", balance: LiteralString = "0"
) -> LiteralString:
    return (
        "insert into account (customer, currency, card, balance)"
        f" values ('{customer}', 'EUR', '{card}', {balance})"
    )


def stock(*where: LiteralString) -> LiteralString:
    """On hand, held, dispatched, received."""
    pieces: LiteralString = ", ".join(where)
    return f"insert into stock (sku, on_hand, held, dispatched, received) values ('tea', {pieces})"


def reservation(
    status: LiteralString = "HELD", step: LiteralString = "reserve_stock"
) -> LiteralString:
    return (
        "insert into reservation (saga_id, step, status, lines)"
        f" values ({SAGA}, '{step}', '{status}', '[]')"
    )


INBOX: LiteralString = "insert into inbox (saga_id, step, direction, outcome) values "
CLAIM: LiteralString = INBOX + f"({SAGA}, 's', 'forward', 'done')"
OUTBOX: LiteralString = (
    "insert into outbox (destination, id, envelope) overriding system value values ('q', 1, '')"
)
TRY: LiteralString = f"insert into solo_tries values ({SAGA}, 's', 'forward', false, 1)"
LOG: LiteralString = (
    "insert into saga_log (saga_id, id, entry, process) overriding system value"
    f" values ({SAGA}, 1, 'started', 'p')"
)
HELD_REPLY: LiteralString = (
    f"insert into held_reply values ({SAGA}, 's', 'forward', 'order v2', '')"
)
PRODUCT: LiteralString = "insert into product (sku, price, currency) values ('tea', 1, 'EUR')"
DELIVERY: LiteralString = (
    f"insert into delivery (saga_id, step, sku, quantity) values ({SAGA}, 's', 'tea', 1)"
)


def progress(
    state: LiteralString = "'RUNNING'",
    steps: LiteralString = "{}",
    more: LiteralString = "",
    values: LiteralString = "",
) -> LiteralString:
    return (
        f"insert into saga_progress (saga_id, heard, state, steps{more})"
        f" values ({SAGA}, '{{}}', {state}, '{steps}'{values})"
    )


COMMON = [
    ("inbox_direction_known", (INBOX + f"({SAGA}, 's', 'sideways', 'done')",)),
    ("inbox_outcome_known", (INBOX + f"({SAGA}, 's', 'forward', 'failed')",)),
    ("inbox_once", (CLAIM, CLAIM)),
    ("outbox_pk", (OUTBOX, OUTBOX)),
    ("solo_tries_pk", (TRY, TRY)),
    ("forgotten_pk", ("insert into forgotten default values",)),
    ("forgotten_is_one_row", ("insert into forgotten (here) values (false)",)),
]
ARCHIVED: LiteralString = (
    f"insert into saga_archive (saga_id, instance, log) values ({SAGA}, '{{}}', '[]')"
)
FORGOTTEN: LiteralString = (
    f"insert into progress_archive (saga_id, progress) values ({SAGA}, '{{}}')"
)
PLANTS = [
    *(Forbidden(schema, *plant) for schema in SERVICES for plant in COMMON),
    Forbidden("orchestrator", "saga_archive_pk", (ARCHIVED, ARCHIVED)),
    # Orchestrator. Rule 2: COMPENSATED needs every sent step settled, COMPLETED every step done;
    # a passed pivot excludes both COMPENSATING and COMPENSATED.
    *(
        Forbidden(
            "orchestrator",
            "compensated_means_every_step_settled",
            (ended("'COMPENSATED'", create_order="undone", charge_payment=status),),
        )
        for status in ("sent", "done", "unknown", "undoing", "fencing")
    ),
    *(
        Forbidden(
            "orchestrator",
            "completed_means_every_step_done",
            (ended("'COMPLETED'", create_order="done", dispatch_stock=status),),
        )
        for status in ("sent", "refused", "unknown", "undoing", "undone", "fencing", "fenced")
    ),
    *(
        Forbidden(
            "orchestrator",
            "passed_pivot_excludes_compensation",
            (instance(f"'{state}'", "{}", f", pivot_passed{column}", f", true{value}"),),
        )
        for state, column, value in (
            ("COMPENSATING", "", ""),
            ("COMPENSATED", ", ended_at", ", now()"),
        )
    ),
    Forbidden("orchestrator", "saga_instance_pk", (instance(), instance())),
    Forbidden("orchestrator", "saga_state_known", (instance("'LOST'"),)),
    Forbidden("orchestrator", "waiting_has_a_gate_and_a_deadline", (instance("'WAITING'"),)),
    Forbidden(
        "orchestrator",
        "watched_customer_pk",
        ("insert into watched_customer (customer, actor, reason) values ('ada', 'ops', 'x')",) * 2,
    ),
    Forbidden("orchestrator", "ended_awaits_nothing", (instance("'COMPLETED'"),)),
    Forbidden(
        "orchestrator", "ended_awaits_nothing", (instance(more=", ended_at", values=", now()"),)
    ),
    Forbidden(
        "orchestrator",
        "ended_awaits_nothing",
        (instance("'COMPLETED'", "{}", ", ended_at, next_deadline", ", now(), now()"),),
    ),
    Forbidden("orchestrator", "saga_log_pk", (LOG, LOG)),
    Forbidden("orchestrator", "operator_action_pk", (action(), action())),
    Forbidden("orchestrator", "held_reply_pk", (HELD_REPLY, HELD_REPLY)),
    Forbidden("orchestrator", "operator_action_outcome_known", (action(outcome="perhaps"),)),
    Forbidden("orchestrator", "operator_action_has_actor_and_reason", (action(actor=""),)),
    Forbidden("orchestrator", "operator_action_has_actor_and_reason", (action(reason=""),)),
    Forbidden("orchestrator", "operator_action_has_actor_and_reason", (action(outcome="refused"),)),
    Forbidden("orchestrator", "dead_letter_pk", (letter(), letter())),
    Forbidden("orchestrator", "came_at_least_once", (letter("0"),)),
    Forbidden(
        "orchestrator", "dead_letter_state_known", (letter("1", "lost", "now(), 'ann', 'x'"),)
    ),
    Forbidden(
        "orchestrator", "settled_by_somebody", (letter("1", "redriven", "now(), null, null"),)
    ),
    Forbidden("orchestrator", "settled_by_somebody", (letter("1", "open", "null, 'ann', null"),)),
    Forbidden(
        "orchestrator",
        "discarded_for_a_reason",
        (letter("1", "discarded", "now(), 'ann', null"),),
    ),
    # Order.
    Forbidden("order_svc", "product_pk", (PRODUCT, PRODUCT)),
    Forbidden("order_svc", "price_not_negative", (PRODUCT, "update product set price = -1")),
    Forbidden("order_svc", "order_once", (order(), order(key="k2"))),
    Forbidden("order_svc", "order_key_once", (order(), order(OTHER))),
    Forbidden("order_svc", "total_not_negative", (order(total="-1"),)),
    Forbidden("order_svc", "order_status_known", (order(status="'SHIPPED', null"),)),
    Forbidden("order_svc", "rejected_has_a_reason", (order(status="'REJECTED', null"),)),
    Forbidden("order_svc", "rejected_has_a_reason", (order(status="'CONFIRMED', 'no'"),)),
    Forbidden("order_svc", "returned_by_one_return", (order(status="'RETURNED', null"),)),
    Forbidden("order_svc", "returned_by_one_return", (order(status="'RETURN_PENDING', null"),)),
    Forbidden("order_svc", "order_return_once", (given_back(), given_back(order_id=OTHER))),
    Forbidden(
        "order_svc", "return_key_once", (given_back(status="'CLOSED', 'no'"), given_back(OTHER))
    ),
    Forbidden("order_svc", "one_return_per_order", (given_back(), given_back(OTHER, key="k2"))),
    Forbidden("order_svc", "return_status_known", (given_back(status="'LOST', null"),)),
    Forbidden("order_svc", "closed_has_a_reason", (given_back(status="'CLOSED', null"),)),
    Forbidden("order_svc", "saga_progress_pk", (progress(), progress())),
    Forbidden("order_svc", "progress_archive_pk", (FORGOTTEN, FORGOTTEN)),
    Forbidden("order_svc", "progress_state_known", (progress("'LOST'"),)),
    Forbidden(
        "order_svc",
        "heard_pivot_excludes_compensation",
        (progress("'COMPENSATING'", "{}", ", pivot_passed", ", true"),),
    ),
    Forbidden(
        "order_svc",
        "heard_completed_means_every_step_done",
        (progress("'COMPLETED'", '{"s": {"status": "sent"}}', ", ended_at", ", now()"),),
    ),
    Forbidden(
        "order_svc",
        "heard_compensated_means_every_step_settled",
        (progress("'COMPENSATED'", '{"s": {"status": "done"}}', ", ended_at", ", now()"),),
    ),
    Forbidden("order_svc", "heard_end_awaits_nothing", (progress("'COMPLETED'"),)),
    Forbidden(
        "order_svc",
        "heard_end_awaits_nothing",
        (progress("'COMPLETED'", "{}", ", ended_at, next_deadline", ", now(), now()"),),
    ),
    # Payment.
    Forbidden("payment_svc", "account_of_a_customer", (account("shop:revenue"),)),
    Forbidden("payment_svc", "card_known", (account(card="gold"),)),
    Forbidden(
        "payment_svc", "balance_not_negative", (account(), "update account set balance = -1")
    ),
    Forbidden("payment_svc", "account_pk", (account(), account())),
    Forbidden(
        "payment_svc",
        "transfer_pk",
        (transfer(), transfer(saga_id=OTHER)),
    ),
    Forbidden("payment_svc", "transfer_kind_known", (transfer(kind="GIFT"),)),
    Forbidden("payment_svc", "amount_not_negative", (transfer(amount="-1"),)),
    Forbidden("payment_svc", "two_sides", (transfer(sides="'ada', 'ada'"),)),
    Forbidden("payment_svc", "refund_names_its_charge", (transfer(refund_of=SAGA),)),
    Forbidden("payment_svc", "refund_names_its_charge", (transfer(kind="REFUND"),)),
    Forbidden("payment_svc", "refund_of_a_transfer", (refund(OTHER, "charge_payment"),)),
    Forbidden(
        "payment_svc",
        "effect_once",
        (transfer(kind="DEPOSIT"), transfer(OTHER, kind="DEPOSIT")),
    ),
    Forbidden(
        "payment_svc", "one_charge_per_saga", (transfer(), transfer(OTHER, step="charge_again"))
    ),
    Forbidden(
        "payment_svc",
        "one_refund_per_charge",
        (
            transfer(),
            refund(OTHER, "charge_payment"),
            refund("'00000000-0000-0000-0000-000000000003'", "return_order"),
        ),
    ),
    # Inventory.
    Forbidden("inventory_svc", "stock_pk", (stock("1", "0", "0", "1"), stock("1", "0", "0", "1"))),
    Forbidden("inventory_svc", "on_hand_not_negative", (stock("-1", "1", "0", "0"),)),
    Forbidden("inventory_svc", "held_not_negative", (stock("1", "-1", "0", "0"),)),
    Forbidden("inventory_svc", "dispatched_not_negative", (stock("1", "0", "-1", "0"),)),
    Forbidden("inventory_svc", "stock_conserved", (stock("1", "1", "1", "4"),)),
    Forbidden("inventory_svc", "delivery_once", (DELIVERY, DELIVERY)),
    Forbidden("inventory_svc", "delivery_positive", (DELIVERY, "update delivery set quantity = 0")),
    Forbidden("inventory_svc", "reservation_status_known", (reservation("LOST"),)),
    Forbidden("inventory_svc", "reservation_once", (reservation(), reservation())),
    Forbidden(
        "inventory_svc",
        "one_reservation_per_saga",
        (reservation(), reservation(step="reserve_again")),
    ),
]


class NobodyObjected(Exception):
    pass


async def attempt(db: Database, plant: Forbidden) -> None:
    *before, last = plant.statements
    async with db.transaction(None) as tx:
        for statement in before:
            tx.queue_write(statement)
            await tx.sync()  # these are well
        await tx.fetch(last + " returning 1")
        raise NobodyObjected


async def objection(db: Database, plant: Forbidden) -> str:
    try:
        await attempt(db, plant)
    except ConstraintViolated as violated:
        return violated.constraint
    except NobodyObjected:
        return "nobody objected"
    raise AssertionError("attempt() always raises")


@pytest.mark.parametrize("schema", SERVICES)
async def test_rule_2_every_constraint_is_reported_by_its_name(
    settings: MakeSettings, schema: str
) -> None:
    plants = [plant for plant in PLANTS if plant.schema == schema]
    async with Database(settings(schema)) as db:
        heard = [(plant, await objection(db, plant)) for plant in plants]
    assert heard
    assert [(plant, said) for plant, said in heard if said != plant.constraint] == []


def test_no_constraint_is_left_without_a_violation_planted(admin: Rows) -> None:
    """Every new constraint comes with a row that it must refuse."""
    named = admin.execute(
        "select n.nspname, c.conname from pg_constraint c"
        "  join pg_class r on r.oid = c.conrelid join pg_namespace n on n.oid = r.relnamespace"
        " where n.nspname = any(%(schemas)s) and r.relname <> 'schema_migration'"
        "   and c.contype in ('c', 'p', 'u', 'f', 'x')"
        " union "
        "select n.nspname, i.relname from pg_index x join pg_class i on i.oid = x.indexrelid"
        "  join pg_class r on r.oid = x.indrelid join pg_namespace n on n.oid = r.relnamespace"
        " where n.nspname = any(%(schemas)s) and r.relname <> 'schema_migration'"
        "   and x.indisunique",
        {"schemas": list(SERVICES)},
    ).fetchall()
    assert {(plant.schema, plant.constraint) for plant in PLANTS} == set(named)
