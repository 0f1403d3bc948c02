"""Tests of the order service's rules: one command after another on one state."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages.contracts import CancelSaga, SagaStarted, StartSaga
from common.messages.envelope import Command, Direction, Envelope, Key, saga_id_for
from common.messages.errors import IllegalTransition
from common.messages.shop.order import (
    CancelNoted,
    CancelOrder,
    ConfirmOrder,
    KeyReused,
    ListProduct,
    OrderAccepted,
    OrderConfirmed,
    OrderInvalid,
    OrderIsOver,
    OrderRejected,
    OrderUnknown,
    PlaceOrder,
    ProductListed,
    RejectOrder,
)
from common.messages.shop.values import Line
from common.messages.topology import ORCHESTRATOR_COMMANDS, ORCHESTRATOR_REPLIES
from common.participant.participant import Answered, Work
from order_svc.domain import OrderBook, OrderState, OrderStatus, PlacedOrder, PricedLine, Product
from order_svc.handlers import HANDLERS, ON_DUPLICATE, start_saga

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ORDER = saga_id_for("ann", "key-1")
ANN_S = OrderState(customer="ann", currency="EUR", total=1000)
STEPS = {
    PlaceOrder: ("create_order", Direction.FORWARD),
    CancelOrder: ("customer_cancels", Direction.FORWARD),
    RejectOrder: ("create_order", Direction.COMPENSATING),
    ConfirmOrder: ("confirm_order", Direction.FORWARD),
    SagaStarted: ("saga_started", Direction.FORWARD),
    ListProduct: ("list_product", Direction.FORWARD),
}


def ask(
    book: OrderBook, command: Command, saga_id: UUID = ORDER, step: str | None = None
) -> Answered:
    name, direction = STEPS[type(command)]
    key = Key(saga_id, step or name, direction)
    envelope = Envelope.command(key, command, issued_at=NOON, reply_to=None)
    answer: Any = HANDLERS[type(command)](book, Work(envelope, command))
    return answer if isinstance(answer, Answered) else Answered(answer)


def a_book() -> OrderBook:
    products = {
        "tea": Product(300, "EUR"),
        "cup": Product(400, "EUR"),
        "gold": Product(10**12, "EUR"),
        "hat": Product(900, "USD"),
    }
    return OrderBook(NOON, currencies={"EUR", "USD"}, products=products)


def order_of(*lines: tuple[str, int], currency: str = "EUR") -> PlaceOrder:
    named = tuple(Line(sku=sku, quantity=quantity) for sku, quantity in lines)
    return PlaceOrder(customer="ann", idempotency_key="key-1", currency=currency, lines=named)


TEA_AND_CUP = order_of(("tea", 2), ("cup", 1))


def with_order(status: OrderStatus) -> OrderBook:
    """Make the state as loaded with one order."""
    book = a_book()
    reason = "out_of_stock" if status is OrderStatus.REJECTED else None
    book.orders[ORDER] = OrderState(status, reason)
    return book


def test_a_cancel_carries_all_that_starting_the_saga_needs() -> None:
    book = a_book()
    (_, start) = ask(book, TEA_AND_CUP).also[0]
    assert isinstance(start, Envelope)
    asked = ask(book, CancelOrder(order_id=ORDER))  # of the same batch, or loaded from the table
    # Not kept, so that a repeat sends it again in case the broker lost it.
    assert (asked.reply, asked.keep) == (CancelNoted(), False)
    ((destination, cancel),) = asked.also
    assert destination == ORCHESTRATOR_REPLIES  # not where starts wait
    assert isinstance(cancel, Envelope)
    assert cancel.key == Key(ORDER, "cancel", Direction.FORWARD)
    assert cancel.message() == CancelSaga(
        definition="order", data=start.body["data"], actor="customer ann", reason="cancelled"
    )
    assert book.orders[ORDER].status is OrderStatus.PENDING  # only its saga can undo it


@pytest.mark.parametrize("status", [OrderStatus.CONFIRMED, OrderStatus.REJECTED])
def test_of_an_order_that_is_over_nothing_is_left_to_cancel(status: OrderStatus) -> None:
    book = with_order(status)
    book.placed_before[ORDER] = PlacedOrder(ORDER, "ann", "EUR", (), 0, NOON)
    assert ask(book, CancelOrder(order_id=ORDER)) == Answered(
        OrderIsOver(status=status), keep=False
    )


def test_an_unknown_order_is_not_cancelled_and_can_be_placed() -> None:
    assert ask(a_book(), CancelOrder(order_id=ORDER)) == Answered(OrderUnknown(), keep=False)


def test_an_order_is_priced_from_the_price_list_and_is_pending() -> None:
    book = a_book()
    answered = ask(book, TEA_AND_CUP)
    assert answered.reply == OrderAccepted(
        order_id=ORDER, customer="ann", currency="EUR", lines=TEA_AND_CUP.lines, total=1000
    )
    assert answered.keep
    assert book.orders[ORDER] == replace(ANN_S, status=OrderStatus.PENDING)
    lines = (PricedLine("tea", 2, 300), PricedLine("cup", 1, 400))
    order = PlacedOrder(ORDER, "ann", "EUR", lines, 1000, NOON)
    assert book.placed == {ORDER: (order, "key-1")}


def test_an_order_asks_for_its_saga() -> None:
    (destination, start), *more = ask(a_book(), TEA_AND_CUP).also
    assert not more
    assert destination == ORCHESTRATOR_COMMANDS
    assert isinstance(start, Envelope)
    assert start.key == Key(ORDER, "start", Direction.FORWARD)
    assert (start.first_issued_at, start.reply_to, start.attempt) == (NOON, None, 1)
    assert start.message() == StartSaga(
        definition="order",
        data={
            "order_id": str(ORDER),
            "customer": "ann",
            "currency": "EUR",
            "lines": [{"sku": "tea", "quantity": 2}, {"sku": "cup", "quantity": 1}],
            "total": 1000,
        },
    )


def test_a_resent_start_is_the_same_message_and_wants_a_reply() -> None:
    book = a_book()
    ((_, first),) = ask(book, TEA_AND_CUP).also
    order, _ = book.placed[ORDER]
    again = PlacedOrder(
        order.order_id, "ann", "EUR", order.lines, order.total, order.placed_at, attempt=2
    )
    destination, second = start_saga(again)
    assert isinstance(first, Envelope)
    assert isinstance(second, Envelope)
    assert destination == ORCHESTRATOR_COMMANDS
    assert (second.reply_to, second.attempt) == ("order.commands", 2)
    assert second.model_copy(update={"reply_to": None, "attempt": 1}) == first


@pytest.mark.parametrize(
    ("asked", "field", "remedy"),
    [
        (order_of(("tea", 1), ("pot", 1)), "lines[1].sku", "pot is not on the price list"),
        (order_of(("tea", 1), ("cup", 1), ("tea", 2)), "lines[2].sku", "tea is named twice"),
        (order_of(("tea", 1), ("hat", 1)), "lines[1].sku", "hat is sold in USD"),
        (order_of(("tea", 1), currency="USD"), "lines[0].sku", "tea is sold in EUR"),
        (order_of(("tea", 1), currency="XXX"), "currency", "nothing is sold in XXX"),
        (order_of(("gold", 1001)), "lines", "order for at most"),
    ],
)
def test_an_invalid_order_names_its_remedy_and_frees_its_key(
    asked: PlaceOrder, field: str, remedy: str
) -> None:
    book = a_book()
    before = deepcopy(book)
    answered = ask(book, asked)
    assert isinstance(answered.reply, OrderInvalid)
    assert answered.reply.field == field
    assert answered.reply.remedy.startswith(remedy)
    assert not answered.keep
    assert not answered.also
    assert book == before


def test_the_largest_total_there_may_be() -> None:
    reply = ask(a_book(), order_of(("gold", 1000))).reply
    assert isinstance(reply, OrderAccepted)
    assert reply.total == 10**15


def test_an_order_under_another_id_than_its_own_is_invalid() -> None:
    book = a_book()
    other = ask(book, TEA_AND_CUP, saga_id=UUID(int=1))
    assert isinstance(other.reply, OrderInvalid)
    assert (other.reply.field, other.keep) == ("saga_id", False)
    assert not book.placed


def test_an_order_under_another_step_is_invalid() -> None:
    """Otherwise its undo would find nothing to undo."""
    book = a_book()
    other = ask(book, TEA_AND_CUP, step="create")
    assert isinstance(other.reply, OrderInvalid)
    assert (other.reply.field, other.keep) == ("step", False)
    assert not book.placed


def test_a_free_order_is_an_order() -> None:
    book = a_book()
    ask(book, ListProduct(sku="tea", price=0, currency="EUR"), saga_id=UUID(int=1))
    reply = ask(book, order_of(("tea", 1))).reply
    assert isinstance(reply, OrderAccepted)
    assert reply.total == 0


def test_what_is_listed_can_be_ordered_by_the_next_of_the_batch() -> None:
    book = OrderBook(NOON)
    listed = ask(book, ListProduct(sku="tea", price=300, currency="EUR"), saga_id=UUID(int=1))
    assert listed.reply == ProductListed(sku="tea")
    assert book.listed == {"tea"}
    assert isinstance(ask(book, order_of(("tea", 1))).reply, OrderAccepted)


def test_a_new_price_is_for_orders_to_come() -> None:
    book = a_book()
    ask(book, TEA_AND_CUP)
    ask(book, ListProduct(sku="tea", price=999, currency="EUR"), saga_id=UUID(int=1))
    order, _ = book.placed[ORDER]
    assert order.total == 1000


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (TEA_AND_CUP, True),
        (order_of(("tea", 2), ("cup", 1), currency="USD"), False),
        (order_of(("tea", 2)), False),
        (order_of(("tea", 2), ("cup", 2)), False),
        (order_of(("cup", 1), ("tea", 2)), False),
    ],
)
def test_a_repeat_is_the_same_order_or_a_reused_key(asked: PlaceOrder, same: bool) -> None:
    stored = ask(a_book(), TEA_AND_CUP).reply
    answer = ON_DUPLICATE[PlaceOrder](asked, stored)
    assert answer == (stored if same else KeyReused(order_id=ORDER))


def test_a_stored_answer_read_back_is_still_the_same_order() -> None:
    stored = ask(a_book(), TEA_AND_CUP).reply
    assert stored is not None
    read_back = OrderAccepted.model_validate_json(stored.model_dump_json())
    assert ON_DUPLICATE[PlaceOrder](TEA_AND_CUP, read_back) is read_back


@pytest.mark.parametrize(
    ("command", "reply", "standing"),
    [
        (ConfirmOrder(), OrderConfirmed(), OrderState(OrderStatus.CONFIRMED)),
        (
            RejectOrder(reason="card_declined"),
            OrderRejected(),
            OrderState(OrderStatus.REJECTED, "card_declined"),
        ),
    ],
)
def test_a_pending_order_is_settled(command: Command, reply: object, standing: OrderState) -> None:
    book = with_order(OrderStatus.PENDING)
    assert ask(book, command).reply == reply
    assert book.orders[ORDER] == standing
    assert book.changed == {ORDER}


@pytest.mark.parametrize(
    ("status", "command", "reply"),
    [
        (OrderStatus.CONFIRMED, ConfirmOrder(), OrderConfirmed()),
        (OrderStatus.REJECTED, RejectOrder(reason="card_declined"), OrderRejected()),
    ],
)
def test_a_settled_order_stays_as_it_is(
    status: OrderStatus, command: Command, reply: object
) -> None:
    book = with_order(status)
    before = deepcopy(book)
    assert ask(book, command).reply == reply
    assert book == before


@pytest.mark.parametrize(
    ("book", "command"),
    [
        (with_order(OrderStatus.REJECTED), ConfirmOrder()),
        (with_order(OrderStatus.CONFIRMED), RejectOrder(reason="card_declined")),
        (a_book(), ConfirmOrder()),
        (a_book(), SagaStarted()),
    ],
)
def test_illegal_transitions_raise_and_change_nothing(book: OrderBook, command: Command) -> None:
    before = deepcopy(book)
    with pytest.raises(IllegalTransition):
        ask(book, command)
    assert book == before


def test_without_an_order_there_is_nothing_to_reject() -> None:
    book = a_book()
    before = deepcopy(book)
    assert ask(book, RejectOrder(reason="card_declined")).reply == OrderRejected()
    assert book == before


def test_an_order_and_its_undo_in_one_batch_leave_it_rejected() -> None:
    book = a_book()
    ask(book, TEA_AND_CUP)
    ask(book, RejectOrder(reason="card_declined"))
    assert ORDER in book.placed
    assert book.orders[ORDER] == replace(ANN_S, status=OrderStatus.REJECTED, reason="card_declined")


def test_saga_started_is_noted_and_not_answered() -> None:
    book = with_order(OrderStatus.PENDING)
    assert ask(book, SagaStarted()) == Answered(None)
    assert book.orders[ORDER] == OrderState(saga_known=True)
    assert book.changed == {ORDER}


AFTER_PLACING = st.sampled_from([ConfirmOrder(), RejectOrder(reason="x"), SagaStarted()])


@given(st.lists(AFTER_PLACING, max_size=12))
def test_never_confirmed_and_rejected_both(script: list[Command]) -> None:
    book = a_book()
    ask(book, TEA_AND_CUP)
    seen = {OrderStatus.PENDING}
    for command in script:
        before = deepcopy(book)
        try:
            ask(book, command)
        except IllegalTransition:
            assert book == before
        standing = book.orders[ORDER]
        seen.add(standing.status)
        assert (standing.status is OrderStatus.REJECTED) == (standing.reason is not None)
    assert not {OrderStatus.CONFIRMED, OrderStatus.REJECTED} <= seen
