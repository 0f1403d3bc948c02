"""The judge's own SQL against real tables: a clean database passes, planted violations do not.

Constraints that forbid a violation are dropped first: the judge must not lean on them.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest

from chaos.judge.case import Accepted, Case, Facts, Line
from chaos.judge.invariants import INVARIANTS
from chaos.judge.quiescence import what_remains
from chaos.judge.snapshot import take_snapshot
from chaos.judge.verdict import Verdict, judge, name_of
from chaos.runtime.bootstrap import JUDGE
from tests.integration.conftest import PASSWORD
from tests.servers import Servers

pytestmark = pytest.mark.integration

Sql = psycopg.Connection[tuple[object, ...]]

GOOD, BAD, UNKNOWN, BACK, RETURN = (UUID(int=n) for n in range(1, 6))
LINES = '[{"sku": "tea", "quantity": 2, "price": 300}]'
PIECES = '[{"sku": "tea", "quantity": 2}]'

CLEAN = f"""
insert into order_svc.product values ('tea', 300, 'EUR');
insert into order_svc.customer_order
  (order_id, customer, idempotency_key, currency, lines, total, status, reason, settled_at)
values ('{GOOD}', 'ann', 'good', 'EUR', '{LINES}', 600, 'CONFIRMED', null, now()),
       ('{BAD}', 'ann', 'bad', 'EUR', '{LINES}', 600, 'REJECTED', 'timed_out', now());
insert into order_svc.customer_order
  (order_id, customer, idempotency_key, currency, lines, total, status, settled_at, return_id)
values ('{BACK}', 'ann', 'back', 'EUR', '{LINES}', 600, 'RETURNED', now(), '{RETURN}');
insert into order_svc.order_return (return_id, order_id, idempotency_key, status, settled_at)
values ('{RETURN}', '{BACK}', 'return', 'FINISHED', now());
insert into inventory_svc.stock values ('tea', 8, 0, 2, 10);
insert into inventory_svc.delivery (saga_id, step, sku, quantity)
  values (gen_random_uuid(), 'receive_stock', 'tea', 10);
insert into inventory_svc.reservation (saga_id, step, status, lines)
values ('{GOOD}', 'reserve_stock', 'DISPATCHED', '{PIECES}'),
       ('{BAD}', 'reserve_stock', 'RELEASED', '{PIECES}'),
       ('{BACK}', 'reserve_stock', 'RETURNED', '{PIECES}');
insert into payment_svc.account values ('ann', 'EUR', 'good', 4400);
insert into payment_svc.transfer
  (transfer_id, kind, saga_id, step, debit, credit, amount, currency, refund_of)
values (gen_random_uuid(), 'DEPOSIT', gen_random_uuid(), 'deposit',
        'world:deposits', 'ann', 5000, 'EUR', null),
       ('{GOOD}', 'CHARGE', '{GOOD}', 'charge_payment', 'ann', 'shop:revenue', 600, 'EUR', null),
       ('{BAD}', 'CHARGE', '{BAD}', 'charge_payment', 'ann', 'shop:revenue', 600, 'EUR', null),
       (gen_random_uuid(), 'REFUND', '{BAD}', 'charge_payment',
        'shop:revenue', 'ann', 600, 'EUR', '{BAD}'),
       ('{BACK}', 'CHARGE', '{BACK}', 'charge_payment', 'ann', 'shop:revenue', 600, 'EUR', null),
       (gen_random_uuid(), 'REFUND', '{RETURN}', 'refund_order',
        'shop:revenue', 'ann', 600, 'EUR', '{BACK}');
insert into orchestrator.saga_instance
  (saga_id, definition, version, state, data, steps, pivot_passed, ended_at)
values ('{GOOD}', 'order', 1, 'COMPLETED', '{{}}',
        '{{"create_order": {{"status": "done"}}, "confirm_order": {{"status": "done"}}}}',
        true, now()),
       ('{BAD}', 'order', 1, 'COMPENSATED', '{{}}',
        '{{"create_order": {{"status": "undone"}}, "charge_payment": {{"status": "undone"}}}}',
        false, now()),
       ('{BACK}', 'order', 1, 'COMPLETED', '{{}}',
        '{{"create_order": {{"status": "done"}}}}', true, now()),
       ('{RETURN}', 'return', 1, 'COMPLETED', '{{}}',
        '{{"open_return": {{"status": "done"}}}}', true, now());
