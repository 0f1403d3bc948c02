"""The audit over real schemas and a real broker: every kind of drift, planted and found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from common.messages.contracts import Effect, Effects, EffectsQuery, TouchedPage, TouchedQuery
from common.messages.envelope import Query
from common.messages.errors import NoAnswer
from common.messages.topology import queries_of
from common.process.process import Process
from common.storage.db import Database
from common.transport.query import Asker
from inventory_svc.store import InventoryStore
from orchestrator.operator.audit import Discrepancy, Drift
from orchestrator.operator.auditor import Auditor, Window
from orchestrator.operator.queries import Queries
from order_svc.door import queries
from payment_svc.store import PaymentStore
from tests.integration.conftest import MakeSettings
from tests.integration.waiting import Rows, eventually, running
from tests.servers import Servers
from tests.support.history import write_history, write_returns

ORDERS = 400
# The first of each kind in the history: confirmed, refused, undone, undone after the charge.
CONFIRMED, REFUSED, UNHELD, REFUNDED = 1, 7, 8, 9
TAKEN_BACK, RETURNED = 4, 5  # its return was undone; or done
RETURNS = ORDERS // 5
STORES: dict[str, Any] = {
    "order": queries, "payment": PaymentStore(), "inventory": InventoryStore(),
}  # fmt: skip


class Plant(NamedTuple):
    """Something planted, and the drift that must be found."""

    number: int
    statement: str
    found: set[tuple[str, Drift]]


PLANTS = {
    "orphan charge": Plant(
        CONFIRMED,
        "delete from orchestrator.saga_instance where saga_id = %(id)s;"
        "delete from order_svc.customer_order where order_id = %(id)s;"
        "delete from inventory_svc.reservation where saga_id = %(id)s",
        {("charge_payment", Drift.ORPHAN_CHARGE)},
    ),
    "leaked hold of a compensated saga": Plant(
        UNHELD,
        "update inventory_svc.reservation set status = 'HELD', settled_at = null"
        " where saga_id = %(id)s",
        {("reserve_stock", Drift.LEAKED_HOLD)},
    ),
    "leaked hold of a completed saga": Plant(
        CONFIRMED,
        "update inventory_svc.reservation set status = 'HELD', settled_at = null"
        " where saga_id = %(id)s",
        {("reserve_stock", Drift.LEAKED_HOLD)},
    ),
    "missing refund": Plant(
        REFUNDED,
        "delete from payment_svc.transfer where saga_id = %(id)s and kind = 'REFUND'",
        {("charge_payment", Drift.MISSING_REFUND)},
    ),
    "pending without saga": Plant(
        REFUSED,
        "delete from orchestrator.saga_instance where saga_id = %(id)s;"
        "update order_svc.customer_order set status = 'PENDING', reason = null, settled_at = null"
        " where order_id = %(id)s",
        {("create_order", Drift.PENDING_WITHOUT_SAGA)},
    ),
    "effect without instance": Plant(
        UNHELD,
        "delete from orchestrator.saga_instance where saga_id = %(id)s",
        {
            ("create_order", Drift.EFFECT_WITHOUT_INSTANCE),
            ("reserve_stock", Drift.EFFECT_WITHOUT_INSTANCE),
        },
    ),
    "charge missing": Plant(
        CONFIRMED,
        "delete from payment_svc.transfer where saga_id = %(id)s",
        {("charge_payment", Drift.EFFECT_MISSING)},
    ),
    "order missing": Plant(
        CONFIRMED,
        "delete from order_svc.customer_order where order_id = %(id)s",
        {("create_order", Drift.EFFECT_MISSING)},
    ),
    "refund without return": Plant(
        RETURNED,
        "delete from orchestrator.saga_instance where saga_id = %(return)s;"
        "update order_svc.customer_order set status = 'CONFIRMED', return_id = null"
        " where order_id = %(id)s;"
        "delete from order_svc.order_return where return_id = %(return)s;"
        "update inventory_svc.reservation set status = 'DISPATCHED' where saga_id = %(id)s",
        {("refund_order", Drift.REFUND_WITHOUT_RETURN)},
    ),
    "refund of a return that was undone": Plant(
        TAKEN_BACK,
        "insert into payment_svc.transfer (transfer_id, kind, saga_id, step, debit, credit, amount,"
        " currency, refund_of) select gen_random_uuid(), 'REFUND', %(return)s, 'refund_order',"
        " credit, debit, amount, currency, transfer_id from payment_svc.transfer"
        " where saga_id = %(id)s",
        {("refund_order", Drift.REFUND_WITHOUT_RETURN)},
    ),
    "restock without return": Plant(
        CONFIRMED,
        "update inventory_svc.reservation set status = 'RETURNED' where saga_id = %(id)s",
        {("reserve_stock", Drift.RESTOCK_WITHOUT_RETURN)},
    ),
    "return without refund": Plant(
        RETURNED,
        "delete from payment_svc.transfer where saga_id = %(return)s",
        {("refund_order", Drift.RETURN_WITHOUT_REFUND)},
    ),
    "return without restock": Plant(
        RETURNED,
        "update inventory_svc.reservation set status = 'DISPATCHED' where saga_id = %(id)s",
        {("restock", Drift.RETURN_WITHOUT_RESTOCK)},
    ),
    "return pending, its saga gone": Plant(
        TAKEN_BACK,
        "delete from orchestrator.saga_instance where saga_id = %(return)s;"
        "update order_svc.order_return set status = 'OPEN', reason = null, settled_at = null"
        " where return_id = %(return)s;"
        "update order_svc.customer_order set status = 'RETURN_PENDING', return_id = %(return)s"
        " where order_id = %(id)s",
        {("open_return", Drift.RETURN_PENDING_WITHOUT_SAGA)},
    ),
    "return pending, its saga ended": Plant(
        TAKEN_BACK,
        "update order_svc.order_return set status = 'OPEN', reason = null, settled_at = null"
        " where return_id = %(return)s;"
        "update order_svc.customer_order set status = 'RETURN_PENDING', return_id = %(return)s"
        " where order_id = %(id)s",
        {("open_return", Drift.RETURN_PENDING_WITHOUT_SAGA)},
    ),
    "return pending, by no return": Plant(
        CONFIRMED,
        "update order_svc.customer_order set status = 'RETURN_PENDING',"
        " return_id = gen_random_uuid() where order_id = %(id)s",
        {("create_order", Drift.RETURN_PENDING_WITHOUT_SAGA)},
    ),
    "finished, and the order is not returned": Plant(
        RETURNED,
        "update order_svc.customer_order set status = 'CONFIRMED', return_id = null"
        " where order_id = %(id)s",
        {
            ("open_return", Drift.WRONG_END),
            ("reserve_stock", Drift.RESTOCK_WITHOUT_RETURN),
        },
    ),
    "wrong end": Plant(
        REFUSED,
        "update order_svc.customer_order set status = 'CONFIRMED', reason = null"
        " where order_id = %(id)s",
        {("create_order", Drift.WRONG_END)},
    ),
}


RUNBOOK = Path(__file__).parents[3] / "docs" / "runbook.md"
OF_RETURNS = ("open_return", "refund_order", "restock")  # steps


def saga(judge: Rows, number: int, of: str = "saga") -> UUID:
    (row,) = judge.execute("select md5(%s || ' ' || %s)::uuid", (of, number)).fetchall()
    assert isinstance(row[0], UUID)
    return row[0]


@pytest.fixture
async def auditor(settings: MakeSettings) -> AsyncIterator[Auditor]:
    """Return the auditor of an operator's process that can query all three services."""
    async with AsyncExitStack() as stack:
        for service, store in STORES.items():
            role = f"{service}_svc"
            process = Process(settings(role, process=service, query_timeout_seconds=30))
            queue = queries_of(service)
            process.answer_from(queue, {TouchedQuery: store.touched, EffectsQuery: store.effects})
            await stack.enter_async_context(running(process, queue))
            await eventually(partial(answers, process, queue))
        ours = settings("orchestrator", query_timeout_seconds=30)
        process = Process(ours, "queries")
        asker = Asker(process.broker, ours, process.health, process.stop)
        process.add("queries", asker.run)
        await stack.enter_async_context(running(process, "queries"))
        await eventually(partial(answers, process, "queries"))
        yield auditor_of(process, asker)


