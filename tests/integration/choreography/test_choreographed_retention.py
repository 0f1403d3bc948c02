"""Tests of archiving and forgetting by the order service, without an orchestrator (rules 9, 18)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from common.kit.health import Health
from common.messages.envelope import Direction, Envelope, Fenced, Forget, Key, saga_id_for
from common.messages.errors import Poison
from common.messages.shop.inventory import ReceiveStock, Restocked, StockDispatched, StockReserved
from common.messages.shop.order import OrderAccepted
from common.messages.shop.values import Line
from common.participant.reactions import Listener
from common.participant.retention import Retention
from common.storage.db import Database
from inventory_svc.choreography import REACTIONS as INVENTORY
from order_svc.choreography.archive import archiving
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.integration.choreographing import Orders, deliver, event, orders, outgoing, status
from tests.integration.conftest import MakeSettings
from tests.integration.mail import NOON, command, saga
from tests.integration.services import (
    balance,
    consume,
    handle,
    inbox,
    inventory,
    open_account,
    payment,
    receive_stock,
    sent,
    stock,
    transfers,
)
from tests.integration.waiting import Rows, eventually, lock_waits

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")

ROLE = "order_svc"
LATER = NOON + timedelta(days=1)
ACCEPTED = Envelope.of_reply(
    Key(saga(1), "create_order", Direction.FORWARD),
    OrderAccepted(order_id=saga(1), customer="ada", currency="EUR",
                  lines=(Line(sku="tea", quantity=2),), total=8),
    issued_at=NOON,
)  # fmt: skip


def retention(shop: Orders, settings: MakeSettings, **overrides: Any) -> Retention:
    made = settings(ROLE, **{"retention_seconds": 0.001, **overrides})
    archive = archiving(made.retention_seconds)
    return Retention(shop.db, archive, made, Health(), asyncio.Event())


async def ends(shop: Orders, judge: Rows, order: UUID) -> None:
    await shop.receives(event(StockDispatched(), order))
    sent_events = {e.type: e for e in sent(judge, ROLE) if e.saga_id == order}
    await shop.receives(sent_events["OrderConfirmed"])


async def ended(shop: Orders, judge: Rows, key: str = "k") -> UUID:
    """Play an order until it is confirmed and its saga has ended."""
    order = await shop.place(key)
    await ends(shop, judge, order)
    return order


def archived(judge: Rows) -> set[object]:
    return {row[0] for row in judge.execute("select saga_id from order_svc.progress_archive")}


def forgets(judge: Rows) -> list[tuple[str, Forget]]:
    sent_events = zip(outgoing(judge, ROLE), sent(judge, ROLE), strict=True)
    return [(str(to), m) for to, e in sent_events if isinstance(m := e.message(), Forget)]


def began(judge: Rows, order: UUID) -> Any:
    query = "select placed_at from order_svc.customer_order where order_id = %s"
    return judge.execute(query, (order,)).fetchall()[0][0]


# --- what moves out ------------------------------------------------------------------------


async def test_ended_progress_is_archived_and_all_three_told_to_forget(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await ended(shop, judge)
        return_id, _ = await shop.give_back(order)
        await shop.receives(event(Restocked(), return_id, order_id=str(order)))
        await shop.receives(sent(judge, ROLE)[-1])
        async with shop.db.transaction(None) as tx:
            before = [await shop.store.view(tx, saga_id) for saga_id in (order, return_id)]
        assert await retention(shop, settings).run_once() == 2
        assert archived(judge) == {order, return_id}
        assert judge.execute("select from order_svc.saga_progress").rowcount == 0
        async with shop.db.transaction(None) as tx:
            after = [await shop.store.view(tx, saga_id) for saga_id in (order, return_id)]
        assert after == before
        assert [(v.found, v.definition, v.state) for v in after] == [
            (True, "order (choreographed)", "COMPLETED"),
            (True, "return (choreographed)", "COMPLETED"),
        ]
        sent_events = dict(forgets(judge))
        assert set(sent_events) == {"order.commands", "inventory.commands", "payment.commands"}
        for message in sent_events.values():
            assert set(message.saga_ids) == {order, return_id}
            assert message.until > began(judge, order)
        assert await retention(shop, settings).run_once() == 0


async def test_what_ended_lately_stays(settings: MakeSettings, judge: Rows) -> None:
    async with orders(settings) as shop:
        await ended(shop, judge)
        assert await retention(shop, settings, retention_seconds=60).run_once() == 0


async def test_batches_are_archived_oldest_first_and_only_once(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        placed = [await ended(shop, judge, f"key-{number}") for number in range(10)]
        one, other = (retention(shop, settings, retention_batch=3) for _ in range(2))
        assert await one.run_once() == 3
        assert archived(judge) == set(placed[:3])
        moved = await asyncio.gather(one.run_once(), other.run_once())
        assert sum(moved) <= 6
        while await one.run_once():
            pass
    assert archived(judge) == set(placed)
    forgotten = [ident for _, message in forgets(judge) for ident in message.saga_ids]
    assert len(forgotten) == 3 * 10  # each to three participants, once


async def test_rule_18_only_older_than_the_oldest_alive_is_archived(
    settings: MakeSettings, judge: Rows
) -> None:
    """Archive only what began before it: what began later may still have commands to run."""
    async with orders(settings) as shop:
        first = await ended(shop, judge, "first")
        oldest = await shop.place("oldest")
        later = await ended(shop, judge, "later")
        assert await retention(shop, settings).run_once() == 1
        assert archived(judge) == {first}
        [until] = {message.until for _, message in forgets(judge)}
        assert until < began(judge, oldest)
        await ends(shop, judge, oldest)
        assert await retention(shop, settings).run_once() == 2
    assert archived(judge) == {first, oldest, later}


async def test_rule_18_an_uncommitted_order_holds_back_archiving(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        async with Database(settings(ROLE)) as elsewhere, elsewhere.transaction(None) as tx:
            await tx.fetch("select 1")  # began; whatever order it places began then
            await ended(shop, judge)
            assert await retention(shop, settings).run_once() == 0
        assert await retention(shop, settings).run_once() == 1


# --- what comes after ----------------------------------------------------------------------


async def test_an_event_of_a_forgotten_order_has_a_reason_of_its_own(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await ended(shop, judge)
        await retention(shop, settings).run_once()
        before = len(sent(judge, ROLE))
        with pytest.raises(Poison, match="evidence_gone"):
            await shop.receives(event(StockDispatched(), order))
        with pytest.raises(Poison, match="unknown_saga"):
            await shop.receives(event(StockDispatched(), saga(77)))
        assert len(sent(judge, ROLE)) == before
    assert judge.execute("select from order_svc.saga_progress").rowcount == 0


async def test_an_event_that_waited_for_the_archive_sees_it(
    settings: MakeSettings, judge: Rows, admin: Rows, servers: Any, database: str
) -> None:
    async with orders(settings) as shop:
        order = await ended(shop, judge)
        with psycopg.connect(servers.dsn(database)) as moving:
            moving.execute("delete from order_svc.saga_progress")
            moving.execute(
                "insert into order_svc.progress_archive (saga_id, progress) values (%s, '{}')",
                (order,),
            )
            late = asyncio.create_task(shop.receives(event(StockDispatched(), order)))
            await eventually(lambda: lock_waits(admin, ROLE) == 1)
            moving.commit()
            with pytest.raises(Poison, match="evidence_gone"):
                await late


async def test_rule_9_a_forgotten_orders_key_starts_no_second_saga(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await ended(shop, judge)
        await retention(shop, settings).run_once()
        (_, forget), *_ = forgets(judge)
        key = Key(order, "forget", Direction.FORWARD)
        asked = Envelope.command(key, forget, issued_at=LATER, reply_to=None)
        await consume(shop.participant, asked)
        assert inbox(judge, ROLE, order) == {}
        assert await shop.place() == order == saga_id_for("ada", "k")
        sent_events = [e for e in sent(judge, ROLE) if e.type == "OrderAccepted"]
        assert len(sent_events) == 1
        assert status(judge, order) == ("CONFIRMED", None)
    assert judge.execute("select from order_svc.saga_progress").rowcount == 0


async def test_rule_18_every_event_is_as_old_as_its_saga(
    settings: MakeSettings, judge: Rows
) -> None:
    """Use one clock, that of the order service's database, and no participant's."""
    async with (
        Database(settings("inventory_svc")) as goods,
        Database(settings("payment_svc")) as pay,
    ):
        await receive_stock(goods, tea=9)
        await open_account(pay, "ada", 100)
        shelf, till = Listener(inventory(goods), INVENTORY), Listener(payment(pay), PAYMENT)
        await deliver(shelf, ACCEPTED)
        await deliver(till, sent(judge, "inventory_svc")[-1])
        await deliver(shelf, sent(judge, "payment_svc")[-1])
    sent_events = [sent(judge, schema)[-1] for schema in ("inventory_svc", "payment_svc")]
    assert [e.type for e in sent_events] == ["StockDispatched", "PaymentCharged"]
    assert {e.first_issued_at for e in sent_events} == {NOON}


async def test_rule_18_an_old_event_is_set_aside_and_leads_to_nothing(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        listener = Listener(payment(db), PAYMENT)
        old = [event(StockReserved(), saga(1)), event(Fenced(), saga(1), reason="x")]
        await deliver(listener, *old)
        message = Forget(until=NOON, saga_ids=(saga(1),))
        await consume(payment(db), command(message, saga(1), step="forget", reply_to=None))
        assert inbox(judge, "payment_svc", saga(1)) == {}
        for each in old:
            with pytest.raises(Poison, match="evidence_gone"):
                await deliver(listener, each)
        young = event(StockReserved(), saga(2)).model_copy(update={"first_issued_at": LATER})
        await deliver(listener, young)
    assert transfers(judge, saga(1)) == ["CHARGE", "REFUND"]
    assert (transfers(judge, saga(2)), balance(judge, "ada")) == (["CHARGE"], 92)


async def test_rule_18_a_forgotten_refused_reservation_holds_nothing(
    settings: MakeSettings, judge: Rows
) -> None:
    """A refusal leaves no row in the domain, so there is no second line of defence."""
    async with Database(settings("inventory_svc")) as db:
        listener = Listener(inventory(db), INVENTORY)
        await deliver(listener, ACCEPTED)
        message = Forget(until=NOON, saga_ids=(saga(1),))
        await consume(inventory(db), command(message, saga(1), step="forget", reply_to=None))
        more = command(ReceiveStock(sku="tea", quantity=9), saga(8000), reply_to=None)
        await handle(inventory(db), more.model_copy(update={"first_issued_at": LATER}))
        with pytest.raises(Poison, match="evidence_gone"):
            await deliver(listener, ACCEPTED)
    assert stock(judge, "tea") == (9, 0, 0)