"""
FACTS = Facts(
    prices={"tea": 300},
    received={"tea": 10},
    deposited={("ann", "EUR"): 5000},
    accepted={
        order_id: Accepted(order_id, "ann", key, "EUR", (Line("tea", 2),), 600)
        for order_id, key in ((GOOD, "good"), (BAD, "bad"), (BACK, "back"))
    },
    refused=frozenset(),
    unknown=frozenset(),
    returns=frozenset({RETURN}),
    returns_asked=frozenset({(BACK, "return")}),
)

COPY_ORDER = f"""
alter table order_svc.customer_order drop constraint order_once, drop constraint order_key_once;
insert into order_svc.customer_order select * from order_svc.customer_order
  where order_id = '{GOOD}';"""
SECOND_CHARGE = f"""
drop index payment_svc.one_charge_per_saga;
insert into payment_svc.transfer
  (transfer_id, kind, saga_id, step, debit, credit, amount, currency)
values (gen_random_uuid(), 'CHARGE', '{GOOD}', 'again', 'ann', 'shop:revenue', 600, 'EUR');"""

# What is planted for each invariant.
PLANTED = {
    "confirmed is charged once": f"delete from payment_svc.transfer where saga_id = '{GOOD}'",
    "confirmed is dispatched once": f"""
        update inventory_svc.reservation set status = 'RELEASED' where saga_id = '{GOOD}'""",
    "returned is refunded and restocked once": f"""
        delete from payment_svc.transfer where saga_id = '{RETURN}'""",
    "every return has its saga": f"""
        delete from orchestrator.saga_instance where saga_id = '{RETURN}'""",
    "rejected costs nothing": "delete from payment_svc.transfer where kind = 'REFUND'",
    "rejected keeps no stock": f"""
        update inventory_svc.reservation set status = 'HELD' where saga_id = '{BAD}'""",
    "rejected says why": """
        alter table order_svc.customer_order drop constraint rejected_has_a_reason;
        update order_svc.customer_order set reason = null""",
    "totals are exact": "update order_svc.customer_order set total = 599",
    "accepted stands as asked": "update order_svc.customer_order set customer = 'bob'",
    "one charge per order": SECOND_CHARGE,
    "refunds match their charge": """
        update payment_svc.transfer set amount = 500 where kind = 'REFUND'""",
    "ledger is balanced": "update payment_svc.account set balance = 4401",
    "accounts match the ledger": "update payment_svc.account set balance = 4399",
    "stock is conserved": """
        alter table inventory_svc.stock drop constraint stock_conserved;
        update inventory_svc.stock set on_hand = 7""",
    "stock matches reservations": """
        update inventory_svc.stock set held = 1, on_hand = 7""",
    "compensated is settled": f"""
        alter table orchestrator.saga_instance
          drop constraint compensated_means_every_step_settled;
        update orchestrator.saga_instance
          set steps = '{{"charge_payment": {{"status": "undoing"}}}}' where saga_id = '{BAD}'""",
    "completed is done": f"""
        alter table orchestrator.saga_instance drop constraint completed_means_every_step_done;
        update orchestrator.saga_instance
          set steps = '{{"confirm_order": {{"status": "sent"}}}}' where saga_id = '{GOOD}'""",
    "parked holds its stock and no money": f"""
        update order_svc.customer_order set status = 'PENDING' where order_id = '{GOOD}';
        update orchestrator.saga_instance set state = 'WAITING', pivot_passed = false,
          ended_at = null, next_deadline = 'infinity',
          steps = '{{"approve_order": {{"status": "waiting"}}}}' where saga_id = '{GOOD}'""",
    "every saga has its order": f"""
        update orchestrator.saga_instance set saga_id = '{UNKNOWN}' where saga_id = '{BAD}'""",
    "nothing is duplicated": COPY_ORDER,
    "nothing is unexpected": f"""
        update payment_svc.transfer set saga_id = '{UNKNOWN}' where saga_id = '{GOOD}'""",
    "inboxes hold no claim": f"""
        insert into payment_svc.inbox (saga_id, step, direction)
          values ('{GOOD}', 'charge_payment', 'forward')""",
    "dead letters are explained": """
        insert into orchestrator.dead_letter (letter_id, queue, reason, reply, body, size, readable,
                                              headers, set_aside, count)
          values (gen_random_uuid(), 'payment.commands', 'not_json', false, '\\xff00', 2, false,
                  '{}', 'once', 1)""",
    "nothing is lost": f"""
        update order_svc.customer_order set status = 'PENDING' where order_id = '{GOOD}'""",
    "every order has its saga": f"delete from orchestrator.saga_instance where saga_id = '{BAD}'",
    "outboxes are empty": """
        insert into inventory_svc.outbox (destination, envelope) values ('order.commands', '{}')""",
}


@pytest.fixture
def verdict_on(servers: Servers, database: str) -> Callable[[str], Verdict]:
    """Judge one invariant on the database as it is now."""
    dsn = servers.dsn(database, JUDGE, PASSWORD)

    def look(name: str) -> Verdict:
        findings = judge(Case(take_snapshot(dsn), FACTS))
        return next(finding.verdict for finding in findings if finding.invariant == name)

    return look


def plant(admin: Sql, statements: str) -> None:
    admin.execute(statements.encode())


@pytest.mark.parametrize("name", PLANTED)
def test_a_violation_planted_in_the_tables_is_caught(
    admin: Sql, verdict_on: Callable[[str], Verdict], name: str
) -> None:
    plant(admin, CLEAN)
    assert verdict_on(name) is Verdict.PASS
    plant(admin, PLANTED[name])
    assert verdict_on(name) is Verdict.FAIL


def test_every_invariant_over_tables_has_a_violation_here() -> None:
    assert {name_of(check) for check in INVARIANTS} == set(PLANTED)


def test_the_judge_cannot_write(servers: Servers, database: str) -> None:
    with (
        psycopg.connect(servers.dsn(database, JUDGE, PASSWORD)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("delete from order_svc.customer_order")


def test_what_is_not_at_rest_is_named(servers: Servers, database: str, admin: Sql) -> None:
    plant(admin, CLEAN)
    dsn = servers.dsn(database, JUDGE, PASSWORD)

    def queues(*_: str) -> str:
        return '{"value": [["payment.commands", 0, 2], ["payment.commands.dead", 1, 0]]}'

    assert what_remains(dsn, queues).lines() == [
        "queue payment.commands: 0 ready, 2 unacked",
        "queue payment.commands.dead: 1 ready, 0 unacked",  # not taken in yet
    ]
    plant(
        admin,
        f"""
        update order_svc.customer_order set status = 'PENDING' where order_id = '{GOOD}';
        update orchestrator.saga_instance set state = 'RUNNING', pivot_passed = false,
          ended_at = null, steps = '{{"charge_payment": {{"status": "sent"}}}}'
          where saga_id = '{GOOD}';
        insert into payment_svc.outbox (destination, envelope) values ('order.commands', '{{}}');
        """,
    )
    assert what_remains(dsn, queues).lines() == [
        "outbox of payment_svc: 1 messages",
        "1 orders PENDING",
        f"saga {GOOD} RUNNING, awaits charge_payment (sent)",
    ]
    plant(
        admin,
        f"""
        delete from payment_svc.outbox;
        update orchestrator.saga_instance set state = 'WAITING', next_deadline = now(),
          steps = '{{"approve_order": {{"status": "waiting"}}}}' where saga_id = '{GOOD}'""",
    )
    assert what_remains(dsn, queues).lines() == [
        "1 orders PENDING",
        f"saga {GOOD} WAITING, awaits approve_order (waiting)",
    ]
    plant(
        admin,
        "update orchestrator.saga_instance set next_deadline = 'infinity'"
        f" where saga_id = '{GOOD}'",
    )
    # SagaStarted has not arrived: the order service will repeat StartSaga.
    assert what_remains(dsn, queues).lines() == ["1 orders PENDING"]
    plant(admin, f"update order_svc.customer_order set saga_known = true where order_id = '{GOOD}'")
    parked = what_remains(dsn, queues)  # is at rest: only the queues are left
    assert parked.lines() == [
        "queue payment.commands: 0 ready, 2 unacked",
        "queue payment.commands.dead: 1 ready, 0 unacked",
    ]
    (problem,) = what_remains(dsn.replace(database, "no_such"), queues).lines()
    assert problem.startswith("cannot be counted")
