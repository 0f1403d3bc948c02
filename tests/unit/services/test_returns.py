"""Tests of a return in each service's rules: locked once, refunded once, restocked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from common.messages.contracts import SagaStarted, StartSaga
from common.messages.envelope import Command, Direction, Envelope, Key, Undo, saga_id_for
from common.messages.errors import IllegalTransition
from common.messages.shop.inventory import Restock, Restocked
from common.messages.shop.order import (
    CloseReturn,
    ConfirmOrder,
    FinishReturn,
    NotReturnable,
    OpenReturn,
    RejectOrder,
    ReturnAccepted,
    ReturnClosed,
    ReturnFinished,
)
from common.messages.shop.payment import NothingToRefund, OrderRefunded, RefundOrder
from common.messages.topology import ORCHESTRATOR_COMMANDS
from common.participant.participant import Answered, Work
from inventory_svc.domain import Pieces, Reservation, Stock
from inventory_svc.domain import ReservationStatus as Reserved
from inventory_svc.handlers import HANDLERS as INVENTORY
from order_svc.domain import OrderBook, OrderState, OrderStatus, ReturnStatus, return_id_for
from order_svc.handlers import HANDLERS as ORDER
from payment_svc.domain import SHOP, Account, AccountKey, Ledger, Transfer, TransferKind
from payment_svc.handlers import HANDLERS as PAYMENT

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOUGHT = saga_id_for("ann", "key-1")
FIRST, SECOND = return_id_for(BOUGHT, "key-2"), return_id_for(BOUGHT, "key-3")
STEPS: dict[type[Command], str] = {
    OpenReturn: "open_return",
    CloseReturn: "open_return",
    RefundOrder: "refund_order",
    Restock: "restock",
    FinishReturn: "finish_return",
    ConfirmOrder: "confirm_order",
    RejectOrder: "create_order",
    SagaStarted: "saga_started",
}
OPEN = OpenReturn(order_id=BOUGHT, idempotency_key="key-2")
FINISH = FinishReturn(order_id=BOUGHT)
CLOSE = CloseReturn(reason="nothing_to_refund")


def ask(handlers: Any, state: Any, command: Command, saga_id: UUID = FIRST) -> Answered:
    direction = Direction.COMPENSATING if isinstance(command, Undo) else Direction.FORWARD
    key = Key(saga_id, STEPS[type(command)], direction)
    envelope = Envelope.command(key, command, issued_at=NOON, reply_to=None)
    answer = handlers[type(command)](state, Work(envelope, command))
    return answer if isinstance(answer, Answered) else Answered(answer)


def book(status: OrderStatus = OrderStatus.CONFIRMED, return_id: UUID | None = None) -> OrderBook:
    standing = OrderState(status, return_id=return_id, customer="ann", currency="EUR", total=600)
    return OrderBook(NOON, orders={BOUGHT: standing})


def test_a_confirmed_order_is_locked_and_its_saga_asked_for() -> None:
    here = book()
    answered = ask(ORDER, here, OPEN)
    assert answered.reply == ReturnAccepted(return_id=FIRST, order_id=BOUGHT)
    assert (here.orders[BOUGHT].status, here.orders[BOUGHT].return_id) == ("RETURN_PENDING", FIRST)
    (start,) = answered.also
    assert start.destination == ORCHESTRATOR_COMMANDS
    assert isinstance(start.envelope, Envelope)
    assert start.envelope.saga_id == FIRST
    data = {"order_id": str(BOUGHT), "customer": "ann", "currency": "EUR", "total": 600}
    assert start.envelope.message() == StartSaga(definition="return", data=data)


@pytest.mark.parametrize(
    ("status", "return_id", "remedy"),
    [
        (OrderStatus.PENDING, None, "not confirmed yet"),
        (OrderStatus.REJECTED, None, "was rejected"),
        (OrderStatus.RETURN_PENDING, SECOND, f"return {SECOND} of it is under way"),
        (OrderStatus.RETURNED, SECOND, f"given back already, by return {SECOND}"),
    ],
)
def test_any_other_order_is_not_returnable_and_nothing_is_kept(
    status: OrderStatus, return_id: UUID | None, remedy: str
) -> None:
    here = book(status, return_id)
    answered = ask(ORDER, here, OPEN)
    assert isinstance(answered.reply, NotReturnable)
    assert remedy in answered.reply.remedy
    assert (answered.keep, answered.also) == (False, ())
    assert (here.changed, here.opened) == (set(), {})


def test_an_id_or_a_step_that_is_not_a_return_s_is_refused() -> None:
    assert isinstance(ask(ORDER, book(), OPEN, SECOND).reply, NotReturnable)
    key = Key(FIRST, "give_it_back", Direction.FORWARD)
    envelope = Envelope.command(key, OPEN, issued_at=NOON, reply_to=None)
    answer = ORDER[OpenReturn](book(), Work(envelope, OPEN))
    assert isinstance(answer, Answered)
    assert isinstance(answer.reply, NotReturnable)
    assert answer.reply.field == "step"


def test_after_an_undone_return_the_order_can_be_returned_again() -> None:
    here = book()
    ask(ORDER, here, OPEN)
    assert ask(ORDER, here, CLOSE).reply == ReturnClosed()
    assert (here.orders[BOUGHT].status, here.orders[BOUGHT].return_id) == ("CONFIRMED", None)
    assert here.returns[FIRST].status is ReturnStatus.CLOSED
    again = OpenReturn(order_id=BOUGHT, idempotency_key="key-3")
    assert isinstance(ask(ORDER, here, again, SECOND).reply, ReturnAccepted)
    ask(ORDER, here, CLOSE)  # the first's, repeated
    assert here.orders[BOUGHT].return_id == SECOND


def test_undoing_what_never_began_says_so() -> None:
    assert ask(ORDER, book(), CLOSE).reply == ReturnClosed(nothing_to_undo=True)


def test_a_finished_return_is_final() -> None:
    here = book()
    ask(ORDER, here, OPEN)
    assert ask(ORDER, here, FINISH).reply == ReturnFinished()
    assert here.orders[BOUGHT].status is OrderStatus.RETURNED
    assert ask(ORDER, here, FINISH).reply == ReturnFinished()
    with pytest.raises(IllegalTransition, match="is finished"):
        ask(ORDER, here, CLOSE)


def test_the_lock_of_another_return_is_not_taken() -> None:
    here = book()
    ask(ORDER, here, OPEN)
    here.orders[BOUGHT].return_id = SECOND
    for command in (FINISH, CLOSE):
        with pytest.raises(IllegalTransition, match="not locked by"):
            ask(ORDER, here, command)


def test_rule_19_confirming_a_confirmed_order_changes_nothing() -> None:
    for status in (OrderStatus.CONFIRMED, OrderStatus.RETURN_PENDING, OrderStatus.RETURNED):
        here = book(status)
        ask(ORDER, here, ConfirmOrder(), BOUGHT)
        assert (here.orders[BOUGHT].status, here.changed) == (status, set())
        with pytest.raises(IllegalTransition, match="confirmed"):
            ask(ORDER, here, RejectOrder(reason="no"), BOUGHT)


def test_saga_started_counts_for_a_return_as_for_an_order() -> None:
    here = book()
    ask(ORDER, here, OPEN)
    ask(ORDER, here, SagaStarted(), FIRST)
    ask(ORDER, here, SagaStarted(), BOUGHT)
    assert here.returns[FIRST].saga_known
    assert here.orders[BOUGHT].saga_known


CHARGE = Transfer(
    UUID(int=1), TransferKind.CHARGE, BOUGHT, "charge_payment", "ann", SHOP, 600, "EUR"
)  # fmt: skip


def ledger() -> Ledger:
    return Ledger(accounts={AccountKey("ann", "EUR"): Account("good")}, charges={BOUGHT: CHARGE})


def test_rule_19_a_refund_is_unique_per_charge_not_per_saga() -> None:
    books = ledger()
    assert ask(PAYMENT, books, RefundOrder(order_id=BOUGHT)).reply == OrderRefunded()
    assert ask(PAYMENT, books, RefundOrder(order_id=BOUGHT), SECOND).reply == NothingToRefund()
    (refund,) = books.made
    assert (refund.refund_of, refund.saga_id, refund.amount) == (CHARGE.transfer_id, FIRST, 600)
    assert (refund.debit, refund.credit) == (SHOP, "ann")
    assert books.accounts[AccountKey("ann", "EUR")].balance == 600


def test_without_a_charge_there_is_nothing_to_refund() -> None:
    assert ask(PAYMENT, Ledger(), RefundOrder(order_id=BOUGHT)).reply == NothingToRefund()


def test_goods_that_come_back_can_be_sold_again() -> None:
    gone = Reservation(BOUGHT, "reserve_stock", {"tea": 2}, Reserved.DISPATCHED)
    stock = Stock({"tea": Pieces(on_hand=1, dispatched=2, received=3)}, {BOUGHT: gone})
    assert ask(INVENTORY, stock, Restock(order_id=BOUGHT)).reply == Restocked()
    assert stock.pieces["tea"] == Pieces(on_hand=3, received=3)
    assert stock.settled[BOUGHT].status is Reserved.RETURNED
    with pytest.raises(IllegalTransition, match="nothing is dispatched"):
        ask(INVENTORY, stock, Restock(order_id=BOUGHT))
