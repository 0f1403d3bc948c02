"""Tests of choreographed orders on real servers: arrival in any order, repeats, deadlines."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from common.messages.envelope import Fenced, PivotDone
from common.messages.errors import Poison
from common.messages.shop.inventory import StockDispatched, StockReleased, StockReserved
from common.messages.shop.order import CancelNoted, OrderAccepted, OrderIsOver, OrderUnknown
from common.messages.shop.payment import CardDeclined, PaymentCharged, PaymentRefunded
from common.messages.topology import events_of
from common.participant.reactions import Listener
from common.process.process import Process
from common.storage.db import Database
from inventory_svc.choreography import REACTIONS as INVENTORY
from inventory_svc.handlers import HANDLERS as INVENTORY_HANDLERS
from inventory_svc.store import InventoryStore
from order_svc.__main__ import worker
from payment_svc.choreography import REACTIONS as PAYMENT
from payment_svc.handlers import HANDLERS as PAYMENT_HANDLERS
from payment_svc.store import PaymentStore
from tests.integration.choreographing import (
    ABOUT,
    CHOREOGRAPHED,
    Orders,
    deliver,
    event,
    orders,
    outgoing,
    participant_process,
    status,
)
from tests.integration.conftest import MakeSettings
from tests.integration.mail import mail, saga
from tests.integration.services import (
    balance,
    inbox,
    open_account,
    payment,
    receive_stock,
    sent,
    stock,
    transfers,
)
from tests.integration.waiting import Rows, eventually, running, wired

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")

# --- a participant -------------------------------------------------------------------------


async def test_events_in_both_orders_of_arrival(settings: MakeSettings, judge: Rows) -> None:
    """A charge before its undo is refunded; one after it finds the tombstone."""
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        listener = Listener(payment(db), PAYMENT)
        reserved, fenced = StockReserved(), Fenced()
        await deliver(listener, event(reserved, saga(1)))
        await deliver(listener, event(fenced, saga(1), reason="x"))
        await deliver(listener, event(fenced, saga(2), reason="x"))
        await deliver(listener, event(reserved, saga(2)))
        await deliver(listener, event(fenced, saga(3), reason="x"), event(reserved, saga(3)))
    assert transfers(judge, saga(1)) == ["CHARGE", "REFUND"]
    assert transfers(judge, saga(2)) == transfers(judge, saga(3)) == []
    assert inbox(judge, "payment_svc", saga(2)) == {"forward": "fenced", "compensating": "done"}
    assert balance(judge, "ada") == 100
    assert outgoing(judge, "payment_svc")[:2] == ["events/PaymentCharged", "events/PaymentRefunded"]
    refunds = [e for e in sent(judge, "payment_svc") if e.type == "PaymentRefunded"]
    assert [e.about and e.about["reason"] for e in refunds] == ["x"] * 3


async def test_a_repeated_event_acts_once_and_brings_the_stored_event(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        listener = Listener(payment(db), PAYMENT)
        again = event(StockReserved(), saga(1))
        await deliver(listener, again, again)
        await deliver(listener, again)
    assert transfers(judge, saga(1)) == ["CHARGE"]
    sent_events = sent(judge, "payment_svc")
    assert len(sent_events) == 3
    assert sent_events[1:] == sent_events[:1] * 2
    assert outgoing(judge, "payment_svc") == ["events/PaymentCharged"] * 3
    assert sent_events[0].about == ABOUT


async def test_what_leads_to_nothing_is_passed_over(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("payment_svc")) as db:
        await deliver(
            Listener(payment(db), PAYMENT), event(PaymentCharged(charge_id=saga(9)), saga(1))
        )
    assert inbox(judge, "payment_svc", saga(1)) == {}


# --- the order service ---------------------------------------------------------------------


async def test_progress_begins_with_its_order_and_follows_events(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await shop.place()
        assert outgoing(judge, "order_svc") == ["events/OrderAccepted"]
        assert (await shop.view(order))[0] == "RUNNING"
        done = event(StockDispatched(), order)
        await shop.receives(done, done)
        await shop.receives(done)
        assert status(judge, order) == ("CONFIRMED", None)
        sent_events = sent(judge, "order_svc")[1:]
        assert [e.type for e in sent_events] == ["OrderConfirmed"] * 3
        await shop.receives(sent_events[0])
        state, steps = await shop.view(order)
        assert (state, set(steps.values())) == ("COMPLETED", {"done"})
    assert judge.execute(
        "select ended_at is not null, next_deadline from order_svc.saga_progress"
    ).fetchall() == [(True, None)]


@pytest.mark.parametrize("first", [0, 1])
async def test_an_order_is_rejected_once_both_others_confirmed(
    settings: MakeSettings, judge: Rows, first: int
) -> None:
    async with orders(settings) as shop:
        order = await shop.place()
        await shop.receives(event(CardDeclined(), order))
        undone = [
            event(PaymentRefunded(nothing_to_undo=True), order, reason="card_declined"),
            event(StockReleased(), order, reason="card_declined"),
        ]
        await shop.receives(undone[first])
        assert status(judge, order) == ("PENDING", None)
        assert (await shop.view(order))[0] == "COMPENSATING"
        await shop.receives(undone[1 - first], undone[first])
        assert status(judge, order) == ("REJECTED", "card_declined")
        await shop.receives(sent(judge, "order_svc")[-1])
        assert (await shop.view(order))[0] == "COMPENSATED"


async def test_asked_to_cancel_too_late_the_order_is_confirmed(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await shop.place()
        await shop.receives(event(PivotDone(), order, reason="dispatch_stock_timed_out"))
        assert status(judge, order) == ("CONFIRMED", None)


async def test_an_event_of_an_unknown_order_is_poison(settings: MakeSettings) -> None:
    async with orders(settings) as shop:
        with pytest.raises(Poison, match="no order"):
            await shop.receives(event(StockDispatched(), saga(77)))


async def test_a_timeout_repeats_the_first_event_then_asks_to_cancel(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    async with orders(settings, step_timeout_seconds=600, step_attempts=2) as shop:
        order = await shop.place()
        assert await shop.deadlines.run_once() == 0  # not yet
        for _ in range(3):
            admin.execute("update order_svc.saga_progress set next_deadline = now()")
            assert await shop.deadlines.run_once() == 1
        again, *asked = sent(judge, "order_svc")[1:]
        first = sent(judge, "order_svc")[0]
        assert (again.type, again.message_id, again.body) == (
            "OrderAccepted",
            first.message_id,
            first.body,
        )
        assert again.first_issued_at == first.first_issued_at
        assert [e.type for e in asked] == ["CancelAsked"] * 2  # without end
        assert asked[0].body == {"reason": "reserve_stock_timed_out"}
        assert (await shop.view(order))[1]["dispatch_stock"] == "fencing"
        await shop.receives(event(StockReserved(), order))  # a new event that needs no command
        assert (await shop.view(order))[1]["dispatch_stock"] == "fencing"


async def test_a_cancel_asks_the_pivots_owner_until_it_answers(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    async with orders(settings, step_timeout_seconds=600) as shop:
        order = await shop.place()
        assert [await shop.cancel(order) for _ in range(2)] == [CancelNoted()] * 2
        assert outgoing(judge, "order_svc")[1:] == ["events/CancelAsked"]
        assert (await shop.view(order))[1]["dispatch_stock"] == "fencing"
        admin.execute("update order_svc.saga_progress set next_deadline = now()")
        assert await shop.deadlines.run_once() == 1
        asked = sent(judge, "order_svc")[1:]
        assert [e.body for e in asked] == [{"reason": "cancelled"}] * 2
        assert asked[0].message_id == asked[1].message_id
        undone = [event(body, order, reason="cancelled")
                  for body in (PaymentRefunded(nothing_to_undo=True), StockReleased())]  # fmt: skip
        await shop.receives(event(Fenced(), order, reason="cancelled"), *undone)
        assert status(judge, order) == ("REJECTED", "cancelled")
        assert await shop.cancel(order) == CancelNoted()  # the stored reply


async def test_once_the_goods_have_left_there_is_nothing_to_cancel(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await shop.place()
        await shop.receives(event(StockDispatched(), order))
        assert await shop.cancel(order) == OrderIsOver(status="CONFIRMED")
        assert await shop.cancel(saga(77)) == OrderUnknown()
        assert status(judge, order) == ("CONFIRMED", None)


async def test_a_cancel_that_races_the_pivot_has_one_outcome(
    settings: MakeSettings, judge: Rows
) -> None:
    """Both transactions lock the progress before the order, so they cannot deadlock."""
    async with orders(settings) as shop:
        for number in range(20):
            order = await shop.place(f"key-{number}")
            both = [shop.receives(event(StockDispatched(), order)), shop.cancel(order)]
            await asyncio.gather(*(both if number % 2 else reversed(both)))
            assert status(judge, order) == ("CONFIRMED", None)
            view = await shop.view(order)
            assert (view[0], view[1]["dispatch_stock"]) == ("RUNNING", "done")


# --- by the broker -------------------------------------------------------------------------


async def test_orders_travel_from_service_to_service_by_the_broker(
    settings: MakeSettings, judge: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {role: settings(role, **CHOREOGRAPHED)
            for role in ("order_svc", "payment_svc", "inventory_svc")}  # fmt: skip
    order_worker = await wired(monkeypatch, worker, ours["order_svc"])
    pay = participant_process(
        ours["payment_svc"], "payment", PaymentStore(), PAYMENT_HANDLERS, PAYMENT
    )
    goods = participant_process(
        ours["inventory_svc"], "inventory", InventoryStore(), INVENTORY_HANDLERS, INVENTORY
    )
    async with AsyncExitStack() as stack:
        for process in (order_worker, pay, goods):
            await stack.enter_async_context(running(process))
        await open_account(pay.db, "ada", 12)
        await receive_stock(goods.db, tea=9)
        shop = Orders(order_worker.db, ours["order_svc"])
        first = await shop.place("one")
        await eventually(lambda: status(judge, first) == ("CONFIRMED", None))
        second = await shop.place("two")
        await eventually(lambda: status(judge, second) == ("REJECTED", "insufficient_funds"))
        await eventually(lambda: ended(judge) == 2)
        assert await shop.view(second) == (
            "COMPENSATED",
            {
                "create_order": "undone",
                "reserve_stock": "undone",
                "charge_payment": "refused",
                "dispatch_stock": "fenced",
                "confirm_order": "not_sent",
            },
        )
    assert (stock(judge, "tea"), balance(judge, "ada")) == ((7, 0, 2), 4)
    assert inbox(judge, "payment_svc", second) == {"forward": "refused", "compensating": "done"}


def ended(judge: Rows) -> int:
    return judge.execute("select from order_svc.saga_progress where ended_at is not null").rowcount


async def test_an_event_without_a_queue_waits_in_the_outbox(
    settings: MakeSettings, judge: Rows
) -> None:
    """The broker returns it; it is sent once a service has bound its queue."""
    ours = settings("order_svc", **CHOREOGRAPHED)
    process = Process(ours)
    async with mail(ours), running(process, "relay"):
        await Orders(process.db, ours).place()
        await eventually(lambda: process.relay._paused)
        assert outgoing(judge, "order_svc") == ["events/OrderAccepted"]
        goods = settings("inventory_svc", **CHOREOGRAPHED)
        listening = participant_process(
            goods, "inventory", InventoryStore(), INVENTORY_HANDLERS, {OrderAccepted: RESERVE}
        )
        async with running(listening, events_of("inventory")):
            await eventually(lambda: outgoing(judge, "order_svc") == [])
            await eventually(lambda: outgoing(judge, "inventory_svc") == ["events/NotStocked"])


RESERVE = INVENTORY[OrderAccepted]
