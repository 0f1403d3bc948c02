"""The gate against a real Postgres: which sagas are parked, and that one decision counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any, LiteralString

import pytest

from common.kit.health import Health
from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.inventory import StockDispatched, StockReleased
from common.messages.shop.order import OrderConfirmed, OrderRejected
from common.messages.shop.payment import PaymentCharged
from common.storage.db import Database, Params, QueuedQuery, Tx
from orchestrator import __main__ as root
from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.instance import Instance
from orchestrator.runtime import store
from orchestrator.runtime.service import Service
from orchestrator.runtime.timeouts import Reconciler
from orchestrator.sagas.order import ORDER_SAGA, ORDER_SAGA_V1
from tests.integration.conftest import MakeSettings
from tests.integration.mail import mail, saga
from tests.integration.orchestrating import (
    CHARGED,
    COMPENSATING,
    PATIENT,
    RESERVED,
    ROLE,
    commands,
    give,
    give_each,
    logged,
    make_overdue,
    reply,
    service,
    start,
    state,
)
from tests.integration.waiting import FAST, Rows, eventually, running, wired

GATE = "approve_order"
LOW = {"EUR": 700}  # which every order of these tests reaches

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


async def park(service: Service, *numbers: int) -> None:
    await give(service, *(start(n) for n in numbers))
    await give(service, *(reply(n, "reserve_stock", RESERVED) for n in numbers))


async def approve(service: Service, number: int = 1, actor: str = "ada") -> Instance:
    return await service.decide_gate(saga(number), approved=True, actor=actor, reason="known")


async def reject(service: Service, number: int = 1, actor: str = "bob") -> Instance:
    return await service.decide_gate(saga(number), approved=False, actor=actor, reason="odd")


def watch(admin: Rows, customer: str = "ada") -> None:
    admin.execute(
        "insert into orchestrator.watched_customer (customer, actor, reason)"
        " values (%s, 'ops', 'chargebacks')",
        (customer,),
    )


def why(judge: Rows) -> list[object]:
    rows = judge.execute("select detail from orchestrator.saga_log where entry = 'parked'")
    return [detail for (detail,) in rows]


# --- when policy asks  ----------------------------------------------------------------------


async def test_by_default_no_approval_is_needed(db: Database, judge: Rows) -> None:
    await park(service(db), 1)
    assert commands(judge) == ["reserve_stock>1", "charge_payment>1"]
    assert state(judge) == ("RUNNING", None)


@pytest.mark.parametrize(("threshold", "parked"), [(699, True), (700, True), (701, False)])
async def test_a_total_at_or_above_its_currencys_threshold_asks(
    db: Database, judge: Rows, threshold: int, parked: bool
) -> None:
    await park(service(db, thresholds={"USD": 1, "EUR": threshold}), 1)
    assert state(judge) == ("WAITING" if parked else "RUNNING", None)
    assert why(judge) == ([f"total 700 EUR reaches {threshold}"] if parked else [])


async def test_a_customer_on_the_watch_list_asks(db: Database, judge: Rows, admin: Rows) -> None:
    watch(admin, "bob")
    await park(service(db), 1)
    watch(admin)
    await park(service(db), 2)
    assert (state(judge, 1), state(judge, 2)) == (("RUNNING", None), ("WAITING", None))
    assert why(judge) == ["customer ada is watched: chargebacks"]


async def test_a_definition_may_ask_by_itself(db: Database, judge: Rows) -> None:
    def much_tea(data: object) -> str | None:
        return "so much tea" if "tea" in str(data) else None

    steps = (
        replace(step, asks=much_tea) if step.kind is Kind.GATE else step
        for step in ORDER_SAGA.steps
    )
    asking = Definition("order", 3, tuple(steps))
    await park(service(db, definitions=[ORDER_SAGA_V1, ORDER_SAGA, asking]), 1)
    assert why(judge) == ["so much tea"]


# --- parked --------------------------------------------------------------------------------


async def test_a_parked_saga_is_a_row_with_a_deadline_and_nothing_else(
    db: Database, judge: Rows
) -> None:
    await park(service(db, thresholds=LOW), 1)
    assert state(judge) == ("WAITING", None)
    assert commands(judge) == ["reserve_stock>1"]
    assert logged(judge) == ["started", "sent", "done", "parked"]
    ((seconds,),) = judge.execute(
        "select extract(epoch from next_deadline - now())::float8 from orchestrator.saga_instance"
    ).fetchall()
    assert seconds == pytest.approx(7 * 24 * 3600, abs=60)


async def test_it_goes_on_when_a_person_approves(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds=LOW)
    await park(gated, 1)
    assert (await approve(gated)).state == "RUNNING"
    await give_each(
        gated,
        reply(1, "charge_payment", CHARGED),
        reply(1, "dispatch_stock", StockDispatched()),
        reply(1, "confirm_order", OrderConfirmed()),
    )
    assert state(judge) == ("COMPLETED", None)


async def test_it_is_undone_when_a_person_rejects(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds=LOW)
    await park(gated, 1)
    await reject(gated)
    await give_each(
        gated,
        reply(1, "reserve_stock", StockReleased(), COMPENSATING),
        reply(1, "create_order", OrderRejected(), COMPENSATING),
    )
    assert state(judge) == ("COMPENSATED", "rejected")
    assert commands(judge) == ["reserve_stock>1", "reserve_stock<1", "create_order<1"]


async def test_the_reconciler_finds_what_has_expired(
    db: Database, judge: Rows, admin: Rows, settings: MakeSettings
) -> None:
    gated = service(db, replace(PATIENT, approval_expiry_seconds=600), thresholds=LOW)
    await park(gated, 1, 2)
    reconciler = Reconciler(db, gated, lambda: True, settings(ROLE), Health(), asyncio.Event())
    assert await reconciler.run_once() == 0
    make_overdue(admin, GATE)
    assert await reconciler.run_once() == 1
    assert state(judge) == ("COMPENSATING", "expired")
    assert state(judge, 2) == ("WAITING", None)
    assert logged(judge)[-3:] == ["expired", "turned", "sent"]


async def test_compensation_asked_while_it_is_parked_undoes_it(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds=LOW)
    await park(gated, 1)
    await gated.compensate(saga(1), "ops", "cancelled")
    assert state(judge) == ("COMPENSATING", "cancelled")
    with pytest.raises(IllegalTransition):
        await approve(gated)


# --- one decision --------------------------------------------------------------------------


async def test_of_several_gate_decisions_at_once_one_counts(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds=LOW)
    for number in range(1, 11):
        await park(gated, number)
        said = await asyncio.gather(
            *(approve(gated, number, f"a{n}") for n in range(3)),
            *(reject(gated, number, f"r{n}") for n in range(3)),
            return_exceptions=True,
        )
        refused = [answer for answer in said if isinstance(answer, IllegalTransition)]
        assert len(refused) == 5
        assert sum(entry in ("approved", "rejected") for entry in logged(judge, number)) == 1


async def test_an_expiry_and_an_approval_at_once_have_one_outcome(
    db: Database, judge: Rows, admin: Rows
) -> None:
    gated = service(db, thresholds=LOW)
    for number in range(1, 11):
        await park(gated, number)
        make_overdue(admin, GATE, number)
        said, passed = await asyncio.gather(
            approve(gated, number), gated.time_out([saga(number)]), return_exceptions=True
        )
        entries = [e for e in logged(judge, number) if e in ("approved", "expired")]
        assert entries == ["approved" if isinstance(said, Instance) else "expired"]
        assert passed == (0 if isinstance(said, Instance) else 1)
        assert (
            state(judge, number)[0]
            == {"approved": "RUNNING", "expired": "COMPENSATING"}[entries[0]]
        )


async def test_a_gate_decision_where_nothing_waits_is_illegal(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds=LOW)
    await park(service(db), 1)
    with pytest.raises(IllegalTransition, match="waits at no gate"):
        await approve(gated)
    with pytest.raises((IllegalTransition, Poison)):
        await approve(gated, 99)
    await park(gated, 2)
    with pytest.raises(IllegalTransition, match="never sent"):
        await gated.decide_gate(
            saga(2), approved=True, actor="ada", reason="x", gate="charge_payment"
        )
    assert state(judge, 2) == ("WAITING", None)


# --- what it costs -------------------------------------------------------------------------


async def test_what_is_parked_does_not_count_against_the_running_limit(db: Database) -> None:
    await park(service(db, thresholds=LOW), 1, 2, 3)
    await park(service(db), 4)
    async with db.transaction(None) as tx:
        assert await store.count_running(tx) == 1


MANY = 10_000
LOOPS = 10  # of the reconciler


def park_many(admin: Rows) -> None:
    """Insert many parked instances, as the engine writes them."""
    admin.execute(
        """
        insert into orchestrator.saga_instance
          (saga_id, definition, version, data, state, steps, next_deadline, started_at)
        select gen_random_uuid(), 'order', 2, '{"customer": "ada", "total": 700}', 'WAITING',
               '{"approve_order": {"status": "waiting", "attempt": 0, "undo_attempt": 0}}',
               now() + interval '7 days', now() - n * interval '1 second'
          from generate_series(1, %s) as n""",
        (MANY,),
    )


async def test_what_is_parked_costs_no_work(
    settings: MakeSettings, admin: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle orchestrator runs the same queries with ten thousand parked sagas as with none.

    None of them reads the parked ones, from its start on.
    """
    quiet, _ = await idle_span(settings, monkeypatch)
    park_many(admin)
    busy, ever = await idle_span(settings, monkeypatch)
    assert busy == quiet
    assert len(ever) > len(quiet)  # with the count of what runs, which is asked for once
    admin.execute("set search_path = orchestrator; set enable_seqscan = off")
    for statement, params in ever.items():
        explain = "explain (analyze, buffers, format json) " + statement
        ((plan,),) = admin.execute(explain.encode(), params).fetchall()
        read: Any = plan
        blocks = read[0]["Plan"]["Shared Hit Blocks"] + read[0]["Plan"]["Shared Read Blocks"]
        assert blocks < 20, statement