def answers(process: Process, daemon: str) -> bool:
    return process.health.checks[daemon] is None


def auditor_of(process: Process, asker: Asker) -> Auditor:
    async def ask(service: str, query: Query, _: type[Any], /) -> Any:
        return await asker.ask(queries_of(service), query)

    return Auditor(Queries(process.db), ask, tuple(STORES))


async def audit(auditor: Auditor, window: Window) -> tuple[int, int, list[Discrepancy]]:
    """Run all pages; return compared, skipped and what was found."""
    compared = skipped = 0
    findings: list[Discrepancy] = []
    while True:
        page = await auditor.page(window)
        compared += page.compared.compared
        skipped += page.compared.skipped
        findings += page.compared.findings
        if page.looked_to is None:
            return compared, skipped, findings
        window = replace(window, after=page.looked_to)


async def test_a_clean_history_is_clean_with_pages_of_any_size(
    auditor: Auditor, servers: Servers, database: str
) -> None:
    write_history(servers.dsn(database), 1, ORDERS)
    write_returns(servers.dsn(database), 1, ORDERS)
    for limit in (1000, 37):
        assert await audit(auditor, Window(limit=limit)) == (ORDERS + RETURNS, 0, [])


async def test_each_kind_of_drift_is_found_and_nothing_else(
    auditor: Auditor, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    write_history(servers.dsn(database), 1, ORDERS)
    write_returns(servers.dsn(database), 1, ORDERS)
    planted = set()
    for index, plant in enumerate(PLANTS.values()):
        number = plant.number + 10 * index
        ident, its_return = saga(judge, number), saga(judge, number, "return")
        for statement in plant.statement.split(";"):
            admin.execute(statement.encode(), {"id": ident, "return": its_return})
        planted |= {
            (its_return if step in OF_RETURNS else ident, step, drift)
            for step, drift in plant.found
        }
    compared, skipped, findings = await audit(auditor, Window(limit=150))
    assert (compared, skipped) == (ORDERS + RETURNS, 0)
    assert {(f.saga_id, f.step, f.drift) for f in findings} == planted
    assert {f.drift for f in findings} == set(Drift)


@pytest.mark.parametrize("known_before", [True, False])
async def test_a_saga_that_ends_during_the_audit_is_not_reported(
    known_before: bool, settings: MakeSettings, servers: Servers, database: str, admin: Rows,
    judge: Rows,
) -> None:  # fmt: skip
    """The hold is seen, and released before its instance is read."""
    write_history(servers.dsn(database), UNHELD, UNHELD)
    ident = saga(judge, UNHELD)
    admin.execute(
        "update orchestrator.saga_instance set state = 'COMPENSATING', ended_at = null,"
        " saga_id = case when %s then saga_id else gen_random_uuid() end",
        (known_before,),
    )

    async def ask(service: str, query: Query, expected: type[Any], /) -> Any:
        if isinstance(query, TouchedQuery):
            return TouchedPage(saga_ids=(ident,), looked_to=None)
        admin.execute(
            "update orchestrator.saga_instance set saga_id = %s, state = 'COMPENSATED',"
            " ended_at = now()",
            (ident,),
        )
        held = Effect(saga_id=ident, step="reserve_stock", standing="HELD", at=datetime.now(UTC))
        return Effects(rows=(held,) if service == "inventory" else ())

    async with Database(settings("orchestrator")) as db:
        compared, skipped, findings = await audit(
            Auditor(Queries(db), ask, tuple(STORES)), Window()
        )
    assert (compared, skipped, findings) == (0, 1 if known_before else 2, [])


async def test_an_order_given_back_during_the_audit_is_not_reported(
    settings: MakeSettings, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    """The order was confirmed when it was read; its goods were back when they were read."""
    write_history(servers.dsn(database), CONFIRMED, CONFIRMED)
    ident, asked = saga(judge, CONFIRMED), []

    async def ask(service: str, query: Query, expected: type[Any], /) -> Any:
        if isinstance(query, TouchedQuery):
            return TouchedPage(saga_ids=(ident,), looked_to=None)
        asked.append(service)
        again = asked.count("order") > 1
        step, standing = {
            "order": ("create_order", "RETURNED" if again else "CONFIRMED"),
            "payment": ("charge_payment", "CHARGED"),
            "inventory": ("reserve_stock", "RETURNED"),
        }[service]
        return Effects(
            rows=(Effect(saga_id=ident, step=step, standing=standing, at=datetime.now(UTC)),)
        )

    async with Database(settings("orchestrator")) as db:
        assert await audit(Auditor(Queries(db), ask, tuple(STORES)), Window()) == (1, 0, [])
    assert sorted(asked) == ["inventory", "order", "order", "payment"]


async def test_a_return_just_opened_is_left_out(
    auditor: Auditor, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    write_history(servers.dsn(database), 1, 10)
    write_returns(servers.dsn(database), 1, 10)
    plant = PLANTS["return pending, its saga gone"]
    ids = {"id": saga(judge, TAKEN_BACK), "return": saga(judge, TAKEN_BACK, "return")}
    for statement in plant.statement.split(";"):
        admin.execute(statement.encode(), ids)
    _, _, findings = await audit(auditor, Window(grace_seconds=3700))
    assert findings == []
    _, _, findings = await audit(auditor, Window(grace_seconds=60))
    assert [f.drift for f in findings] == [Drift.RETURN_PENDING_WITHOUT_SAGA]


async def test_the_runbook_releases_the_lock_of_an_order(
    auditor: Auditor, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    write_history(servers.dsn(database), 1, 10)
    write_returns(servers.dsn(database), 1, 10)
    ids = {"id": saga(judge, TAKEN_BACK), "return": saga(judge, TAKEN_BACK, "return")}
    for statement in PLANTS["return pending, its saga ended"].statement.split(";"):
        admin.execute(statement.encode(), ids)
    (remedy,) = re.findall(r"```sql\n(.*order_return.*?)```", RUNBOOK.read_text(), re.DOTALL)
    assert len((await audit(auditor, Window()))[2]) == 1
    admin.execute(remedy.replace("RETURN'", f"{ids['return']}'").encode())
    assert await audit(auditor, Window()) == (12, 0, [])


async def test_sagas_under_way_and_orders_just_placed_are_left_out(
    auditor: Auditor, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    write_history(servers.dsn(database), 1, 20)
    admin.execute(
        "update orchestrator.saga_instance set state = 'RUNNING', ended_at = null,"
        " pivot_passed = false where saga_id = %s",
        (saga(judge, UNHELD),),
    )
    waits = saga(judge, REFUSED)
    admin.execute("delete from orchestrator.saga_instance where saga_id = %s", (waits,))
    admin.execute(
        "update order_svc.customer_order set status = 'PENDING', reason = null, settled_at = null"
        " where order_id = %s",
        (waits,),
    )
    assert await audit(auditor, Window(grace_seconds=3700)) == (19, 1, [])
    _, _, findings = await audit(auditor, Window(grace_seconds=60))
    assert [f.drift for f in findings] == [Drift.PENDING_WITHOUT_SAGA]


async def test_a_window_has_every_saga_that_was_open_in_it(
    auditor: Auditor, servers: Servers, database: str, admin: Rows, judge: Rows
) -> None:
    """A saga is compared with all its effects, also those outside the window.

    What is still held is in every window since.
    """
    write_history(servers.dsn(database), 1, 40)
    now = datetime.now(UTC)
    leaked, late = saga(judge, UNHELD), saga(judge, REFUNDED)
    admin.execute(
        "update inventory_svc.reservation set status = 'HELD', settled_at = null"
        " where saga_id = %s",
        (leaked,),
    )
    admin.execute(  # it took until today to be undone
        "update orchestrator.saga_instance set ended_at = now() where saga_id = %s", (late,)
    )
    compared, _, findings = await audit(auditor, Window(since=now - timedelta(minutes=30)))
    assert (compared, [f.saga_id for f in findings]) == (2, [leaked])
    earlier = Window(until=now - timedelta(hours=2))
    assert await audit(auditor, earlier) == (0, 0, [])
    hour = Window(since=now - timedelta(minutes=61), until=now - timedelta(minutes=30))
    compared, _, findings = await audit(auditor, hour)
    assert (compared, Counter(f.drift for f in findings)) == (40, {Drift.LEAKED_HOLD: 1})


async def test_a_service_that_does_not_answer_is_no_clean_audit(settings: MakeSettings) -> None:
    ours = settings("orchestrator", query_timeout_seconds=0.3)
    process = Process(ours, "queries")
    asker = Asker(process.broker, ours, process.health, process.stop)
    process.add("queries", asker.run)
    async with running(process, "queries"):
        await eventually(lambda: process.health.checks["queries"] is None)
        with pytest.raises(NoAnswer):
            await auditor_of(process, asker).page(Window())
