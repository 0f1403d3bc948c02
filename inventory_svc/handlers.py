"""The handlers of the inventory's commands. Pure: each unpacks a message and asks the domain."""

from __future__ import annotations

from typing import cast

from common.messages.contracts import (
    DispatchStock,
    NotStocked,
    OutOfStock,
    ReceiveStock,
    ReleaseStock,
    ReservationNotHeld,
    ReserveStock,
    Restock,
    Restocked,
    StockDispatched,
    StockReceived,
    StockReleased,
    StockReserved,
)
from common.messages.envelope import Command
from common.participant.participant import Handler, Work
from inventory_svc.domain import Stock


def reserve_stock(stock: Stock, work: Work) -> StockReserved | OutOfStock | NotStocked:
    return stock.reserve(work.saga_id, work.step, cast(ReserveStock, work.command).lines)


def release_stock(stock: Stock, work: Work) -> StockReleased:
    return stock.release(work.saga_id)


def dispatch_stock(stock: Stock, work: Work) -> StockDispatched | ReservationNotHeld:
    return stock.dispatch(work.saga_id)


def restock(stock: Stock, work: Work) -> Restocked:
    return stock.restock(cast(Restock, work.command).order_id)


def receive_stock(stock: Stock, work: Work) -> StockReceived:
    command = cast(ReceiveStock, work.command)
    return stock.receive(work.saga_id, work.step, command.sku, command.quantity)


HANDLERS: dict[type[Command], Handler] = {
    ReserveStock: reserve_stock,
    ReleaseStock: release_stock,
    DispatchStock: dispatch_stock,
    Restock: restock,
    ReceiveStock: receive_stock,
}
