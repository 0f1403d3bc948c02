"""Returns on real tables: two attempts race for one order, two sagas for one charge."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from common.messages.envelope import saga_id_for
from common.messages.shop.inventory import DispatchStock, Restock
from common.messages.shop.order import (
    CloseReturn,
    ConfirmOrder,
    FinishReturn,
    ListProduct,
    NotReturnable,
    OpenReturn,
    PlaceOrder,
    ReturnAccepted,
    ReturnClosed,
)
from common.messages.shop.payment import NothingToRefund, OrderRefunded, RefundOrder
from common.messages.shop.values import Line
from common.participant.participant import Participant
from common.storage.db import Database
from order_svc.domain import OrderBook, return_id_for
from order_svc.handlers import HANDLERS, ON_DUPLICATE
from order_svc.store import OrderStore
from tests.integration.conftest import MakeSettings
from tests.integration.mail import charge, command, reserve, saga
from tests.integration.services import (
    balance,
    handle,
    inventory,
    open_account,
    payment,
    receive_stock,
    sent,
    stock,
)
from tests.integration.waiting import Rows

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")

ROUNDS = range(8)


def orders(db: Database) -> Participant[OrderBook]:
    return Participant(db, OrderStore(0), HANDLERS, on_duplicate=ON_DUPLICATE)


async def buy(db: Database, key: str) -> UUID:
    """Place an order and confirm it."""
    order_id = saga_id_for("ann", key)
    placed = PlaceOrder(
        customer="ann", idempotency_key=key, currency="EUR", lines=(Line(sku="tea", quantity=2),)
    )
    price = ListProduct(sku="tea", price=300, currency="EUR")
    await handle(orders(db), command(price, saga_id_for("shop", key), step="list_product"))
    await handle(
        orders(db),
        command(placed, order_id),
    )
    await handle(orders(db), command(ConfirmOrder(), order_id))
    return order_id


def opening(order_id: UUID, key: str) -> tuple[UUID, OpenReturn]:
    return return_id_for(order_id, key), OpenReturn(order_id=order_id, idempotency_key=key)


async def test_rule_19_of_two_returns_that_race_one_locks_the_order(
    settings: MakeSettings, judge: Rows
) -> None:
    made = settings("order_svc")
    async with Database(made) as db_1, Database(made) as db_2:
        for number in ROUNDS:
            order_id = await buy(db_1, f"order-{number}")
            one, other = (opening(order_id, key) for key in ("one", "other"))
            ((first,), (second,)) = await asyncio.gather(
                handle(orders(db_1), command(one[1], one[0], step="open_return")),
                handle(orders(db_2), command(other[1], other[0], step="open_return")),
            )
            assert {type(first), type(second)} == {ReturnAccepted, NotReturnable}
            rows = judge.execute(
                "select status, return_id from order_svc.customer_order where order_id = %s",
                (order_id,),
            ).fetchall()
            winner = one[0] if isinstance(first, ReturnAccepted) else other[0]
            assert rows == [("RETURN_PENDING", winner)]


async def test_a_repeated_return_request_gets_the_same_return(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        return_id, asked = opening(await buy(db, "order"), "one")
        again = command(asked, return_id, step="open_return")
        first = await handle(orders(db), again)
        assert await handle(orders(db), again, again) == [*first, *first]
        assert isinstance(first[0], ReturnAccepted)


async def test_a_return_is_undone_and_another_finishes(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("order_svc")) as db:
        order_id = await buy(db, "order")
        first, second = opening(order_id, "one"), opening(order_id, "two")
        await handle(orders(db), command(first[1], first[0], step="open_return"))
        close = command(CloseReturn(reason="nothing_to_refund"), first[0], step="open_return")
        assert await handle(orders(db), close) == [ReturnClosed()]
        finish = command(FinishReturn(order_id=order_id), second[0], step="finish_return")
        await handle(orders(db), command(second[1], second[0], step="open_return"))
        await handle(orders(db), finish)
        async with db.transaction(None) as tx:
            assert await OrderStore().overdue_starts(tx, 10) == []
    found = judge.execute(
        "select o.status, r.status, r.reason from order_svc.order_return r"
        " join order_svc.customer_order o using (order_id) order by r.opened_at"
    ).fetchall()
    assert found == [("RETURNED", "CLOSED", "nothing_to_refund"), ("RETURNED", "FINISHED", None)]


async def test_a_return_without_a_saga_is_started_again(
    settings: MakeSettings, judge: Rows
) -> None:
    async with Database(settings("order_svc")) as db:
        order_id = await buy(db, "order")
        return_id, opened = opening(order_id, "one")
        await handle(orders(db), command(opened, return_id, step="open_return"))
        async with db.transaction(None) as tx:
            (again,) = await OrderStore().overdue_starts(tx, 10)
    assert (again.attempt, again.customer, again.total) == (2, "ann", 600)
    starts = [e for e in sent(judge, "order_svc") if e.type == "StartSaga"]
    assert [e.saga_id for e in starts] == [order_id, return_id]


async def test_a_new_return_attempt_waits_as_long_as_the_first(
    settings: MakeSettings, admin: Rows
) -> None:
    """The resend delay doubles up to a minute, for an order as for a return."""
    async with Database(settings("order_svc")) as db:
        return_id, opened = opening(await buy(db, "order"), "one")
        await handle(orders(db), command(opened, return_id, step="open_return"))
        admin.execute(
            "update order_svc.customer_order set status = 'PENDING', settled_at = null"
            " where order_id = %s",
            (await buy(db, "other"),),
        )
        for most in (5, 10, 20, 40, 60, 60):
            admin.execute("update order_svc.customer_order set next_start_at = now()")
            admin.execute("update order_svc.order_return set next_start_at = now()")
            async with db.transaction(None) as tx:
                assert len(await OrderStore(5).overdue_starts(tx, 10)) == 2
                waits = await tx.fetch(
                    "select extract(epoch from next_start_at - now()) from customer_order"
                    " where status = 'PENDING' union all"
                    " select extract(epoch from next_start_at - now()) from order_return"
                )
            assert all(5 <= wait <= 5 + most for (wait,) in waits), waits


async def test_rule_19_two_returns_at_once_refund_a_charge_once(
    settings: MakeSettings, judge: Rows
) -> None:
    """The check under the account's lock suffices by itself."""
    made = settings("payment_svc")
    async with Database(made) as db_1, Database(made) as db_2:
        await open_account(db_1, "ada", 1000)
        for number in ROUNDS:
            bought, one, other = (saga(number * 10 + n) for n in (1, 2, 3))
            await handle(payment(db_1), charge(bought, total=100))
            body = RefundOrder(order_id=bought)
            replies = await asyncio.gather(
                handle(payment(db_1), command(body, one, step="refund_order")),
                handle(payment(db_2), command(body, other, step="refund_order")),
            )
            found = {type(reply) for (reply,) in replies}
            assert found == {OrderRefunded, NothingToRefund}
    assert balance(judge, "ada") == 1000


async def test_goods_come_back_once(settings: MakeSettings, judge: Rows) -> None:
    async with Database(settings("inventory_svc")) as db:
        await receive_stock(db, tea=5)
        await handle(inventory(db), reserve(saga(1), ("tea", 2)))
        await handle(inventory(db), command(DispatchStock(), saga(1)))
        assert stock(judge, "tea") == (3, 0, 2)
        back = command(Restock(order_id=saga(1)), saga(2), step="restock")
        await handle(inventory(db), back, back)
        await handle(inventory(db), back)
    assert stock(judge, "tea") == (5, 0, 0)
