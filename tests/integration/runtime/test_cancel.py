"""Cancelling against a real Postgres: before a saga has begun, on its way, at the pivot, after."""

from __future__ import annotations

import asyncio

import pytest

from common.messages.contracts import CancelSaga, StartSaga
from common.messages.envelope import Envelope, Fenced, saga_id_for
from common.messages.shop.inventory import StockDispatched, StockReleased
from common.messages.shop.order import (
    CancelNoted,
    CancelOrder,
    ListProduct,
    OrderConfirmed,
    OrderRejected,
    PlaceOrder,
)
from common.messages.shop.values import Line
from common.participant.participant import Participant
from common.storage.db import Database
from order_svc.handlers import HANDLERS, ON_DUPLICATE
from order_svc.store import OrderStore
from tests.integration.conftest import MakeSettings
from tests.integration.mail import command, saga
from tests.integration.orchestrating import (
    CHARGED,
    COMPENSATING,
    RESERVED,
    commands,
    give,
    give_each,
    instances,
    logged,
    reply,
    service,
    start,
    state,
)
from tests.integration.services import handle, sent
from tests.integration.waiting import Rows

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


def cancel(number: int = 1) -> Envelope:
    begun = start(number).message()
    assert isinstance(begun, StartSaga)
    body = CancelSaga(definition="order", data=begun.data, actor="customer ada", reason="cancelled")
    return command(body, saga(number), step="cancel", reply_to=None)


TO_THE_PIVOT = [start(1), reply(1, "reserve_stock", RESERVED), reply(1, "charge_payment", CHARGED)]


async def test_repeated_cancels_undo_a_running_saga_once(db: Database, judge: Rows) -> None:
    await give_each(service(db), start(1), cancel(), cancel())
    await give(service(db), cancel(), cancel())
    assert commands(judge) == ["reserve_stock>1", "reserve_stock<1"]
    assert logged(judge).count("compensate_asked") == 1
    await give_each(
        service(db),
        reply(1, "reserve_stock", StockReleased(), COMPENSATING),
        reply(1, "create_order", OrderRejected(), COMPENSATING),
        cancel(),
    )
    assert state(judge) == ("COMPENSATED", "cancelled")


async def test_one_that_has_not_begun_begins_to_be_undone(db: Database, judge: Rows) -> None:
    """The order must end; a start that arrives later finds the saga begun."""
    await give_each(service(db), cancel(), start(1), start(1, attempt=2), cancel())
    assert instances(judge) == 1
    assert commands(judge) == ["reserve_stock>1", "reserve_stock<1"]
    assert logged(judge)[:2] == ["started", "sent"]
    assert state(judge) == ("COMPENSATING", "cancelled")


async def test_a_start_and_a_cancel_at_once_make_one_undone_saga(db: Database, judge: Rows) -> None:
    for number in range(1, 21):
        both = [give(service(db), start(number)), give(service(db), cancel(number))]
        await asyncio.gather(*(both if number % 2 else reversed(both)))
        assert state(judge, number) == ("COMPENSATING", "cancelled")
    assert instances(judge) == 20


async def test_at_the_pivot_it_is_fenced_and_the_fence_decides(db: Database, judge: Rows) -> None:
    await give_each(service(db), *TO_THE_PIVOT, cancel())
    assert commands(judge)[-1] == "dispatch_stock<1"
    assert state(judge) == ("RUNNING", "cancelled")
    await give(service(db), reply(1, "dispatch_stock", Fenced(), COMPENSATING))
    assert state(judge) == ("COMPENSATING", "cancelled")


async def test_a_cancel_past_the_pivot_is_refused_and_logged(db: Database, judge: Rows) -> None:
    await give_each(
        service(db),
        *TO_THE_PIVOT,
        reply(1, "dispatch_stock", StockDispatched()),
        cancel(),
        cancel(),
    )
    assert state(judge) == ("RUNNING", None)
    assert logged(judge)[-1] == "cancel_refused"
    await give_each(service(db), reply(1, "confirm_order", OrderConfirmed()), cancel())
    assert state(judge) == ("COMPLETED", None)
    assert logged(judge).count("cancel_refused") == 1


async def test_a_cancel_that_races_the_pivot_has_one_outcome(db: Database, judge: Rows) -> None:
    for number in range(1, 21):
        await give_each(
            service(db),
            start(number),
            reply(number, "reserve_stock", RESERVED),
            reply(number, "charge_payment", CHARGED),
        )
        dispatched = reply(number, "dispatch_stock", StockDispatched())
        both = [give(service(db), dispatched), give(service(db), cancel(number))]
        await asyncio.gather(*(both if number % 2 else reversed(both)))
        # Whichever was first, the goods have left, and a fence, if one was sent, will say so too.
        assert state(judge, number) == ("RUNNING", None)
        assert commands(judge, number)[-1] == "confirm_order>1"
        assert "turned" not in logged(judge, number)


async def test_one_that_is_parked_is_undone(db: Database, judge: Rows) -> None:
    gated = service(db, thresholds={"EUR": 1})
    await give_each(gated, start(1), reply(1, "reserve_stock", RESERVED))
    assert state(judge) == ("WAITING", None)
    await give(gated, cancel())
    assert state(judge) == ("COMPENSATING", "cancelled")


async def test_repeated_cancel_requests_send_the_same_message(
    settings: MakeSettings, judge: Rows
) -> None:
    order_id = saga_id_for("ann", "key-1")
    async with Database(settings("order_svc")) as own:
        orders = Participant(own, OrderStore(), HANDLERS, on_duplicate=ON_DUPLICATE)
        listed = ListProduct(sku="tea", price=300, currency="EUR")
        placed = PlaceOrder(
            customer="ann", idempotency_key="key-1", currency="EUR",
            lines=(Line(sku="tea", quantity=2),),
        )  # fmt: skip
        wanted_no_more = command(
            CancelOrder(order_id=order_id), order_id, step="customer_cancels", reply_to=None
        )
        (unknown,) = await handle(orders, wanted_no_more)
        assert type(unknown).__name__ == "OrderUnknown"
        await handle(orders, command(listed, saga(8), step="list_product", reply_to=None))
        await handle(orders, command(placed, order_id, reply_to=None))
        answers = [await handle(orders, wanted_no_more) for _ in range(2)]
        assert answers == [[CancelNoted()], [CancelNoted()]]  # every waiting client is answered
    asked = sent(judge, "order_svc")
    # The broker may have lost the first, when it was replaced or its queues were purged.
    assert [envelope.type for envelope in asked] == ["StartSaga", "CancelSaga", "CancelSaga"]
    assert len({envelope.message_id for envelope in asked}) == 2
    assert asked[0].body["data"] == asked[1].body["data"]
