"""The handlers of the inventory's commands. Pure: each unpacks a message and asks the domain."""

from __future__ import annotations

from common.messages.envelope import Command
from common.messages.shop.inventory import (
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
from common.participant.participant import Handler, Work
from inventory_svc.domain import Stock


def reserve_stock(
    stock: Stock, work: Work[ReserveStock]
) -> StockReserved | OutOfStock | NotStocked:
    return stock.reserve(work.saga_id, work.step, work.command.lines)


def release_stock(stock: Stock, work: Work[ReleaseStock]) -> StockReleased:
    return stock.release(work.saga_id)


def dispatch_stock(stock: Stock, work: Work[DispatchStock]) -> StockDispatched | ReservationNotHeld:
    return stock.dispatch(work.saga_id)


def restock(stock: Stock, work: Work[Restock]) -> Restocked:
    return stock.restock(work.command.order_id)


def receive_stock(stock: Stock, work: Work[ReceiveStock]) -> StockReceived:
    command = work.command
    return stock.receive(work.saga_id, work.step, command.sku, command.quantity)


HANDLERS: dict[type[Command], Handler] = {
    ReserveStock: reserve_stock,
    ReleaseStock: release_stock,
    DispatchStock: dispatch_stock,
    Restock: restock,
    ReceiveStock: receive_stock,
}
