"""Tests of choreographed returns on real servers: lock, deadline, the chain of events."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

import pytest

from common.messages.envelope import Fenced
from common.messages.shop.inventory import Restocked, StockDispatched, StockReserved
from common.messages.shop.order import CancelAsked, NotReturnable, ReturnAccepted
from common.messages.shop.payment import NothingToRefund
from common.participant.reactions import Listener
from common.storage.db import Database
from inventory_svc.choreography import REACTIONS as INVENTORY
from inventory_svc.handlers import HANDLERS as INVENTORY_HANDLERS
from inventory_svc.store import InventoryStore
from order_svc.__main__ import worker
from order_svc.domain import return_id_for
from payment_svc.choreography import REACTIONS as PAYMENT
from payment_svc.handlers import HANDLERS as PAYMENT_HANDLERS
from payment_svc.store import PaymentStore
from tests.integration.choreographing import (
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
from tests.integration.mail import saga
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

ROUNDS = range(8)


async def confirmed(shop: Orders, key: str = "k") -> UUID:
    order = await shop.place(key)
    await shop.receives(event(StockDispatched(), order))
    return order


def returns(judge: Rows) -> list[tuple[object, ...]]:
    return judge.execute(
        "select r.status, r.reason, p.definition, p.state, p.ended_at is not null"
        " from order_svc.order_return r join order_svc.saga_progress p on p.saga_id = r.return_id"
        " order by r.opened_at"
    ).fetchall()


async def test_a_returns_progress_begins_with_it_and_follows_events(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await confirmed(shop)
        return_id, reply = await shop.give_back(order)
        assert reply == ReturnAccepted(return_id=return_id, order_id=order)
        assert outgoing(judge, "order_svc")[-1] == "events/ReturnAccepted"
        sent_events = len(outgoing(judge, "order_svc"))
        assert await shop.give_back(order) == (return_id, reply)  # and no event is sent again
        assert len(outgoing(judge, "order_svc")) == sent_events
        assert await shop.view(return_id) == (
            "RUNNING",
            {
                "open_return": "done",
                "refund_order": "sent",
                "restock": "not_sent",
                "finish_return": "not_sent",
            },
        )
        back = event(Restocked(), return_id, order_id=str(order))
        await shop.receives(back, back)
        assert status(judge, order) == ("RETURNED", None)
        await shop.receives(sent(judge, "order_svc")[-1])
        state, steps = await shop.view(return_id)
        assert (state, set(steps.values())) == ("COMPLETED", {"done"})
    assert returns(judge) == [("FINISHED", None, "return", "COMPLETED", True)]


async def test_a_refused_return_leaves_no_progress(settings: MakeSettings, judge: Rows) -> None:
    async with orders(settings) as shop:
        order = await shop.place()
        return_id, reply = await shop.give_back(order)
        assert isinstance(reply, NotReturnable)
        assert "not confirmed yet" in reply.remedy
        assert inbox(judge, "order_svc", return_id) == {}
        await shop.receives(event(StockDispatched(), order))
        assert isinstance((await shop.give_back(order))[1], ReturnAccepted)
        assert isinstance((await shop.give_back(order, "other"))[1], NotReturnable)
    assert len(returns(judge)) == 1
    assert outgoing(judge, "order_svc").count("events/ReturnAccepted") == 1


async def test_of_two_racing_returns_one_locks_the_order(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as one, orders(settings) as two:
        for number in ROUNDS:
            order = await confirmed(one, f"order-{number}")
            answers = await asyncio.gather(
                one.give_back(order, "one"), two.give_back(order, "other")
            )
            assert {type(reply) for _, reply in answers} == {ReturnAccepted, NotReturnable}
    assert len(returns(judge)) == len(ROUNDS)
    assert outgoing(judge, "order_svc").count("events/ReturnAccepted") == len(ROUNDS)


async def test_a_fenced_return_is_closed_and_the_order_can_be_returned(
    settings: MakeSettings, judge: Rows
) -> None:
    async with orders(settings) as shop:
        order = await confirmed(shop)
        first, _ = await shop.give_back(order)
        await shop.receives(event(NothingToRefund(), first, order_id=str(order)))
        assert status(judge, order) == ("RETURN_PENDING", None)  # not before the reply to the fence
        fenced = event(Fenced(), first, "refund_order", reason="nothing_to_refund")
        await shop.receives(fenced, fenced)
        assert status(judge, order) == ("CONFIRMED", None)
        await shop.receives(sent(judge, "order_svc")[-1])
        assert (await shop.view(first))[0] == "COMPENSATED"
        second, reply = await shop.give_back(order, "again")
        assert isinstance(reply, ReturnAccepted)
        await shop.receives(fenced)  # the first return's event, repeated
        assert status(judge, order) == ("RETURN_PENDING", None)
        await shop.receives(event(Restocked(), second, order_id=str(order)))
    assert returns(judge) == [
        ("CLOSED", "nothing_to_refund", "return", "COMPENSATED", True),
        ("FINISHED", None, "return", "RUNNING", False),
    ]


async def test_a_timeout_repeats_the_return_and_then_asks_to_cancel_it(
    settings: MakeSettings, judge: Rows, admin: Rows
) -> None:
    async with orders(settings, step_timeout_seconds=600, step_attempts=2) as shop:
        order = await confirmed(shop)
        await shop.receives(sent(judge, "order_svc")[-1])  # the order's own saga has ended
        return_id, _ = await shop.give_back(order)
        assert await shop.deadlines.run_once() == 0  # not yet
        for _ in range(3):
            admin.execute(
                "update order_svc.saga_progress set next_deadline = now() where ended_at is null"
            )
            assert await shop.deadlines.run_once() == 1
        first, again, *asked = [e for e in sent(judge, "order_svc") if e.saga_id == return_id]
        assert again == first.model_copy(update={"attempt": 2})
        assert [e.type for e in asked] == ["CancelAsked"] * 2  # without end
        assert asked[0].about == {"order_id": str(order), "reason": "refund_order_timed_out"}
        assert (await shop.view(return_id))[1]["refund_order"] == "fencing"

    async with Database(settings("payment_svc")) as db:  # which fences the refund
        await deliver(Listener(payment(db), PAYMENT), asked[0])
    (fenced,) = sent(judge, "payment_svc")
    assert (fenced.type, fenced.about) == ("Fenced", asked[0].about)


async def test_a_refund_and_its_fence_have_one_outcome_in_either_order(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("payment_svc")) as db:
        await open_account(db, "ada", 100)
        listener = Listener(payment(db), PAYMENT)
        for number, fence_first in ((1, False), (2, True)):
            order, back = saga(number), return_id_for(saga(number), "r")
            await deliver(listener, event(StockReserved(), order))
            sent_events = {"order_id": str(order), "reason": "x"}
            opened = event(ReturnAccepted(return_id=back, order_id=order), back, **sent_events)
            asked = event(CancelAsked(reason="x"), back, "cancel_return", **sent_events)
            await deliver(listener, *([asked, opened] if fence_first else [opened, asked]))
            said = [e.type for e in sent(judge, "payment_svc") if e.saga_id == back]
            refused = ["Fenced", "Fenced"]  # the fence's answer, and the late refund's
            assert said == (refused if fence_first else ["OrderRefunded", "PivotDone"])
            assert transfers(judge, back) == ([] if fence_first else ["REFUND"])
    assert balance(judge, "ada") == 92


async def test_a_return_runs_through_all_services_by_the_broker(
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
        order = await shop.place("one")
        await eventually(lambda: status(judge, order) == ("CONFIRMED", None))
        await shop.give_back(order)
        await eventually(lambda: status(judge, order) == ("RETURNED", None))
        done = [("FINISHED", None, "return", "COMPLETED", True)]
        await eventually(lambda: returns(judge) == done)
    assert (stock(judge, "tea"), balance(judge, "ada")) == ((9, 0, 0), 12)
