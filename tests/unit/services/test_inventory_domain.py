"""Tests of the inventory's rules: one command after another on one state."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages.envelope import Command, Direction, Envelope, Key
from common.messages.errors import IllegalTransition
from common.messages.shop.inventory import (
    DispatchStock,
    NotStocked,
    OutOfStock,
    ReceiveStock,
    ReleaseStock,
    ReservationNotHeld,
    ReserveStock,
    StockDispatched,
    StockReceived,
    StockReleased,
    StockReserved,
)
from common.messages.shop.values import Line
from common.participant.participant import Work
from inventory_svc.domain import Pieces, Reservation, ReservationStatus, Stock
from inventory_svc.handlers import HANDLERS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS = {
    ReserveStock: ("reserve_stock", Direction.FORWARD),
    ReleaseStock: ("reserve_stock", Direction.COMPENSATING),
    DispatchStock: ("dispatch_stock", Direction.FORWARD),
    ReceiveStock: ("receive_stock", Direction.FORWARD),
}


def saga(name: str) -> UUID:
    return uuid5(UUID(int=2), name)


def ask(stock: Stock, name: str, command: Command) -> Any:
    key = Key(saga(name), *STEPS[type(command)])
    envelope = Envelope.command(key, command, issued_at=NOON, reply_to=None)
    return HANDLERS[type(command)](stock, Work(envelope, command))


def reserve(**lines: int) -> ReserveStock:
    return ReserveStock(lines=tuple(Line(sku=sku, quantity=n) for sku, n in lines.items()))


def stock_of(**on_hand: int) -> Stock:
    return Stock({sku: Pieces(on_hand=n, received=n) for sku, n in on_hand.items()})


def with_reservation(status: ReservationStatus) -> Stock:
    """Make the state as loaded with a reservation of 3 pieces of 10."""
    pieces = Pieces(on_hand=10, received=10)
    if status is not ReservationStatus.RELEASED:
        pieces.on_hand = 7
        setattr(pieces, status.value.lower(), 3)
    reservation = Reservation(saga("a"), "reserve_stock", {"tea": 3}, status)
    return Stock({"tea": pieces}, {saga("a"): reservation})


def test_receiving_makes_stock_of_a_sku_never_seen() -> None:
    stock = Stock()
    assert ask(stock, "a", ReceiveStock(sku="tea", quantity=5)) == StockReceived(sku="tea")
    assert ask(stock, "b", ReceiveStock(sku="tea", quantity=2)) == StockReceived(sku="tea")
    assert stock.pieces["tea"] == Pieces(on_hand=7, received=7)
    assert [(d.saga_id, d.quantity) for d in stock.deliveries] == [(saga("a"), 5), (saga("b"), 2)]


def test_reserving_moves_every_line_from_on_hand_to_held() -> None:
    stock = stock_of(tea=5, cup=1)
    assert ask(stock, "a", reserve(tea=2, cup=1)) == StockReserved()
    assert stock.pieces["tea"] == Pieces(on_hand=3, held=2, received=5)
    assert stock.pieces["cup"] == Pieces(on_hand=0, held=1, received=1)
    assert stock.made[saga("a")] == Reservation(saga("a"), "reserve_stock", {"tea": 2, "cup": 1})
    assert stock.moved == {"tea", "cup"}


@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        ({"tea": 1, "cup": 2}, OutOfStock(sku="cup", wanted=2, available=1)),
        ({"tea": 1, "pot": 1}, NotStocked(sku="pot")),
    ],
)
def test_all_lines_or_none(lines: dict[str, int], refusal: OutOfStock | NotStocked) -> None:
    stock = stock_of(tea=5, cup=1)
    before = deepcopy(stock)
    assert ask(stock, "a", reserve(**lines)) == refusal
    assert stock == before


def test_a_sku_named_in_two_lines_counts_as_their_sum() -> None:
    twice = ReserveStock(lines=(Line(sku="tea", quantity=2), Line(sku="tea", quantity=2)))
    assert ask(stock_of(tea=3), "a", twice) == OutOfStock(sku="tea", wanted=4, available=3)
    stock = stock_of(tea=4)
    assert ask(stock, "a", twice) == StockReserved()
    assert stock.pieces["tea"] == Pieces(on_hand=0, held=4, received=4)


def test_the_last_piece_goes_to_the_first_of_a_batch() -> None:
    stock = stock_of(tea=1)
    assert ask(stock, "a", reserve(tea=1)) == StockReserved()
    assert ask(stock, "b", reserve(tea=1)) == OutOfStock(sku="tea", wanted=1, available=0)


def test_a_released_piece_can_be_had_by_the_next_of_the_batch() -> None:
    stock = stock_of(tea=1)
    ask(stock, "a", reserve(tea=1))
    ask(stock, "a", ReleaseStock())
    assert ask(stock, "b", reserve(tea=1)) == StockReserved()


def test_reserving_and_undoing_in_one_batch_leaves_it_released() -> None:
    stock = stock_of(tea=1)
    ask(stock, "a", reserve(tea=1))
    assert ask(stock, "a", ReleaseStock()) == StockReleased()
    assert stock.pieces["tea"] == Pieces(on_hand=1, received=1)
    assert stock.made[saga("a")].status is ReservationStatus.RELEASED
    assert not stock.settled  # it is inserted as it ended, not updated


def test_reserving_and_dispatching_in_one_batch() -> None:
    stock = stock_of(tea=1)
    ask(stock, "a", reserve(tea=1))
    assert ask(stock, "a", DispatchStock()) == StockDispatched()
    assert stock.pieces["tea"] == Pieces(dispatched=1, received=1)


def test_a_second_reservation_of_one_saga_is_a_defect() -> None:
    stock = with_reservation(ReservationStatus.HELD)
    before = deepcopy(stock)
    with pytest.raises(IllegalTransition):
        ask(stock, "a", reserve(tea=1))
    assert stock == before


@pytest.mark.parametrize(
    ("command", "reply", "status", "pieces"),
    [
        (ReleaseStock(), StockReleased(), ReservationStatus.RELEASED, Pieces(10, 0, 0, 10)),
        (DispatchStock(), StockDispatched(), ReservationStatus.DISPATCHED, Pieces(7, 0, 3, 10)),
    ],
)
def test_a_held_reservation_is_settled(
    command: Command, reply: object, status: ReservationStatus, pieces: Pieces
) -> None:
    stock = with_reservation(ReservationStatus.HELD)
    assert ask(stock, "a", command) == reply
    assert stock.pieces["tea"] == pieces
    assert stock.settled[saga("a")].status is status
    assert stock.moved == {"tea"}
    assert not stock.made


@pytest.mark.parametrize(
    ("status", "command", "reply"),
    [
        (ReservationStatus.RELEASED, ReleaseStock(), StockReleased()),
        (ReservationStatus.RELEASED, DispatchStock(), ReservationNotHeld()),
        (ReservationStatus.DISPATCHED, DispatchStock(), StockDispatched()),
    ],
)
def test_a_settled_reservation_stays_as_it_is(
    status: ReservationStatus, command: Command, reply: object
) -> None:
    stock = with_reservation(status)
    before = deepcopy(stock)
    assert ask(stock, "a", command) == reply
    assert stock == before


def test_goods_that_have_left_cannot_be_released() -> None:
    stock = with_reservation(ReservationStatus.DISPATCHED)
    before = deepcopy(stock)
    with pytest.raises(IllegalTransition):
        ask(stock, "a", ReleaseStock())
    assert stock == before


def test_without_a_reservation_nothing_is_undone_or_dispatched() -> None:
    stock = stock_of(tea=1)
    before = deepcopy(stock)
    assert ask(stock, "a", ReleaseStock()) == StockReleased(nothing_to_undo=True)
    assert ask(stock, "a", DispatchStock()) == ReservationNotHeld()
    assert stock == before


SKUS = st.sampled_from(["tea", "cup", "pot"])
COMMANDS = st.one_of(
    st.builds(ReceiveStock, sku=SKUS, quantity=st.integers(1, 5)),
    st.builds(lambda lines: reserve(**lines), st.dictionaries(SKUS, st.integers(1, 4), min_size=1)),
    st.just(ReleaseStock()),
    st.just(DispatchStock()),
)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), COMMANDS), max_size=60))
def test_pieces_are_conserved_and_never_negative(script: list[tuple[str, Command]]) -> None:
    stock = Stock()
    for name, command in script:
        before = deepcopy(stock)
        try:
            ask(stock, name, command)
        except IllegalTransition:
            assert stock == before
        for sku, pieces in stock.pieces.items():
            assert min(pieces.on_hand, pieces.held, pieces.dispatched) >= 0
            assert pieces.on_hand + pieces.held + pieces.dispatched == pieces.received
            assert pieces.received == sum(d.quantity for d in stock.deliveries if d.sku == sku)
            for status, count in (
                (ReservationStatus.HELD, pieces.held),
                (ReservationStatus.DISPATCHED, pieces.dispatched),
            ):
                reserved = [r for r in stock.reservations.values() if r.status is status]
                assert sum(r.lines.get(sku, 0) for r in reserved) == count