async def idle_span(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, int], dict[str, Params]]:
    """Count the queries about instances in some loops of an orchestrator's reconciler.

    Returns the counts, and every query it ever ran with its parameters.
    """
    asked: Counter[str] = Counter()
    ever: dict[str, Params] = {}
    original = Tx.queue_query

    def counting(self: Tx, sql: LiteralString, params: Params = ()) -> QueuedQuery:
        if "saga_instance" in sql and max(asked.values(), default=0) < LOOPS:
            asked[sql] += 1
            ever[sql] = params
        return original(self, sql, params)

    made = settings(ROLE, **FAST)
    with monkeypatch.context() as patch:
        patch.setattr(Tx, "queue_query", counting)
        process = await wired(patch, root.worker, made)
        async with mail(made), running(process):
            await eventually(lambda: process.health.ready and len(ever) > 1)
            asked.clear()
            await eventually(lambda: max(asked.values(), default=0) == LOOPS)
    return dict(asked), ever


# --- versions ------------------------------------------------------------------------------


async def test_a_saga_that_began_without_a_gate_finishes_without_one(
    db: Database, judge: Rows
) -> None:
    await give(service(db, definitions=[ORDER_SAGA_V1]), start(1))
    gated = service(db, thresholds=LOW)
    await give_each(
        gated,
        reply(1, "reserve_stock", RESERVED),
        reply(1, "charge_payment", PaymentCharged(charge_id=saga(9))),
        reply(1, "dispatch_stock", StockDispatched()),
        reply(1, "confirm_order", OrderConfirmed()),
    )
    assert state(judge) == ("COMPLETED", None)
    await park(gated, 2)
    assert state(judge, 2) == ("WAITING", None)
